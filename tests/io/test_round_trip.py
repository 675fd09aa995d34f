"""What is written is read back: voxels, axes, spacing, affine, names and meta, in every format."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biojax.io import Volume, open_volume, read_volume, write_volume

SIZES = {"t": 2, "z": 3, "y": 5, "x": 7, "c": 4}
AXES = ["yx", "zyx", "yxc", "zyxc", "tyx", "tzyx", "tyxc", "tzyxc"]
FORMATS = [".ome.tif", ".tif", ".btf", ".nii", ".nii.gz"]
DTYPES = ["uint8", "uint16", "int16", "float32", "int8", "uint32", "int32"]
META = {"note": "a µm\n", "list": [1, 2.5, {"deep": None}]}


def _voxels(shape, dtype, seed=0) -> np.ndarray:
    key = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return key.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return key.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def check_same(read: Volume, written: Volume) -> None:
    assert read.axes == written.axes
    assert read.spacing == written.spacing
    assert read.channels == written.channels
    assert read.modality == written.modality
    assert read.meta == written.meta
    assert (read.affine is None) == (written.affine is None)
    if written.affine is not None and read.affine is not None:
        assert np.array_equal(read.affine, written.affine)
    assert read.dtype == written.dtype.newbyteorder("=")
    assert np.array_equal(read.data, written.data)


@pytest.mark.parametrize("length", ["full", "one"])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("extension", FORMATS)
def test_every_axes_and_dtype(tmp_path, extension, axes, length):
    shape = tuple(1 if length == "one" and axis in "tzc" else SIZES[axis] for axis in axes)
    names = [f"channel é{i}" for i in range(shape[-1])] if axes.endswith("c") else None
    spacing = tuple((0.1, 0.0003, 1 / 3)[: len(set(axes) & set("zyx"))])
    for number, dtype in enumerate(DTYPES):
        volume = Volume(
            _voxels(shape, dtype),
            axes,
            spacing=spacing,
            channels=names,
            modality="CT",
            meta=META,
        )
        path = tmp_path / f"{number}{extension}"
        zlib = "zlib" if number % 2 and ".nii" not in extension else None
        write_volume(path, volume, compression=zlib)
        check_same(read_volume(path), volume)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("extension", FORMATS)
def test_what_is_not_known_stays_so(tmp_path, extension, plain):
    data = _voxels((3, 5, 7), "uint8" if plain else "int16")
    write_volume(tmp_path / f"a{extension}", Volume(data, "zyx"))
    check_same(read_volume(tmp_path / f"a{extension}"), Volume(data, "zyx"))


@pytest.mark.parametrize("extension", FORMATS)
def test_affine_and_one_name(tmp_path, extension):
    affine = np.eye(4)
    affine[:3, :3] = [[2.5, 0.1, 0], [-0.1, 0.7, 0.01], [0, 0, 1 / 3]]  # RAS+, sheared
    affine[:3, 3] = [-100.1, 1 / 7, 1e4]
    volume = Volume(_voxels((3, 5, 7), "uint16"), "zyx", affine=affine, channels=["DAPI"])
    write_volume(tmp_path / f"a{extension}", volume)
    check_same(read_volume(tmp_path / f"a{extension}"), volume)


@pytest.mark.parametrize("extension", [".ome.tif", ".tif", ".btf", ".nii"])
@pytest.mark.parametrize("axes", ["yxc", "zyxc", "tzyxc"])
@pytest.mark.parametrize("names", ["red green blue", "red green blue alpha"])
def test_rgb(tmp_path, extension, axes, names):
    names = names.split()
    for dtype in ("uint8", "uint16", "float32"):
        shape = [len(names) if axis == "c" else SIZES[axis] for axis in axes]
        volume = Volume(_voxels(shape, dtype), axes, channels=names)
        write_volume(tmp_path / f"{dtype}{extension}", volume)
        check_same(read_volume(tmp_path / f"{dtype}{extension}"), volume)


lengths = st.floats(1e-9, 1e6) | st.sampled_from([0.1, 1 / 3, 0.000325, 0.957, 5.0])


@pytest.mark.parametrize("extension", [".ome.tif", ".tif", ".nii"])
@given(spacing=st.tuples(lengths, lengths, lengths))
@settings(max_examples=15, deadline=None)
def test_spacing_is_exact(tmp_path_factory, extension, spacing):
    path = tmp_path_factory.mktemp("spacing") / f"a{extension}"
    write_volume(path, Volume(np.zeros((2, 2, 2), np.uint8), "zyx", spacing=spacing))
    with open_volume(path) as volume:
        assert volume.spacing == spacing


@pytest.mark.parametrize("extension", FORMATS)
def test_bool_is_written_as_uint8(tmp_path, extension):
    mask = _voxels((3, 5, 7), "uint8") > 100
    write_volume(tmp_path / f"a{extension}", Volume(mask, "zyx"))
    read = read_volume(tmp_path / f"a{extension}")
    assert read.dtype == np.uint8
    assert np.array_equal(read.data, mask.astype(np.uint8))


@pytest.mark.parametrize("extension", FORMATS)
def test_other_layouts_of_memory(tmp_path, extension):
    data = _voxels((6, 5, 7), "int16")
    for number, same in enumerate((data.astype(">i2"), np.asfortranarray(data), jnp.asarray(data))):
        write_volume(tmp_path / f"{number}{extension}", Volume(same, "zyx"))
        check_same(read_volume(tmp_path / f"{number}{extension}"), Volume(data, "zyx"))
    write_volume(tmp_path / f"turned{extension}", Volume(data[::-2, :, ::-1], "zyx"))
    check_same(read_volume(tmp_path / f"turned{extension}"), Volume(data[::-2, :, ::-1], "zyx"))


@pytest.mark.parametrize("extension", FORMATS)
def test_a_lazy_volume_is_copied(tmp_path, extension):
    volume = Volume(_voxels((2, 3, 5, 7, 4), "uint16"), "tzyxc", spacing=(3, 2, 1), meta=META)
    write_volume(tmp_path / "a.ome.tif", volume, compression="zlib")
    with open_volume(tmp_path / "a.ome.tif") as lazy:
        write_volume(tmp_path / f"b{extension}", lazy)
    check_same(read_volume(tmp_path / f"b{extension}"), volume)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_nifti_holds_float64(tmp_path, extension):
    volume = Volume(_voxels((3, 5, 7), "float64"), "zyx", spacing=(1, 2, 3))
    write_volume(tmp_path / f"a{extension}", volume)
    check_same(read_volume(tmp_path / f"a{extension}"), volume)


@pytest.mark.parametrize("extension", FORMATS)
def test_equal_volumes_are_read_equal_after_a_second_trip(tmp_path, extension):
    volume = Volume(_voxels((3, 5, 7), "uint8"), "zyx", spacing=(0.3, 0.2, 0.1), meta=META)
    write_volume(tmp_path / f"a{extension}", volume)
    write_volume(tmp_path / f"b{extension}", read_volume(tmp_path / f"a{extension}"))
    check_same(read_volume(tmp_path / f"b{extension}"), volume)
