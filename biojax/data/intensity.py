"""Intensity normalisation that is stored with a model, so that prediction repeats training's.

Each step is a frozen dataclass, called on one image `(*spatial, c)` of any real dtype and
returning float32 of the same shape. Steps hold only numbers and names, so they turn into JSON and
back (`to_config`, `from_config`). The functions are the same steps for use in passing.

| modality | usual step |
| --- | --- |
| CT | `ClipWindow` in Hounsfield units |
| MRI | `ZScore`, within the body where air fills much of the image |
| PET, electron microscopy | `Percentile` |
| light microscopy, ultrasound | `Percentile` or `MinMax` |
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from biojax.data.otsu import otsu_threshold
from biojax.errors import ConfigError, DataError, ShapeError, nearest

__all__ = [
    "ClipWindow",
    "Compose",
    "MinMax",
    "Percentile",
    "Step",
    "ZScore",
    "clip_window",
    "from_config",
    "minmax",
    "percentile",
    "to_config",
    "zscore",
]

_MASKS = ("nonzero", "otsu")


@dataclass(frozen=True)
class ClipWindow:
    """A fixed intensity window, scaled to [0, 1]: y = (clip(x, low, high) - low) / (high - low).

    Args:
      low: what becomes 0, in the image's own unit (CT: HU); window centre - width / 2.
      high: what becomes 1; window centre + width / 2.

    Raises:
      ConfigError: `low` is not below `high`, or either is not finite.
      DataError: (when called) values that are not finite real numbers.

    >>> ClipWindow(-160, 240)(np.array([[-1000], [40], [500]])).ravel()
    array([0. , 0.5, 1. ], dtype=float32)
    """

    low: float
    high: float

    def __post_init__(self):
        _check_ascending("ClipWindow", self.low, self.high, -math.inf, math.inf)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return _rescale(_finite(image), self.low, self.high)


@dataclass(frozen=True)
class ZScore:
    """Zero mean and unit standard deviation in each channel: y = (x - mean) / std.

    Mean and standard deviation (of the population) are taken within the mask and applied
    everywhere. A channel that is constant there is only shifted, by its mean.

    Args:
      mask: None for every voxel; "nonzero" for the voxels of the channel that are not 0; "otsu"
        for those above Otsu's threshold of the channel smoothed by a Gaussian with a standard
        deviation of one voxel. A mask that comes out empty is taken to be every voxel.

    Raises:
      ConfigError: an unknown mask.
      DataError: (when called) values that are not finite real numbers.

    >>> ZScore(mask="nonzero")(np.array([[0], [1], [3]])).ravel()
    array([-2., -1.,  1.], dtype=float32)
    """

    mask: str | None = None

    def __post_init__(self):
        if self.mask is not None and self.mask not in _MASKS:
            raise ConfigError(
                "ZScore",
                f"mask={self.mask!r}",
                f"None or one of {', '.join(_MASKS)}",
                "Choose a mask by name",
                nearest(str(self.mask), _MASKS),
            )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return _per_channel(image, self._channel)

    def _channel(self, x: np.ndarray) -> np.ndarray:
        inside = x
        if self.mask == "nonzero":
            inside = x[x != 0]
        elif self.mask == "otsu":
            from scipy import ndimage

            smooth = ndimage.gaussian_filter(x, 1.0, mode="nearest")
            inside = x[smooth > otsu_threshold(smooth)]
        if not inside.size:
            inside = x
        mean, std = np.mean(inside, dtype=np.float64), np.std(inside, dtype=np.float64)
        # The mean of a constant is rounded, which must not pass for a spread.
        return (x - mean) / (std if std > 1e-12 * abs(mean) else 1.0)


@dataclass(frozen=True)
class Percentile:
    """Clip each channel to two of its percentiles and scale to [0, 1].

    A channel in which both percentiles are equal becomes 0.

    Args:
      low: percentile that becomes 0, in [0, 100).
      high: percentile that becomes 1, in (low, 100].

    Raises:
      ConfigError: not 0 <= low < high <= 100.
      DataError: (when called) values that are not finite real numbers.

    >>> Percentile(0, 75)(np.arange(5)[:, None]).ravel()
    array([0.        , 0.33333334, 0.6666667 , 1.        , 1.        ], dtype=float32)
    """

    low: float = 0.5
    high: float = 99.5

    def __post_init__(self):
        _check_ascending("Percentile", self.low, self.high, 0, 100)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return _per_channel(
            image, lambda x: _rescale(x, *np.percentile(x, (self.low, self.high)).tolist())
        )


@dataclass(frozen=True)
class MinMax:
    """Scale each channel from its own least and greatest value to [0, 1].

    A constant channel becomes 0.

    Raises:
      DataError: (when called) values that are not finite real numbers.

    >>> MinMax()(np.array([[2], [3], [4]])).ravel()
    array([0. , 0.5, 1. ], dtype=float32)
    """

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return _per_channel(image, lambda x: _rescale(x, float(x.min()), float(x.max())))


Step = ClipWindow | ZScore | Percentile | MinMax

_STEPS: dict[str, type[Step]] = {
    "clip_window": ClipWindow,
    "zscore": ZScore,
    "percentile": Percentile,
    "minmax": MinMax,
}


@dataclass(frozen=True)
class Compose:
    """Steps in the order in which they are applied; none leave the image as it is, in float32.

    >>> Compose((ClipWindow(-1000, 1000), ZScore()))(np.array([[-2000], [2000]])).ravel()
    array([-1.,  1.], dtype=float32)
    """

    steps: tuple[Step, ...] = ()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        image = _finite(image)
        for step in self.steps:
            image = step(image)
        return image


def to_config(pipeline: Step | Compose) -> dict | list[dict]:
    """Plain JSON for a step (an object) or for a `Compose` (a list of objects).

    >>> to_config(Compose((ClipWindow(-160, 240), ZScore("otsu"))))
    [{'name': 'clip_window', 'low': -160, 'high': 240}, {'name': 'zscore', 'mask': 'otsu'}]
    """
    if isinstance(pipeline, Compose):
        return [_step_to_config(step) for step in pipeline.steps]
    return _step_to_config(pipeline)


def from_config(config: Mapping | list) -> Step | Compose:
    """The step or `Compose` that `to_config` wrote.

    Raises:
      ConfigError: an unknown name or option, a missing option, or a value out of range.

    >>> from_config({"name": "zscore", "mask": "otsu"})
    ZScore(mask='otsu')
    """
    if isinstance(config, list):
        return Compose(tuple(_step_from_config(step) for step in config))
    return _step_from_config(config)


def clip_window(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Clip to [low, high] and scale to [0, 1]; see `ClipWindow`."""
    return ClipWindow(low, high)(image)


def zscore(image: np.ndarray, mask: str | None = None) -> np.ndarray:
    """Zero mean and unit standard deviation in each channel; see `ZScore`."""
    return ZScore(mask)(image)


def percentile(image: np.ndarray, low: float = 0.5, high: float = 99.5) -> np.ndarray:
    """Clip each channel to two percentiles and scale to [0, 1]; see `Percentile`."""
    return Percentile(low, high)(image)


def minmax(image: np.ndarray) -> np.ndarray:
    """Scale each channel from its range to [0, 1]; see `MinMax`."""
    return MinMax()(image)


def _step_to_config(step: Step) -> dict:
    for name, cls in _STEPS.items():
        if type(step) is cls:
            return {"name": name, **dataclasses.asdict(step)}
    raise ConfigError(
        "to_config",
        f"a {type(step).__name__}",
        f"one of {', '.join(cls.__name__ for cls in _STEPS.values())}",
        "Only these steps can be stored with a model",
    )


def _step_from_config(config: Mapping) -> Step:
    options = dict(config) if isinstance(config, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in _STEPS:
        raise ConfigError(
            "from_config",
            f"{config!r}",
            f"an object whose name is one of {', '.join(_STEPS)}",
            "Correct the name, or update biojax if a newer version wrote it",
            nearest(str(name), _STEPS),
        )
    try:
        return _STEPS[name](**options)
    except TypeError as error:
        fields = [field.name for field in dataclasses.fields(_STEPS[name])]
        unknown = [str(option) for option in options if option not in fields]
        raise ConfigError(
            f"from_config({name!r})",
            f"options {list(options)}",
            f"{fields or 'none'}",
            "Name each option that has no default, and no other",
            nearest(unknown[0], fields) if unknown else None,
        ) from error


def _check_ascending(where: str, low: float, high: float, least: float, greatest: float):
    numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in (low, high))
    if not (numbers and least <= low < high <= greatest):
        raise ConfigError(
            where,
            f"low={low!r} and high={high!r}",
            f"finite numbers with {least} <= low < high <= {greatest}",
            "Give the lower one first",
        )


def _finite(image: np.ndarray) -> np.ndarray:
    """The image in float32, all of it finite."""
    image = np.asarray(image)
    if image.dtype.kind not in "iuf" or not image.size:
        raise DataError(
            "intensity",
            f"an image of shape {image.shape} and dtype {image.dtype}",
            "one or more real numbers",
            "Convert the image, e.g. np.abs of a complex one",
        )
    with np.errstate(over="ignore"):  # beyond float32 becomes inf, and is refused below
        image = image.astype(np.float32, copy=False)
    finite = np.isfinite(image)
    if not finite.all():
        raise DataError(
            "intensity",
            f"{image.size - np.count_nonzero(finite)} of {image.size} values NaN or infinite",
            "finite values",
            "Repair the image, e.g. with np.nan_to_num, or leave it out",
        )
    return image


def _per_channel(image: np.ndarray, normalise: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    image = _finite(image)
    if image.ndim < 2:
        raise ShapeError(
            "intensity",
            f"an image of shape {image.shape}",
            "(*spatial, c)",
            "Add the channel axis: image[..., None]",
        )
    out = np.empty_like(image)
    for c in range(image.shape[-1]):
        out[..., c] = normalise(image[..., c])
    return out


def _rescale(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """From [low, high] to [0, 1], both clipped; zeros where there is no range."""
    span = np.float32(high - low)
    return (np.clip(x, low, high) - np.float32(low)) / span if span else np.zeros_like(x)
