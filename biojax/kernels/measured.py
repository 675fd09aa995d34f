"""What was measured on this machine: rows that `tune` writes and every choice reads.

A table is a JSON file, {"format": 1, "rows": [...]}. A row holds for one device, one version of
JAX and one call, to the letter; any other call is left to the rules.
"""

import json
import math
import os
import platform as host
import secrets
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import lax

from biojax.errors import FileError

__all__ = ["VARIABLE", "Row", "describe_device", "described", "find", "publish", "read", "write"]

VARIABLE = "BIOJAX_TUNED"
LARGEST = 16 * 2**20  # bytes of a file


class Row(NamedTuple):
    """One call, measured.

    Args:
      platform: "cpu", "gpu" or "tpu".
      device: its kind.
      jax: the version of JAX.
      call: the kernel's name, shapes, dtypes and options, written out.
      implementation: the fastest.
      seconds: of each implementation that can do the call: forward, and with the gradients, each
        a median.
    """

    platform: str
    device: str
    jax: str
    call: str
    implementation: str
    seconds: Mapping[str, tuple[float, float]]

    @property
    def reason(self) -> str:
        """The time of the fastest, and of the next by name."""
        ordered = sorted(self.seconds.items(), key=lambda pair: pair[1][1])
        (_, (_, least)), *others = ordered
        text = f"measured here: {1e3 * least:.3g} ms with gradients"
        return f"{text}, {others[0][0]} {1e3 * others[0][1][1]:.3g} ms" if others else text

    def __str__(self) -> str:
        width = max(len(name) for name in self.seconds)
        lines = [
            f"{name:<{width}}  {1e3 * forward:10.3f} ms  {1e3 * both:10.3f} ms with gradients"
            for name, (forward, both) in sorted(self.seconds.items(), key=lambda p: p[1][1])
        ]
        return "\n".join([self.call, *lines])


class _Table(dict[tuple[str, ...], Row]):
    """Rows by all that they hold for. Like `_Record` its identity is a part of jit's cache key."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    __eq__ = object.__eq__


# What `tune` found in this process. A new table has functions traced before traced anew.
_table = jax.make_user_context(default_value=None)


def described(kernel: str, args: tuple) -> str:
    """A call of an implementation in words, equal for calls that run the same program."""
    arrays = [hasattr(a, "shape") and hasattr(a, "dtype") for a in args]
    words = [
        f"{a.dtype.name}[{','.join(map(str, a.shape))}]" if is_array else repr(_by_one_name(a))
        for a, is_array in zip(args, arrays, strict=True)
    ]
    default = getattr(jax.config, "jax_default_matmul_precision", None)
    if default is not None:
        words.append(f"precision {_by_one_name(default)} by default")
    return f"{kernel}({', '.join(words)})"


def describe_device(platform: str) -> str:
    """The kind of the accelerator, or the architecture and cores of the host."""
    if platform == "cpu":
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count()
        return f"{host.machine()}, {cores} cores"
    return jax.devices()[0].device_kind


def find(call: str, platform: str) -> Row | None:
    """The row for a call on this machine, if there is one.

    Raises:
      FileError: the environment names a table that is missing or damaged.
    """
    table = _table.value
    if table is None:
        path = os.environ.get(VARIABLE)
        if not path:
            return None
        table = _kept(path)
    return (
        table.get((platform, describe_device(platform), jax.__version__, call)) if table else None
    )


def publish(rows: Sequence[Row]) -> None:
    """Let every choice in this process from now on know these rows as well."""
    path = os.environ.get(VARIABLE)
    known = _table.value
    if known is None:
        known = _kept(path) if path and Path(path).exists() else {}
    _table.set_global(_Table({**known, **_by_call(rows)}))


def read(path: str | os.PathLike) -> list[Row]:
    """The rows of a file.

    Raises:
      FileError: the file is missing, too large, or no table.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes")
        table = json.loads(path.read_bytes())
        if table["format"] != 1:
            raise ValueError(f"format {table['format']!r}")
        return [_row(row) for row in table["rows"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FileError(
            str(path),
            f"'{type(error).__name__}: {error}'",
            f"a table that `tune` wrote, of at most {LARGEST} bytes",
            f"Name another file in {VARIABLE}, or delete this one and tune again",
        ) from error


def write(path: str | os.PathLike, rows: Sequence[Row]) -> None:
    """Write rows to a file, whole or not at all.

    Raises:
      FileError: the folder takes no file.
    """
    path = Path(path)
    text = json.dumps({"format": 1, "rows": [row._asdict() for row in rows]}, indent=1)
    temporary = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(
            str(path),
            f"'{error.strerror or error}' while writing",
            "a folder that takes the file",
            "Make the folder, free space, or write elsewhere",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _by_one_name(option: Any) -> Any:
    """The option; a precision, alone or inside of a tuple, not by any other of its names."""
    if isinstance(option, str):
        try:
            return lax.Precision(option)
        except ValueError:
            return option
    if not isinstance(option, tuple):
        return option
    parts = [_by_one_name(part) for part in option]
    if hasattr(option, "_fields"):
        return type(option)(*parts)
    is_twice = len(parts) == 2 and parts[0] == parts[1] and isinstance(parts[0], lax.Precision)
    return parts[0] if is_twice else tuple(parts)


@cache
def _kept(path: str) -> _Table:
    return _Table(_by_call(read(path)))


def _by_call(rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    return {row[:4]: row for row in rows}


def _row(fields: dict) -> Row:
    """A row, once every field is what it should be."""
    row = Row(**fields)
    if not all(isinstance(text, str) for text in (*row[:5], *row.seconds)):
        raise ValueError(f"a row of {fields!r:.200}")
    seconds = {name: (float(f), float(b)) for name, (f, b) in row.seconds.items()}
    if row.implementation not in seconds:
        raise ValueError(f"no time for {row.implementation!r:.200}")
    if not all(math.isfinite(s) and s >= 0 for pair in seconds.values() for s in pair):
        raise ValueError(f"seconds of {fields['seconds']!r:.200}")
    return row._replace(seconds=seconds)
