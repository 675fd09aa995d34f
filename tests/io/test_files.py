"""Paths, extensions and streamed planes: what goes wrong leaves nothing behind."""

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import biojax.io
from biojax.errors import ConfigError, DependencyError, FileError, ShapeError, UnsupportedError
from biojax.io import Volume, open_volume, read_volume, write_planes, write_volume

FORMATS = [".ome.tif", ".tif", ".btf", ".nii", ".nii.gz"]
DATA = np.arange(2 * 3 * 4 * 5 * 2, dtype=np.uint16).reshape(2, 3, 4, 5, 2)


def test_the_package_exports_what_it_says():
    for name in biojax.io.__all__:
        assert hasattr(biojax.io, name)


def test_readers_are_imported_when_they_are_needed():
    code = "import sys, biojax.io; print([m for m in ('tifffile', 'nibabel') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("use", [read_volume, open_volume])
def test_wrong_paths(tmp_path, use):
    (tmp_path / "brain_t1.nii.gz").write_bytes(b"")
    with pytest.raises(FileError, match=r"Did you mean 'brain_t1\.nii\.gz'"):
        use(tmp_path / "brain_t2.nii.gz")
    with pytest.raises(FileError, match="got a folder"):
        use(tmp_path)
    with pytest.raises(FileError, match="missing or empty"):
        use(tmp_path / "nowhere" / "a.tif")
    (tmp_path / "a.tiif").write_bytes(b"")
    with pytest.raises(FileError, match=r"\.nii\.gz.*Did you mean '\.tif"):
        use(tmp_path / "a.tiif")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.tif")
        with pytest.raises(FileError, match="no regular file"):
            use(tmp_path / "pipe.tif")


def test_extensions_are_free_of_case(tmp_path):
    write_volume(tmp_path / "A.OME.TIF", Volume(DATA[0, 0], "yxc"))
    assert np.array_equal(read_volume(tmp_path / "A.OME.TIF").data, DATA[0, 0])


def test_writing_refuses_before_it_writes(tmp_path):
    volume = Volume(DATA[0, :, :, :, 0], "zyx")
    with pytest.raises(FileError, match=r"extension '\.png'.*one of"):
        write_volume(tmp_path / "a.png", volume)
    with pytest.raises(FileError, match="does not exist"):
        write_volume(tmp_path / "no" / "a.tif", volume)
    with pytest.raises(ConfigError, match="Did you mean 'zlib'"):
        write_volume(tmp_path / "a.tif", volume, compression="zlip")
    with pytest.raises(ConfigError, match=r"\.nii\.gz to pack"):
        write_volume(tmp_path / "a.nii", volume, compression="zlib")
    with pytest.raises(ShapeError, match="y and x"):
        write_volume(tmp_path / "a.tif", Volume(DATA[0, 0, 0], "xc"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "float16", "complex64"])
def test_dtypes_are_not_cast_in_silence(tmp_path, dtype):
    volume = Volume(np.zeros((2, 3), dtype), "yx")
    for name in ("a.tif", "a.ome.tif") + (() if dtype == "float64" else ("a.nii", "a.nii.gz")):
        with pytest.raises(UnsupportedError, match=rf"dtype {dtype}.*astype"):
            write_volume(tmp_path / name, volume)
    assert list(tmp_path.iterdir()) == []


def test_a_codec_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("biojax.io.tiff_pages.has_codecs", lambda: False)
    monkeypatch.setattr("biojax.io.tiff.has_codecs", lambda: False)
    for compression in ("lzw", "zstd"):
        with pytest.raises(DependencyError, match=r'a\.tif.*pip install "biojax\[codecs\]"'):
            write_volume(tmp_path / "a.tif", Volume(DATA[0, 0], "yxc"), compression=compression)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    (tmp_path / "a.nii").write_bytes(b"")
    with pytest.raises(DependencyError, match=r"biojax\[nifti\]"):
        read_volume(tmp_path / "a.nii")
    with pytest.raises(DependencyError, match=r"biojax\[nifti\]"):
        write_volume(tmp_path / "b.nii", Volume(DATA[0, 0], "yxc"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


@pytest.mark.parametrize("extension", FORMATS)
def test_nothing_is_overwritten_unasked(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    path.write_bytes(b"precious")
    volume = Volume(DATA[0, 0], "yxc")
    with pytest.raises(FileError, match="overwrite=True"):
        write_volume(path, volume)
    assert path.read_bytes() == b"precious"
    write_volume(path, volume, overwrite=True)
    assert np.array_equal(read_volume(path).data, DATA[0, 0])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("axes", ["tzyxc", "tzyx", "zyxc", "tyx", "yx", "yxc"])
def test_planes(tmp_path, extension, axes, compression):
    data = DATA[tuple(slice(None) if axis in axes else 0 for axis in "tzyxc")]
    leading = len(set(axes) & set("tz"))
    planes = data.reshape(-1, *data.shape[leading:])
    path = tmp_path / f"a{extension}"
    write_planes(
        path,
        iter(planes),
        shape=data.shape,
        dtype="uint16",
        axes=axes,
        spacing=(3, 2, 1)[-len(set(axes) & set("zyx")) :],
        meta={"model": "unet"},
        compression=None if ".nii" in extension else compression,
    )
    read = read_volume(path)
    assert (read.axes, read.meta) == (axes, {"model": "unet"})
    assert np.array_equal(read.data, data)


def test_an_iterator_may_use_its_buffer_again(tmp_path):
    def planes():
        buffer = np.empty((4, 5), np.uint8)
        for z in range(50):
            buffer[:] = z
            yield buffer

    path = tmp_path / "a.ome.tif"
    write_planes(path, planes(), shape=(50, 4, 5), dtype="uint8", axes="zyx", compression="zlib")
    assert np.array_equal(np.asarray(read_volume(path).data)[:, 0, 0], np.arange(50))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize(
    ("planes", "text"),
    [
        ([np.zeros((4, 5), np.uint8)] * 2, "2 planes"),
        ([np.zeros((4, 5), np.uint8)] * 4, "more than 3 planes"),
        ([np.zeros((5, 4), np.uint8)] * 3, r"plane 0 of \(5, 4\) uint8"),
        ([np.zeros((4, 5), np.uint8), np.zeros((4, 5))] * 2, "plane 1 of .* float64"),
    ],
)
def test_wrong_planes_leave_nothing(tmp_path, extension, planes, text, compression):
    if ".nii" in extension:
        compression = None
    with pytest.raises(ShapeError, match=text):
        write_planes(
            tmp_path / f"a{extension}",
            planes,
            shape=(3, 4, 5),
            dtype="uint8",
            axes="zyx",
            compression=compression,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", FORMATS)
def test_an_iterator_that_fails_leaves_the_old_file(tmp_path, extension):
    def planes():
        yield np.zeros((4, 5), np.uint8)
        raise ArithmeticError("the model diverged")

    path = tmp_path / f"a{extension}"
    path.write_bytes(b"old")
    with pytest.raises(ArithmeticError, match="diverged"):
        write_planes(path, planes(), shape=(3, 4, 5), dtype="uint8", axes="zyx", overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "compression"), [("a.ome.tif", None), ("a.ome.tif", "zlib"), ("a.nii", None)]
)
def test_streaming_holds_few_planes(tmp_path, name, compression):
    shape = (160, 512, 512)  # 80 MiB
    plane = np.zeros(shape[1:], np.uint16)
    tracemalloc.start()
    try:
        write_planes(
            tmp_path / name,
            (plane for _ in range(shape[0])),
            shape=shape,
            dtype="uint16",
            axes="zyx",
            compression=compression,
        )
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="only POSIX can limit the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    volume = Volume(np.random.default_rng(0).integers(0, 255, (64, 64, 64), np.uint8), "zyx")
    for name in ("a.ome.tif", "a.tif", "a.nii", "a.nii.gz"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(FileError, match=r"while writing.*Free space"):
                write_volume(tmp_path / name, volume)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
