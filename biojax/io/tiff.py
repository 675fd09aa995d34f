"""TIFF: OME-TIFF, ImageJ hyperstacks, plain and multi-page files, BigTIFF; through tifffile."""

import contextlib
import logging
import math
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from biojax.errors import ConfigError, FileError, ShapeError, UnsupportedError, nearest
from biojax.io import record
from biojax.io.lazy import LazyArray, LazyVolume, rearranged
from biojax.io.reading import telling
from biojax.io.tiff_metadata import (
    RGB,
    check_ome,
    describe,
    imagej_options,
    ome_options,
    resolution,
)
from biojax.io.tiff_pages import check_codec, has_codecs, no_codec, page_reader
from biojax.io.volume import Volume

if TYPE_CHECKING:
    import tifffile

__all__ = ["open_tiff", "write_tiff"]

_WRITABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
_IMAGEJ = ("uint8", "uint16", "float32")
_COMPRESSIONS = ("zlib", "lzw", "zstd")
_CHAINED = ("ome", "imagej", "shaped", "uniform", "generic")
_CLASSIC_BYTES = 2**32
_RATIO = {1: 1, 8: 1032, 32946: 1032, 32773: 64}  # the most that a byte can unpack to


def open_tiff(path: Path, axes: str | None = None) -> LazyVolume:
    """Open a TIFF; see `biojax.io.open_volume`."""
    import tifffile

    with contextlib.ExitStack() as stack, _quiet(), telling(str(path), "TIFF"):
        file = stack.enter_context(tifffile.TiffFile(path))
        file.filehandle.set_lock(True)
        check_ome(str(path), file)
        series = _only_series(path, file)
        _check_pages(path, file, series)
        stored = _stored_axes(path, series, axes)
        fields = _fields(file, series, stored, own_axes=axes is None)
        sizes = dict(zip(stored, series.get_shape(squeeze=True), strict=True))
        shape = tuple(sizes.get(axis, 1) for axis in fields["axes"])
        fetch = rearranged(page_reader(str(path), series), stored, fields["axes"])
        data = LazyArray(str(path), shape, series.dtype, fetch, file.close)
        volume = LazyVolume(data, source=str(path), **fields)
        stack.pop_all()  # the volume closes the file from here on
    return volume


def _fields(
    file: "tifffile.TiffFile", series: "tifffile.TiffPageSeries", stored: str, own_axes: bool
) -> dict[str, Any]:
    """Axes, spacing, channels and the rest: from a record of ours, else from the file's fields."""
    found = describe(file, series)
    sizes = dict(zip(stored, series.get_shape(squeeze=True), strict=True))
    if own_axes:
        fields = record.unpack(found["record"], sizes, found["spacing"])
        if fields is not None:
            return fields
    axes = "".join(axis for axis in "tzyxc" if axis in stored)
    known = {axis: found["spacing"].get(axis) for axis in axes if axis in "zyx"}
    fields = {"axes": axes, "spacing": tuple(known.values()), "meta": found["meta"]}
    if None in known.values():
        fields["spacing"] = None
        known = {axis: length for axis, length in known.items() if length is not None}
        fields["meta"] |= {"known_spacing": known} if known else {}
    if len(found["channels"] or ()) == sizes.get("c", 1):
        fields["channels"] = found["channels"]
    return fields


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the console what tifffile logs in this thread: our error will say it."""
    thread, log = threading.get_ident(), logging.getLogger("tifffile")

    def elsewhere(entry: logging.LogRecord) -> bool:
        return entry.thread != thread

    log.addFilter(elsewhere)
    try:
        yield
    finally:
        log.removeFilter(elsewhere)


def _only_series(path: Path, file: "tifffile.TiffFile") -> "tifffile.TiffPageSeries":
    """The one image in the file; thumbnails and the lower levels of a pyramid do not count."""
    images = [series for series in file.series if not series.keyframe.is_reduced]
    if len(images) == 1:
        return images[0]
    listed = ", ".join(f"{s.axes} {s.shape} {s.dtype}" for s in images[:8])
    raise FileError(
        str(path),
        f"{len(images)} images ({listed})" if images else "no image",
        "one image, with or without thumbnails and pyramid levels",
        "Save the one you need in a file of its own",
    )


def _check_pages(path: Path, file: "tifffile.TiffFile", series: "tifffile.TiffPageSeries") -> None:
    """Refuse what cannot be read whole, before anything is allocated for it."""
    page, shape, size = series.keyframe, series.get_shape(squeeze=True), file.filehandle.size
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8
    claimed = math.prod(shape) * bits // 8
    if series.is_multifile or series.transform is not None or page.dtype is None:
        got = "an image that spans several files, or pixels of an unknown type"
    elif shape[-len(page.shape) :] != page.shape or not set(page.axes) <= set("ZYXS"):
        got = f"an image of shape {shape} in pages of shape {page.shape}"
    elif claimed > size * _RATIO.get(int(page.compression), 2**15):
        got = f"a header for {claimed} bytes of pixels in a file of {size} bytes"
    elif series.dataoffset is None and (
        len(series) * math.prod(page.shape) != math.prod(shape) or any(p is None for p in series)
    ):
        got = f"an image of shape {shape} of which pages are missing"
    elif series.kind in _CHAINED and _next_page(file):
        got = f"a chain of pages that breaks off after page {len(file.pages) - 1}"
    elif series.kind in _CHAINED and _tags_are_cut(file):
        got = "metadata that lie beyond the end of the file"
    else:
        return check_codec(str(path), page)
    raise FileError(
        str(path),
        got,
        "a TIFF that holds the whole of its image",
        "The file is damaged, cut short or of an unusual layout: save it again",
    )


def _next_page(file: "tifffile.TiffFile") -> int:
    """Where the last page that was found says that the next one is: 0 at a proper end."""
    file.filehandle.seek(file.pages.next_page_offset or 0)
    return struct.unpack(file.tiff.offsetformat, file.filehandle.read(file.tiff.offsetsize))[0]


def _tags_are_cut(file: "tifffile.TiffFile") -> bool:
    """Whether a tag of the first page has its value beyond the end; tifffile leaves such tags out.

    They matter, since OME-XML is often the last thing in a file.
    """
    import tifffile

    tiff, handle = file.tiff, file.filehandle
    handle.seek(file.pages.first.offset)
    count = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))[0]
    entries = handle.read(count * tiff.tagsize)
    for _, kind, number, value in struct.iter_unpack(tiff.tagheaderformat, entries):
        size = number * struct.calcsize(tifffile.TIFF.DATA_FORMATS.get(kind, "0s"))
        start = struct.unpack(tiff.offsetformat, value)[0] if size > len(value) else 0
        if start + size > handle.size:
            return True
    return False


def _stored_axes(path: Path, series: "tifffile.TiffPageSeries", axes: str | None) -> str:
    """The axes of the file's own array in our letters, as the file or the caller names them."""
    shape, own = series.get_shape(squeeze=True), series.get_axes(squeeze=True)
    stored = (axes or own).lower().replace("s", "c")
    if len(stored) == len(shape) == len(set(stored)) and set(stored) <= set("tzyxc"):
        return stored
    ordered = stored if axes is None else own.lower().replace("s", "c")
    unknown = [axis for axis in ordered if axis not in "tzyxc"]
    free = [axis for axis in "ztc" if axis not in ordered and len(unknown) == 1]
    example = " or ".join(f"axes={ordered.replace(unknown[0], axis)!r}" for axis in free)
    raise ShapeError(
        str(path),
        f"axes={axes!r} for an image of shape {shape}"
        if axes
        else f"an image of shape {shape} whose axes the file does not name ({own})",
        f"{len(shape)} letters of 'tzyxc' that name the axes in the order of the file, each once",
        f"Pass {example}" if example else "Pass axes= with one letter for each length",
    )


def write_tiff(
    temporary: Path, path: Path, volume: Volume, planes: Iterable[np.ndarray], compression: Any
) -> None:
    """Write the planes of a volume to `temporary`, in the dialect that `path` asks for.

    `.ome.tif`, `.ome.tiff` and `.btf` are OME-TIFF; `.tif` and `.tiff` are an ImageJ hyperstack
    where one can hold the volume, else OME-TIFF.
    """
    import tifffile

    _check_writable(path, volume, compression)
    sizes = dict(zip(volume.axes, volume.shape, strict=True))
    samples = volume.channels in (RGB, (*RGB, "alpha")) and volume.dtype in ("uint8", "uint16")
    leading = "".join(axis for axis in volume.axes if axis in "tz")
    stored = leading + ("yxc" if samples else "cyx" if "c" in sizes else "yx")
    shape = tuple(sizes[axis] for axis in stored)
    letters = (stored.replace("c", "s") if samples else stored).upper()
    # a page takes a few hundred bytes beside its pixels, and LZW may swell by half
    need = math.prod(shape) * volume.dtype.itemsize * (1.5 if compression else 1)
    need += 1024 * math.prod(shape[:-2]) + 2**24
    bigtiff = need > _CLASSIC_BYTES or path.suffix.lower() == ".btf"
    imagej = not bigtiff and _fits_imagej(path, volume, samples)
    options = imagej_options(volume, letters) if imagej else ome_options(volume, letters)
    with tifffile.TiffWriter(temporary, bigtiff=bigtiff, imagej=imagej, ome=not imagej) as writer:
        writer.write(
            _pages(planes, stored),
            shape=shape,
            dtype=volume.dtype,
            photometric="rgb" if samples else "minisblack",
            compression=compression,
            buffersize=2**24,
            **options,
        )


def _pages(planes: Iterable[np.ndarray], stored: str) -> Iterator[np.ndarray]:
    for plane in planes:
        if stored.endswith("cyx"):
            yield from np.ascontiguousarray(np.moveaxis(plane, -1, 0))
        else:
            yield plane


def _fits_imagej(path: Path, volume: Volume, samples: bool) -> bool:
    plain = not any(suffix.lower() == ".ome" for suffix in path.suffixes[-2:])
    spacing = all(resolution(length) for length in volume.spacing or ())
    return plain and spacing and volume.dtype in (("uint8",) if samples else _IMAGEJ)


def _check_writable(path: Path, volume: Volume, compression: Any) -> None:
    if volume.dtype not in _WRITABLE:
        fix = 'Convert it first, such as with .astype("float32") or .astype("uint16")'
        raise UnsupportedError(
            str(path), f"dtype {volume.dtype}", f"one of {', '.join(_WRITABLE)}, or bool", fix
        )
    if not {"y", "x"} <= set(volume.axes):
        raise ShapeError(
            str(path), f"axes {volume.axes!r}", "an image with y and x", "Save it as .nii instead"
        )
    if compression is not None and compression not in _COMPRESSIONS:
        raise ConfigError(
            str(path),
            f"compression={compression!r}",
            f"None or one of {', '.join(_COMPRESSIONS)}, which lose nothing",
            "Choose one of these",
            nearest(str(compression), _COMPRESSIONS),
        )
    if compression not in (None, "zlib") and not has_codecs():
        raise no_codec(str(path), f"compression={compression!r}")
