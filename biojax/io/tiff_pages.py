"""Boxes of TIFF pages, reading only the strips and tiles that they touch."""

import importlib.util
import itertools
import math
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from biojax.errors import BiojaxError, DependencyError, FileError
from biojax.io.lazy import Box, lengths

if TYPE_CHECKING:
    import tifffile

__all__ = ["check_codec", "has_codecs", "no_codec", "page_reader"]

_DEFLATE = (8, 32946)
_JPEG = (6, 7, 34892, 33007)
_BUILT_IN = (1, 32773, *_DEFLATE)
_TILE = 2**24  # pixels that a tile may have even if its page is smaller


def has_codecs() -> bool:
    """Whether imagecodecs is there, which tifffile needs for all but deflate and PackBits."""
    return importlib.util.find_spec("imagecodecs") is not None


def check_codec(path: str, page: "tifffile.TiffPage") -> None:
    """Refuse a compression that only imagecodecs can unpack where it is not installed."""
    if page.compression not in _BUILT_IN and not has_codecs():
        name = getattr(page.compression, "name", page.compression)
        raise no_codec(path, f"pages compressed with {name}")


def page_reader(path: str, series: "tifffile.TiffPageSeries") -> Callable[[Box], np.ndarray]:
    """A function that reads a box of a series, given in the order of the file's squeezed axes."""
    page = series.keyframe
    leading = series.get_shape(squeeze=True)[: -len(page.shape)]
    read = _mapped(path, series) if page.is_final else _unpacked(path, series)

    def fetch(box: Box) -> np.ndarray:
        outer, inner = box[: len(leading)], box[len(leading) :]
        numbers = np.arange(math.prod(leading)).reshape(leading)[outer].ravel()
        return read([int(i) for i in numbers], _normal(page, inner)).reshape(lengths(box))

    return fetch


def _normal(page: "tifffile.TiffPage", box: Box) -> Box:
    """The box in tifffile's five axes: separate samples, depth, length, width, samples."""
    samples = 0 if page.planarconfig == 2 else 4
    sides = [slice(0, 1, 1)] * 5
    for letter, side in zip(page.axes, box, strict=True):
        sides[{"Z": 1, "Y": 2, "X": 3, "S": samples}[letter]] = side
    return tuple(sides)


def _mapped(path: str, series: "tifffile.TiffPageSeries"):
    """Read uncompressed pages through a memory map of the file."""
    page, file = series.keyframe, series.keyframe.parent
    raw = file.filehandle.memmap_array(np.uint8, (file.filehandle.size,))
    stored = series.dtype.newbyteorder(file.byteorder)

    def read(numbers: list[int], box: Box) -> np.ndarray:
        result = np.empty([len(numbers), *lengths(box)], series.dtype)
        for k, i in enumerate(numbers):
            start = series.dataoffset
            start = _page(series, i).dataoffsets[0] if start is None else start + i * page.nbytes
            pixels = raw[start : start + page.nbytes]
            if start < 8 or pixels.size != page.nbytes:
                raise _damaged(path, i, "pixels beyond the end of the file")
            result[k] = pixels.view(stored).reshape(page.shaped)[box]
        return result

    return read


def _unpacked(path: str, series: "tifffile.TiffPageSeries"):
    """Read compressed, tiled or packed pages, several strips or tiles at a time."""
    page = series.keyframe
    tiled = page.is_tiled
    chunk = (
        1,
        page.tiledepth if tiled else 1,
        page.tilelength if tiled else page.rowsperstrip,
        page.tilewidth if tiled else page.imagewidth,
    )
    if math.prod(chunk) > max(page.imagedepth * page.imagelength * page.imagewidth, _TILE):
        raise _damaged(path, 0, f"tiles of {chunk[1:]} pixels, far larger than the page")
    grid = [-(-n // size) for n, size in zip(page.shaped[:4], chunk, strict=True)]
    contiguous = page.samplesperpixel if page.planarconfig == 1 else 1
    # some writers pad the last strip, so twice a chunk is still in order
    limit = 2 * math.prod(chunk) * contiguous * series.dtype.itemsize + 2**16

    def read(numbers: list[int], box: Box) -> np.ndarray:
        low, high = [side.start for side in box], [side.stop for side in box]
        result = np.empty(
            [len(numbers), *(b - a for a, b in zip(low, high, strict=True))], series.dtype
        )
        page.init_decode()  # not safe to build in a thread

        def paste(job: tuple[int, int]) -> None:
            k, segment = job
            data, at = _segment(path, series, numbers[k], segment, limit)
            inside = [
                (max(p, a), min(p + n, b))
                for p, n, a, b in zip(at, data.shape, low, high, strict=True)
            ]
            taken = tuple(slice(a - p, b - p) for p, (a, b) in zip(at, inside, strict=True))
            put = tuple(slice(a - p, b - p) for p, (a, b) in zip(low, inside, strict=True))
            result[(k, *put)] = data[taken]

        touched = [
            range(a // size, (b - 1) // size + 1)
            for a, b, size in zip(low, high, chunk, strict=False)
        ]
        segments = np.ravel_multi_index(np.ix_(*touched), grid).ravel().tolist()
        jobs = list(itertools.product(range(len(numbers)), segments))
        if len(jobs) == 1:
            paste(jobs[0])
        else:
            with ThreadPoolExecutor(min(os.cpu_count() or 1, len(jobs))) as pool:
                list(pool.map(paste, jobs))
        steps = tuple(slice(None, None, side.step) for side in box)
        return result[(slice(None), *steps)]

    return read


def _segment(path: str, series: "tifffile.TiffPageSeries", number: int, index: int, limit: int):
    """One strip or tile as a five-axis array, and where it lies in the page."""
    key = series.keyframe
    try:
        page = _page(series, number)
        start, count = page.dataoffsets[index], page.databytecounts[index]
        handle = key.parent.filehandle
        if start < 8 or not 0 < count <= limit or start + count > handle.size:
            raise ValueError(f"part {index} lies at byte {start} with {count} bytes")
        with handle.lock:
            handle.seek(start)
            data = handle.read(count)
        if key.compression in _DEFLATE:
            data = _bounded(data, limit)
        tables = {}
        if key.compression in _JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
        pixels, at, _ = key.decode(data, index, **tables)
        return np.asarray(pixels)[None], at
    except BiojaxError:
        raise
    except Exception as error:  # a hostile file can make any decoder fail in any way
        if "imagecodecs" in str(error):
            raise no_codec(path, str(error)) from error
        raise _damaged(path, number, str(error)) from error


def _page(series: "tifffile.TiffPageSeries", number: int):
    page = series[number]
    if page is None:
        raise ValueError("missing page")
    return page


def _bounded(data: bytes, limit: int) -> bytes:
    """Deflated data as deflate that stores without compressing, if it unpacks to `limit` bytes.

    tifffile unpacks without a bound; what it gets from here cannot grow.
    """
    inflate = zlib.decompressobj()
    raw = inflate.decompress(data, limit)
    if not inflate.eof:
        raise ValueError(
            f"deflated data that unpack to more than {limit} bytes"
            if len(raw) == limit
            else "deflated data that end too early"
        )
    return zlib.compress(raw, 0)


def _damaged(path: str, number: int, what: str) -> FileError:
    return FileError(
        f"{path}, page {number}",
        f"'{what}'",
        "whole pixel data",
        "The file is damaged or cut short: copy it again from its source",
    )


def no_codec(path: str, what: str) -> DependencyError:
    """The error for what only imagecodecs can do."""
    return DependencyError(
        path,
        what,
        "the package imagecodecs to be installed",
        'Install it with: pip install "biojax[codecs]"',
    )
