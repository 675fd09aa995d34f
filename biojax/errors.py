"""One family of errors: each says what was got and expected, how to fix it, what is nearest."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

__all__ = [
    "BiojaxError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DependencyError",
    "FileError",
    "ShapeError",
    "UnsupportedError",
    "nearest",
    "nearest_divisor",
    "require",
]


class BiojaxError(Exception):
    """Something that a user can put right. The text has four parts.

    Args:
      where: the function, file or field that found it.
      got: what was found there.
      expected: what would have been right.
      fix: what to do about it, as an instruction.
      nearest: the nearest valid choice, where there is one.

    >>> print(BiojaxError("conv", "rank 6", "rank 3 to 5", "Drop an axis", "x[0]"))
    conv: got rank 6. Expected rank 3 to 5. Drop an axis. Did you mean x[0]?
    """

    def __init__(self, where: str, got: str, expected: str, fix: str, nearest: str | None = None):
        self.where, self.got, self.expected = where, got, expected
        self.fix, self.nearest = fix, nearest
        text = f"{where}: got {got}. Expected {expected}. {fix}."
        super().__init__(f"{text} Did you mean {nearest}?" if nearest else text)

    def __reduce__(self):  # errors cross process boundaries with their parts
        return type(self), (self.where, self.got, self.expected, self.fix, self.nearest)


class ShapeError(BiojaxError, ValueError):
    """Shapes, axes or dtypes that do not fit together."""


class UnsupportedError(BiojaxError, NotImplementedError):
    """The named implementation cannot do this here."""


class ConfigError(BiojaxError, ValueError):
    """A name or an option that does not exist, or options that contradict each other."""


class DataError(BiojaxError, ValueError):
    """Values that cannot be right: labels out of range, intensities that are not finite."""


class FileError(BiojaxError):
    """A file that is missing, damaged, unsafe or in the way."""


class CheckpointError(BiojaxError):
    """A checkpoint that is damaged or belongs to something else."""


class DependencyError(BiojaxError, ImportError):
    """An optional dependency that is not installed."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like `name`, quoted for `BiojaxError(nearest=...)`, or None.

    >>> nearest("unett", ["unet", "cnn_classifier"])
    "'unet'"
    """
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return repr(found[0]) if found else None


def nearest_divisor(n: int, of: int) -> int:
    """The divisor of `of` that is nearest to n, the smaller of two as near.

    >>> nearest_divisor(5, 12)
    4
    """
    return min((d for d in range(1, of + 1) if of % d == 0), key=lambda d: abs(d - n))


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Raises:
      DependencyError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            module,
            f"'{error}'",
            f"the package {module.split('.')[0]} to be installed",
            f'Install it with: pip install "biojax[{extra}]"',
        ) from error
