"""`Volume`: pixels with axes, spacing, orientation, channel names and where they came from."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from biojax.errors import DataError, ShapeError
from biojax.typing import ArrayLike

__all__ = ["Volume", "checked_affine", "derived_spacing"]

_AXES = "tzyxc"
_WHERE = "Volume"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """An image of one to three spatial axes, with what is known about it.

    Axes are always in the order t, z, y, x, c; `io` converts files once, on reading. World
    coordinates are millimetres in the order z, y, x, along axes that point superior, anterior and
    right: NIfTI's RAS+ with rows and columns reversed.

    Args:
      data: the pixels, a numpy or jax array with one dimension per letter of `axes`.
      axes: letters of "tzyxc" in that order, such as "zyx", "yxc" or "tzyx".
      spacing: millimetres between voxels along each spatial axis of `axes`, in that order; None
        if unknown. Derived from `affine` if that is given alone.
      affine: (4, 4) float64 that maps a voxel index (z, y, x, 1) to world (z, y, x, 1); an axis
        the image lacks has index 0. None if unknown.
      channels: a printable name for each channel; a single name will do where there is no c axis.
      modality: "MRI", "CT", "PET", "SEM", ...
      source: the file it was read from.
      meta: anything else that JSON can say. Held as JSON would return it, so tuples become lists.

    Raises:
      ShapeError: `axes` are not letters of "tzyxc" in order or do not fit the data, the data are
        empty, or there is not one spacing per spatial axis and one name per channel.
      DataError: spacing is not finite and positive, `affine` is not finite and invertible or has
        another spacing, a name is not printable, or `meta` is not JSON.

    >>> volume = Volume(np.zeros((4, 8, 8), np.int16), "zyx", spacing=(5, 0.9, 0.9), modality="MRI")
    >>> volume
    Volume(zyx (4, 8, 8) int16, spacing (5.0, 0.9, 0.9) mm, MRI)
    >>> volume.model_array().shape
    (4, 8, 8, 1)
    """

    data: ArrayLike
    axes: str
    spacing: Sequence[float] | None = None
    affine: np.ndarray | None = None
    channels: Sequence[str] | None = None
    modality: str | None = None
    source: str | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_axes(self.axes, self.data)
        affine = None if self.affine is None else checked_affine(self.affine)
        spacing = None if self.spacing is None else _checked_spacing(self.spacing, self.axes)
        if affine is not None:
            derived = derived_spacing(affine, self.axes)
            if spacing is None:
                spacing = derived
            elif not np.allclose(spacing, derived, rtol=1e-4, atol=0):
                raise DataError(
                    _WHERE,
                    f"spacing {spacing} and an affine whose columns are {derived} long",
                    "the same spacing in both",
                    "Pass only the affine, or spacing with affine=None",
                )
        if self.modality is not None and not isinstance(self.modality, str):
            raise DataError(_WHERE, f"modality {self.modality!r}", "text", 'Pass "CT", "MRI", ...')
        channels = None if self.channels is None else _checked_channels(self.channels, self)
        checked = {
            "spacing": spacing,
            "affine": affine,
            "channels": channels,
            "source": None if self.source is None else str(Path(self.source)),
            "meta": _checked_meta(self.meta),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return tuple(int(n) for n in self.data.shape)

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype of the pixels."""
        return np.dtype(self.data.dtype)

    @property
    def spatial_axes(self) -> str:
        """The spatial letters of `axes`: "zyx", "yx", ..."""
        return _spatial(self.axes)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """The length of each spatial axis."""
        return tuple(n for n, axis in zip(self.shape, self.axes, strict=True) if axis in "zyx")

    def replace(self, **changes: Any) -> Self:
        """The same volume with some fields changed; a new affine brings its own spacing."""
        if changes.get("affine") is not None:
            changes.setdefault("spacing", None)
        return dataclasses.replace(self, **changes)

    def model_array(self) -> ArrayLike:
        """The pixels as `([t,] *spatial, c)`, with a channel axis of one where there is none."""
        return self.data if "c" in self.axes else self.data[..., None]

    def __repr__(self) -> str:
        parts = [f"{self.axes} {self.shape} {self.dtype}"]
        if self.spacing is not None:
            parts.append(f"spacing {self.spacing} mm")
        if self.affine is not None:
            parts.append("affine")
        if self.modality is not None:
            parts.append(self.modality)
        if self.channels is not None:
            names = ", ".join(self.channels[:4]) + (", ..." if len(self.channels) > 4 else "")
            parts.append(f"channels {names}")
        if self.source is not None:
            parts.append(f"from {Path(self.source).name}")
        return f"{type(self).__name__}({', '.join(parts)})"


def checked_affine(affine: Any) -> np.ndarray:
    """A read-only float64 copy of an affine, if it is finite and can be inverted."""
    fix = "Correct it, or pass None and the spacing alone"
    try:
        matrix = np.array(affine, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4):
        raise ShapeError(_WHERE, f"an affine of shape {matrix.shape}", "shape (4, 4)", fix)
    if not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise DataError(
            _WHERE, f"the affine {matrix.tolist()}", "finite numbers and a last row 0 0 0 1", fix
        )
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    # scaled first, so that voxels of a nanometre are not taken for a singular matrix
    if not (lengths > 0).all() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise DataError(_WHERE, f"the singular affine {matrix.tolist()}", "one to invert", fix)
    matrix.flags.writeable = False
    return matrix


def derived_spacing(affine: np.ndarray, axes: str) -> tuple[float, ...]:
    """The length in millimetres of the affine's column for each spatial axis of `axes`."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(float(lengths["zyx".index(axis)]) for axis in _spatial(axes))


def _spatial(axes: str) -> str:
    return "".join(axis for axis in axes if axis in "zyx")


def _check_axes(axes: str, data: Any) -> None:
    ordered = "".join(axis for axis in _AXES if axis in str(axes))
    if not isinstance(axes, str) or not axes or axes != ordered:
        raise ShapeError(
            _WHERE,
            f"axes {axes!r}",
            f"letters of {_AXES!r}, each once and in that order",
            "Transpose the data into that order",
            repr(ordered) if ordered else None,
        )
    if not hasattr(data, "shape") or not hasattr(data, "dtype"):
        raise ShapeError(
            _WHERE, f"data of type {type(data).__name__}", "an array", "Wrap it in numpy.asarray"
        )
    shape = tuple(data.shape)
    if len(shape) != len(axes):
        raise ShapeError(
            _WHERE,
            f"axes {axes!r} and data of shape {shape}",
            f"{len(shape)} letters, one per dimension",
            "Name every axis of the data",
        )
    if 0 in shape:
        raise ShapeError(_WHERE, f"empty data of shape {shape}", "at least one voxel", "Check it")


def _checked_spacing(spacing: Sequence[float], axes: str) -> tuple[float, ...]:
    spatial = _spatial(axes)
    try:
        values = tuple(float(value) for value in spacing)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(spatial):
        raise ShapeError(
            _WHERE,
            f"spacing {spacing!r} for axes {axes!r}",
            f"{len(spatial)} numbers in millimetres, for {', '.join(spatial) or 'no axis'}",
            "Pass one per spatial axis, or None if it is unknown",
        )
    if not all(np.isfinite(value) and value > 0 for value in values):
        raise DataError(
            _WHERE,
            f"spacing {values}",
            "finite numbers above 0, in millimetres",
            "Correct it, or pass None if it is unknown",
        )
    return values


def _checked_channels(channels: Sequence[str], volume: Volume) -> tuple[str, ...]:
    count = volume.shape[-1] if "c" in volume.axes else 1
    names = (channels,) if isinstance(channels, str) else tuple(channels)
    if len(names) != count:
        raise ShapeError(
            _WHERE, f"{len(names)} channel names {names}", f"{count}", "Name each channel, or none"
        )
    if not all(isinstance(name, str) and name and name.isprintable() for name in names):
        raise DataError(
            _WHERE, f"channel names {names}", "printable, non-empty text", "Rename them"
        )
    return names


def _checked_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            _WHERE,
            f"meta that JSON cannot hold ({error})",
            "a mapping of text, finite numbers, lists and mappings",
            "Convert arrays with .tolist() and drop what is not data",
        ) from error
    return json.loads(text)
