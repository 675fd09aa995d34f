"""Reading and writing volumes; the format is chosen by the extension."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from biojax.errors import FileError, ShapeError, nearest
from biojax.io.atomic import replacing
from biojax.io.lazy import MAX_BYTES, LazyArray, LazyVolume
from biojax.io.nifti import open_nifti, write_nifti
from biojax.io.reading import existing_file
from biojax.io.tiff import open_tiff, write_tiff
from biojax.io.volume import Volume
from biojax.typing import Dtype

__all__ = ["open_volume", "read_volume", "write_planes", "write_volume"]

_TIFF, _NIFTI = (open_tiff, write_tiff), (open_nifti, write_nifti)
_FORMATS = {
    ".ome.tif": _TIFF,
    ".ome.tiff": _TIFF,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".btf": _TIFF,
    ".nii": _NIFTI,
    ".nii.gz": _NIFTI,
}


def read_volume(
    path: str | os.PathLike, *, axes: str | None = None, max_bytes: int = MAX_BYTES
) -> Volume:
    """Read an image whole.

    Args:
      path: a TIFF (.tif, .tiff, .ome.tif, .ome.tiff, .btf) or NIfTI (.nii, .nii.gz) file.
      axes: the axes of the file's own array, in the file's order, where a TIFF does not name them:
        "zyx", "cyx", ... Nothing is guessed.
      max_bytes: the most memory that the voxels may take.

    Returns:
      The volume with axes in the order t, z, y, x, c and lengths in millimetres. Integers stay
      integers; a NIfTI with a scale becomes float32. NIfTI is turned to the closest RAS+, and
      `meta["orientation"]` keeps the code that it had. RGB is axis c, named red, green, blue.

    Raises:
      FileError: there is no such file or format, the file is damaged or claims more than it can
        hold or than `max_bytes`, or it holds several images.
      ShapeError: its axes are not named, or `axes` does not fit.
      DependencyError: a package for this format or compression is not installed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.ome.tif"
    >>> write_volume(path, Volume(np.ones((3, 8, 8), np.uint8), "zyx", spacing=(2e-3, 5e-4, 5e-4)))
    >>> read_volume(path)
    Volume(zyx (3, 8, 8) uint8, spacing (0.002, 0.0005, 0.0005) mm, from cells.ome.tif)
    """
    with open_volume(path, axes=axes) as volume:
        return volume.read(max_bytes=max_bytes)


def open_volume(path: str | os.PathLike, *, axes: str | None = None) -> LazyVolume:
    """Open an image without reading its voxels.

    Args:
      path: as in `read_volume`.
      axes: as in `read_volume`.

    Returns:
      The volume; slicing it reads what the slice needs. It is a context manager.

    Raises:
      FileError, ShapeError, DependencyError: as in `read_volume`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "steps.ome.tif"
    >>> write_volume(path, Volume(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), "zyx"))
    >>> with open_volume(path) as volume:
    ...     print(volume.axes, volume.shape, volume[-1, 0])
    zyx (3, 4, 5) [40 41 42 43 44]
    """
    path = existing_file(path)
    opener, _ = _format(path)
    return opener(path, axes)


def write_volume(
    path: str | os.PathLike,
    volume: Volume,
    *,
    compression: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a volume, whole or not at all.

    Voxels, axes, spacing, affine, channel names, modality and `meta` are read back exactly.
    `.ome.tif` and `.btf` are OME-TIFF; `.tif` is an ImageJ hyperstack for uint8, uint16 and float32
    below 4 GB, else OME-TIFF. bool is written as uint8. Channels named red, green, blue (alpha) of
    uint8 or uint16 become RGB pixels. A `LazyVolume` is copied plane by plane.

    Args:
      path: the file; its extension names the format.
      volume: what to write.
      compression: for TIFF, "zlib", or "lzw" or "zstd" with the extra `codecs`; None for none.
      overwrite: whether a file at `path` may be replaced.

    Raises:
      FileError: the extension is unknown, the folder is missing, or a file is in the way.
      UnsupportedError: the format cannot hold the dtype; nothing is cast in silence.
      ConfigError: `compression` is unknown.
      DependencyError: the compression or the format needs a package that is not installed.
    """
    _write(Path(path), volume, _planes(volume), compression, overwrite)


def write_planes(
    path: str | os.PathLike,
    planes: Iterable[Any],
    *,
    shape: Sequence[int],
    dtype: Dtype,
    axes: str,
    spacing: Sequence[float] | None = None,
    affine: np.ndarray | None = None,
    channels: Sequence[str] | None = None,
    modality: str | None = None,
    meta: Mapping[str, Any] | None = None,
    compression: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a volume from an iterator of its planes, holding few of them in memory.

    Args:
      path: as in `write_volume`.
      planes: arrays of shape `(y, x[, c])`, for each z within each t.
      shape: the shape of the whole volume.
      dtype: the dtype of every plane.
      axes: as in `Volume`, as are spacing, affine, channels, modality and meta.
      compression: as in `write_volume`.
      overwrite: as in `write_volume`.

    Raises:
      ShapeError: a plane has another shape or dtype, or there are too few or too many. As for every
        other failure, also in the iterator, no file is left behind.
      FileError, UnsupportedError, ConfigError, DependencyError: as in `write_volume`.
    """
    blank = jax.ShapeDtypeStruct(tuple(int(n) for n in shape), np.dtype(dtype))
    volume = Volume(
        blank,  # pyright: ignore[reportArgumentType]
        axes,
        spacing=spacing,
        affine=affine,
        channels=channels,
        modality=modality,
        meta=meta or {},
    )
    _write(Path(path), volume, planes, compression, overwrite)


def _format(path: Path):
    name = path.name.lower()
    for extension in sorted(_FORMATS, key=len, reverse=True):
        if name.endswith(extension):
            return _FORMATS[extension]
    raise FileError(
        str(path),
        f"the extension {path.suffix!r}",
        f"one of {', '.join(_FORMATS)}",
        "Convert the file, or rename it if it is one of these",
        nearest(path.suffix.lower(), _FORMATS),
    )


def _write(
    path: Path, volume: Volume, planes: Iterable[Any], compression: str | None, overwrite: bool
) -> None:
    _, writer = _format(path)
    dtype = np.dtype("uint8") if volume.dtype == bool else volume.dtype.newbyteorder("=")
    header = volume.replace(data=jax.ShapeDtypeStruct(volume.shape, dtype), spacing=volume.spacing)
    with replacing(path, overwrite=overwrite) as temporary:
        checked = _checked(path, planes, volume, dtype)
        writer(temporary, path, header, checked, compression)
        next(checked, None)  # a writer stops at the last plane; one too many is an error


def _planes(volume: Volume) -> Iterator[np.ndarray]:
    data: Any = volume.data if isinstance(volume.data, LazyArray) else np.asarray(volume.data)
    return (data[at] for at in np.ndindex(_leading(volume)))


def _leading(volume: Volume) -> tuple[int, ...]:
    """The lengths of t and z, over which planes are counted."""
    return tuple(n for n, axis in zip(volume.shape, volume.axes, strict=True) if axis in "tz")


def _checked(
    path: Path, planes: Iterable[Any], volume: Volume, stored: np.dtype
) -> Iterator[np.ndarray]:
    """The planes in the dtype stored, each of the right shape and dtype, and the right number."""
    leading = _leading(volume)
    shape, dtype = volume.shape[len(leading) :], volume.dtype
    count, number = math.prod(leading), 0
    for number, plane in enumerate(planes, start=1):
        array = np.asarray(plane)
        if array.shape != shape or array.dtype.newbyteorder("=") != dtype.newbyteorder("="):
            got, expected = f"{array.shape} {array.dtype}", f"{shape} {dtype}"
            raise _wrong_planes(path, f"plane {number - 1} of {got}", f"planes of {expected}")
        if number > count:
            raise _wrong_planes(path, f"more than {count} planes", f"{count} for {leading}")
        yield np.array(array, stored, order="C")  # a copy: iterators may use a buffer again
    if number < count:
        raise _wrong_planes(path, f"{number} planes", f"{count} for t and z of {leading}")


def _wrong_planes(path: Path, got: str, expected: str) -> ShapeError:
    return ShapeError(str(path), got, expected, "Yield one (y, x[, c]) plane per z within each t")
