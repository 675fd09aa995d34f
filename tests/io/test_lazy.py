"""Slices of files read what they need, and give what numpy would give."""

import gzip
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from biojax.errors import FileError, ShapeError
from biojax.io import LazyVolume, Volume, open_volume, read_volume, write_volume
from biojax.io.lazy import LazyArray

SHAPE = (3, 4, 5, 6)
DATA = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
FORMATS = ["a.ome.tif", "zlib.ome.tif", "a.btf", "a.nii", "a.nii.gz"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lazy")
    for name in FORMATS:
        compression = "zlib" if name.startswith("zlib") else None
        write_volume(folder / name, Volume(DATA, "tzyx"), compression=compression)
    tifffile.imwrite(
        folder / "tiled.tif",
        np.tile(DATA, (1, 1, 8, 9)),
        tile=(16, 32),
        compression="zlib",
        photometric="minisblack",
        metadata={"axes": "TZYX"},
    )
    return folder


def _sides(n: int):
    bound = st.none() | st.integers(-n - 1, n + 1)
    steps = st.sampled_from([None, 1, 2, -1, -2])
    return st.integers(-n, n - 1) | st.builds(slice, bound, bound, steps)


@given(st.tuples(*map(_sides, SHAPE)), st.integers(0, 4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_slices_are_those_of_numpy(written, index, length, ellipsis):
    index = (*index[:length], ...) if ellipsis else index[:length]
    for name in FORMATS:
        with open_volume(written / name) as volume:
            got = volume[index]
        assert np.array_equal(got, DATA[index])
        assert got.dtype == DATA.dtype
        assert got.shape == DATA[index].shape


@given(st.tuples(*map(_sides, (3, 4, 40, 54))))
@settings(max_examples=40, deadline=None)
def test_slices_of_tiles(written, index):
    with open_volume(written / "tiled.tif") as volume:
        assert np.array_equal(volume[index], np.tile(DATA, (1, 1, 8, 9))[index])


def test_everything_but_the_pixels_is_known_at_once(tmp_path):
    path = tmp_path / "a.ome.tif"
    volume = Volume(DATA, "zyxc", spacing=(3, 2, 1), channels=list("abcdef"), meta={"a": 1})
    write_volume(path, volume)
    with open_volume(path) as lazy:
        assert isinstance(lazy, LazyVolume)
        assert (lazy.shape, lazy.dtype, lazy.axes) == (SHAPE, np.int16, "zyxc")
        assert (lazy.spacing, lazy.channels, lazy.meta) == ((3, 2, 1), tuple("abcdef"), {"a": 1})
        assert repr(lazy).startswith("LazyVolume(zyxc (3, 4, 5, 6) int16, spacing")
        assert np.array_equal(lazy.model_array(), DATA)
        assert np.array_equal(np.stack(list(lazy)), DATA)
        assert np.array_equal(np.asarray(lazy.data), DATA)
        whole = lazy.read()
    assert type(whole) is Volume
    assert np.asarray(whole.data).flags.writeable
    with pytest.raises(FileError, match="closed"):
        lazy[0]


@pytest.mark.parametrize(
    "index", [3, -4, (0, 0, 0, 0, 0), (..., ...), [0, 1], None, 1.5, True, "a"]
)
def test_other_indices_are_refused(written, index):
    with (
        open_volume(written / "a.nii") as volume,
        pytest.raises(ShapeError, match="integers within"),
    ):
        volume[index]


def _spoil(path, page: int) -> None:
    """Overwrite the compressed pixels of one page."""
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[page].dataoffsets[0], file.pages[page].databytecounts[0]
    raw = bytearray(path.read_bytes())
    raw[start : start + count] = b"\xff" * count
    path.write_bytes(raw)


def test_a_damaged_page_hurts_only_itself(tmp_path):
    path = tmp_path / "a.ome.tif"
    data = np.arange(6 * 32 * 32, dtype=np.uint16).reshape(6, 32, 32)
    write_volume(path, Volume(data, "zyx"), compression="zlib")
    _spoil(path, 4)
    with open_volume(path) as volume:
        assert np.array_equal(volume[:4], data[:4])
        assert np.array_equal(volume[5], data[5])
        with pytest.raises(FileError, match=r"a\.ome\.tif, page 4: "):
            volume[3:]


def test_only_the_tiles_of_the_box_are_unpacked(tmp_path):
    path = tmp_path / "a.tif"
    data = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    tifffile.imwrite(path, data, tile=(16, 16), compression="zlib")
    _spoil(path, 0)  # its first tile
    with open_volume(path) as volume:
        assert np.array_equal(volume[16:, 3:60:7], data[16:, 3:60:7])
        assert np.array_equal(volume[:16, 16:], data[:16, 16:])
        with pytest.raises(FileError, match="page 0"):
            volume[:1, 15:17]


def test_the_start_of_a_cut_gzip_can_be_read(tmp_path):
    path = tmp_path / "a.nii.gz"
    data = np.random.default_rng(0).integers(0, 255, (20, 64, 64), np.uint8)
    write_volume(path, Volume(data, "zyx"))
    path.write_bytes(path.read_bytes()[:50_000])
    with open_volume(path) as volume:
        assert np.array_equal(volume[3:6], data[3:6])
        with pytest.raises(FileError, match="end-of-stream"):
            volume[15]
    with pytest.raises(FileError, match="end-of-stream"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.btf", "a.nii"])
def test_a_large_file_is_mapped(tmp_path, name):
    """A file of 6 GiB, most of it a hole: slices cost their own size alone."""
    path, shape = tmp_path / name, (3000, 1024, 1024)
    if name == "a.btf":
        tifffile.imwrite(path, shape=shape, dtype=np.uint16, bigtiff=True, metadata={"axes": "ZYX"})
    else:
        write_volume(path, Volume(np.zeros((1, 1, 1), np.uint16), "zyx"))
        raw = bytearray(path.read_bytes()[:352])
        raw[42:48] = np.array(shape[::-1], "<i2").tobytes()
        raw[108:112] = np.array(352, "<f4").tobytes()
        raw[348:352] = bytes(4)
        with path.open("wb") as file:
            file.write(raw)
            file.truncate(352 + 2 * int(np.prod(shape)))
    with open_volume(path) as volume:
        assert volume.shape == shape
        tracemalloc.start()
        try:
            assert volume[2000:2010, ::64, 5:9].shape == (10, 16, 4)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()
        with pytest.raises(FileError, match=r"5\.859 GiB.*at most 1 GiB"):
            volume.read(max_bytes=2**30)


def test_reading_from_threads(written):
    for name in ("zlib.ome.tif", "a.nii.gz"):
        with open_volume(written / name) as volume, ThreadPoolExecutor(4) as pool:
            planes = list(pool.map(lambda i: volume[i % 3, i % 4], range(24)))
        assert all(np.array_equal(plane, DATA[i % 3, i % 4]) for i, plane in enumerate(planes))


def test_bytes_are_counted_in_whole_numbers():
    huge = LazyArray("a", (2**40, 2**40), np.float64, lambda box: np.zeros(0))
    assert huge.nbytes == 2**83
    with pytest.raises(FileError, match="GiB"):
        huge.read()


def test_the_gzip_checksum_is_compared(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_volume(path, Volume(DATA, "tzyx"))
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(bytes(raw))
    with pytest.raises(FileError, match="CRC"):
        read_volume(path)
