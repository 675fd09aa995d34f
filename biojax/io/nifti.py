"""NIfTI-1 and NIfTI-2, plain or gzipped, through nibabel.

Voxels are brought to the closest RAS+ orientation and then to z, y, x, so that x grows to the
right, y to anterior and z to superior. A header without a unit is taken to be in millimetres.
"""

import contextlib
import gzip
import logging
import math
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from biojax.errors import ConfigError, FileError, UnsupportedError, require
from biojax.io import record
from biojax.io.lazy import Box, LazyArray, LazyVolume, lengths, rearranged
from biojax.io.reading import telling
from biojax.io.volume import Volume, checked_affine, derived_spacing

__all__ = ["open_nifti", "write_nifti"]

_WRITABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_STORED = "ctzyx"  # the axes in the file, slowest first
_COMMENT = 6  # NIfTI's code for an extension that holds text
_METRE, _MICRON = 1, 3  # of xyzt_units; 2 is mm, and so is anything else taken to be
_RATIO = 1032  # the most bytes that one byte of gzip can unpack to

Reader = Callable[[Box], np.ndarray]


def open_nifti(path: Path, axes: str | None = None) -> LazyVolume:
    """Open a NIfTI file; see `biojax.io.open_volume`."""
    if axes is not None:
        fix = "Leave axes out"
        raise ConfigError(str(path), f"axes={axes!r}", "None, since NIfTI names its axes", fix)
    nibabel = require("nibabel", "nifti")
    with contextlib.ExitStack() as stack, telling(str(path), "NIfTI"):
        packed = path.suffix.lower() == ".gz"
        file: Any = stack.enter_context(gzip.GzipFile(path) if packed else path.open("rb"))
        header, offset = _header(nibabel, file)
        shape, dtype = _shape(header), header.get_data_dtype()
        need, size = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
        if dtype.kind not in "iufc" or dtype.itemsize > 16:
            raise _refused(path, f"voxels of type {dtype}", "plain numbers")
        if need > size * (_RATIO if packed else 1):
            raise _refused(path, f"a header for {need} bytes in a file of {size}", "a whole file")
        affine, turns = _orientation(nibabel, header, shape)
        read = (
            _packed(file, shape, dtype, offset) if packed else _mapped(file, shape, dtype, offset)
        )
        read = _canonical(read, shape, turns)
        slope, intercept = header.get_slope_inter()
        if slope is not None and (slope, intercept) != (1, 0):
            dtype = np.dtype(np.complex64 if dtype.kind == "c" else np.float32)
            read = _scaled(read, slope, intercept, dtype)
        fields = _fields(nibabel, header, file, offset, shape, affine, turns)
        sizes = _sizes(shape, turns)
        data = LazyArray(
            str(path),
            tuple(sizes[axis] for axis in fields["axes"]),
            dtype.newbyteorder("="),
            rearranged(read, _STORED, fields["axes"]),
            file.close,
        )
        volume = LazyVolume(data, source=str(path), **fields)
        stack.pop_all()  # the volume closes the file from here on
    return volume


def _refused(path: Path | str, got: str, expected: str) -> FileError:
    fix = "The file is damaged, cut short or of an unusual kind: save it again"
    return FileError(str(path), got, expected, fix)


def _header(nibabel: Any, file: Any) -> tuple[Any, int]:
    """The header, checked, and the byte where voxels start."""
    raw = file.read(540)
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    sizes = struct.unpack("<i", raw[:4]) + struct.unpack(">i", raw[:4])
    size = next((size for size in sizes if size in kinds), 0)
    if size == 0:
        raise ValueError(f"starts with {raw[:4].hex()}, which is no NIfTI header")
    header = kinds[size](raw[:size], check=False)
    if header["magic"].item() != header.single_magic:
        raise ValueError(f"magic {header['magic'].item()!r} is not that of one NIfTI file")
    header["pixdim"][1:4] = np.where(header["pixdim"][1:4] == 0, np.inf, header["pixdim"][1:4])
    header.check_fix(logger=logging.Logger("quiet", logging.CRITICAL), error_level=40)
    return header, max(int(header["vox_offset"]), size + 4)


def _shape(header: Any) -> tuple[int, ...]:
    """The lengths of i, j, k, t, c."""
    count, *dims = (int(n) for n in header["dim"])
    if not 1 <= count <= 7 or any(n < 1 for n in dims[:count]) or any(n > 1 for n in dims[5:count]):
        raise ValueError(f"dimensions {[count, *dims]}: one to five of at least 1 are expected")
    return (*dims[: min(count, 5)], *[1] * (5 - count))


def _orientation(nibabel: Any, header: Any, shape: tuple[int, ...]):
    """The affine in z, y, x after turning (or None), and the turns: (world axis, sign) of i, j, k.

    The sform counts before the qform; with neither, nothing is known and nothing is turned.
    """
    if header["sform_code"] > 0:
        affine = header.get_sform()
    elif header["qform_code"] > 0:
        affine = header.get_qform()
    else:
        return None, np.array([[0, 1], [1, 1], [2, 1]])
    affine[:3] = _millimetres(header, affine[:3])
    turns = nibabel.io_orientation(checked_affine(affine)).astype(int)
    turned = affine @ nibabel.orientations.inv_ornt_aff(turns, shape[:3])
    reverse = [2, 1, 0, 3]
    return checked_affine(turned[np.ix_(reverse, reverse)]), turns


def _millimetres(header: Any, values: np.ndarray) -> np.ndarray:
    unit = int(header["xyzt_units"]) % 8
    values = np.asarray(values, np.float64)
    return values * 1000 if unit == _METRE else values / 1000 if unit == _MICRON else values


def _sizes(shape: tuple[int, ...], turns: np.ndarray) -> dict[str, int]:
    sizes = {"xyz"[turns[i, 0]]: shape[i] for i in range(3)}
    return {**sizes, "t": shape[3], "c": shape[4]}


def _fields(
    nibabel: Any,
    header: Any,
    file: Any,
    offset: int,
    shape: tuple[int, ...],
    affine: np.ndarray | None,
    turns: np.ndarray,
) -> dict[str, Any]:
    """Axes, spacing, affine and the rest, for `Volume`."""
    sizes = _sizes(shape, turns)
    if affine is None:
        pixdim = _millimetres(header, header["pixdim"][1:4])
        known = (None if np.isinf(length) else float(length) for length in pixdim)
        spacing = dict(zip("xyz", known, strict=True))
    else:
        spacing = dict(zip("zyx", derived_spacing(affine, "zyx"), strict=True))
    fields = record.unpack(_comment(header, file, offset), sizes, spacing)
    if fields is not None:
        if not _same(fields.get("affine"), affine):
            fields["affine"] = affine
        return fields
    present = {"xyz"[turns[i, 0]] for i in range(min(3, int(header["dim"][0])))}
    axes = "".join(axis for axis in "tzyxc" if axis in present or sizes[axis] > 1)
    meta = {}
    if affine is not None:
        meta["orientation"] = "".join(nibabel.orientations.ornt2axcodes(turns))
    known = tuple(spacing[axis] for axis in axes if axis in "zyx")
    spacing = None if None in known else known
    return {"axes": axes, "spacing": spacing, "affine": affine, "meta": meta}


def _same(exact: np.ndarray | None, affine: np.ndarray | None) -> bool:
    """Whether two affines agree to float32; not only in spacing, which a flip would keep."""
    if exact is None or affine is None:
        return False
    return np.allclose(exact, affine, rtol=1e-5, atol=1e-5 * min(derived_spacing(affine, "zyx")))


def _comment(header: Any, file: Any, offset: int) -> str | None:
    """The first text extension, which may be a record."""
    start = int(header["sizeof_hdr"]) + 4
    file.seek(start - 4)
    raw = file.read(min(offset - start, 2**24) + 4)
    at = 4
    while raw[:1] != b"\0" and at + 8 <= len(raw):
        size, code = struct.unpack(f"{header.endianness}2i", raw[at : at + 8])
        if code == _COMMENT:
            return raw[at + 8 : at + size].rstrip(b"\0").decode("utf-8", "replace")
        at += max(size, 8)
    return None


def _mapped(file: Any, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> Reader:
    voxels = np.memmap(file, dtype, "r", offset, shape, "F")
    return lambda box: np.array(voxels[box], dtype.newbyteorder("="))


def _packed(file: Any, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> Reader:
    from nibabel.fileslice import fileslice

    lock = threading.RLock()

    def read(box: Box) -> np.ndarray:
        if tuple(lengths(box)) != shape:
            voxels = fileslice(file, box, shape, dtype, offset, order="F", lock=lock)
        else:
            voxels = np.empty(shape, dtype, "F")
            with lock:
                file.seek(offset)
                _fill(file, voxels.ravel("K").view(np.uint8))
                file.read(2**20)  # to the end of the file, where gzip compares its checksum
        return voxels.astype(dtype.newbyteorder("="), copy=False)

    return read


def _fill(file: Any, raw: np.ndarray) -> None:
    at = 0
    while at < raw.size:
        count = file.readinto(raw[at : at + 2**22])
        if count == 0:
            raise EOFError(f"{raw.size - at} bytes of voxels are missing")
        at += count


def _canonical(read: Reader, shape: tuple[int, ...], turns: np.ndarray) -> Reader:
    """From boxes of i, j, k, t, c to boxes of c, t, z, y, x, turned to RAS+."""
    order = [4, 3, *(int(np.argmax(turns[:, 0] == world)) for world in (2, 1, 0))]

    def fetch(box: Box) -> np.ndarray:
        sides, flips = [slice(0, 1, 1)] * 5, [slice(None)] * 5
        for i, side in zip(order, box, strict=True):
            sides[i] = side
            if i < 3 and turns[i, 1] < 0:
                last = range(side.start, side.stop, side.step)[-1]
                sides[i] = slice(shape[i] - 1 - last, shape[i] - side.start, side.step)
                flips[i] = slice(None, None, -1)
        return read(tuple(sides))[tuple(flips)].transpose(order)

    return fetch


def _scaled(read: Reader, slope: float, intercept: float, dtype: np.dtype) -> Reader:
    """Stored value times slope plus intercept, computed in float64 plane by plane."""

    def fetch(box: Box) -> np.ndarray:
        stored = read(box)
        scaled = np.empty(stored.shape, dtype)
        for at in np.ndindex(stored.shape[:3]):
            scaled[at] = stored[at] * np.float64(slope) + np.float64(intercept)
        return scaled

    return fetch


def write_nifti(
    temporary: Path, path: Path, volume: Volume, planes: Iterable[np.ndarray], compression: Any
) -> None:
    """Write the planes of a volume to `temporary`; gzipped if `path` ends in `.gz`.

    Exact in the header: voxels, and the affine and spacing to float32. A record in a text
    extension holds the other digits, names and `meta`.
    """
    nibabel = require("nibabel", "nifti")
    if compression is not None:
        raise ConfigError(
            str(path), f"compression={compression!r}", "None", "Name the file .nii.gz to pack it"
        )
    if volume.dtype not in _WRITABLE:
        fix = 'Convert it first, such as with .astype("float32") or .astype("int32")'
        raise UnsupportedError(
            str(path), f"dtype {volume.dtype}", f"one of {', '.join(_WRITABLE)}, or bool", fix
        )
    header = _new_header(nibabel, volume)
    with temporary.open("wb") as file:
        if path.suffix.lower() != ".gz":
            _put(file, header, volume, planes)
            return
        # no name and no time in it, so that equal volumes make equal files
        with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
            if "c" not in volume.axes:
                _put(packed, header, volume, planes)
            else:
                with tempfile.TemporaryFile(dir=temporary.parent) as plain:
                    _put(plain, header, volume, planes)
                    plain.seek(0)
                    shutil.copyfileobj(plain, packed, 2**20)


def _put(file: Any, header: Any, volume: Volume, planes: Iterable[np.ndarray]) -> None:
    header.write_to(file)
    start = file.tell()
    count = math.prod(n for n, axis in zip(volume.shape, volume.axes, strict=True) if axis in "tz")
    for number, plane in enumerate(planes):
        if "c" not in volume.axes:
            file.write(plane.data)
            continue
        for channel in range(plane.shape[-1]):  # NIfTI keeps the planes of each channel together
            part = np.ascontiguousarray(plane[..., channel])
            file.seek(start + (channel * count + number) * part.nbytes)
            file.write(part.data)


def _new_header(nibabel: Any, volume: Volume) -> Any:
    sizes = dict(zip(volume.axes, volume.shape, strict=True))
    shape = [sizes.get(axis, 1) for axis in "xyztc"]
    shape = shape[: 5 if "c" in sizes else 4 if "t" in sizes else 3]
    header = nibabel.Nifti1Header() if max(shape) < 2**15 else nibabel.Nifti2Header()
    header.set_data_shape(shape)
    header.set_data_dtype(volume.dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    if "c" in sizes:
        header.set_intent("vector")
    for axis, length in zip(volume.spatial_axes, volume.spacing or (), strict=False):
        header["pixdim"]["_xyz".index(axis)] = length
    if volume.spacing is not None:
        header.set_xyzt_units("mm")
    if volume.affine is not None:
        reverse = [2, 1, 0, 3]
        affine = volume.affine[np.ix_(reverse, reverse)]
        header.set_sform(affine, code="aligned")
        try:
            header.set_qform(affine, code="aligned", strip_shears=False)
        except nibabel.spatialimages.HeaderDataError:
            header["qform_code"] = 0  # a quaternion cannot hold the shear of this affine
    text = record.pack(volume).encode()
    header.extensions.append(nibabel.nifti1.Nifti1Extension(_COMMENT, text))
    return header
