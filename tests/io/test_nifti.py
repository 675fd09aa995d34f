"""NIfTI of any orientation, unit and scale comes out as z, y, x in millimetres."""

import itertools
from typing import Any

import nibabel
import numpy as np
import pytest

from biojax.errors import ConfigError
from biojax.io import Volume, open_volume, read_volume, write_planes, write_volume

nib: Any = nibabel  # its images have more attributes than its types tell
REVERSE = np.ix_([2, 1, 0, 3], [2, 1, 0, 3])
DATA = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(["RL", "AP", "SI"])
    for letters in itertools.product(*order)
]


def _save(path, data=DATA, affine=None, dtype=None, kind=nib.Nifti1Image):
    image = kind(data, np.eye(4) if affine is None else affine, dtype=dtype)
    nib.save(image, path)
    return path


def _oriented(code: str) -> np.ndarray:
    """An affine for the axis code, slightly oblique, with a spacing of 3, 2, 1 mm."""
    ornt = nib.orientations.axcodes2ornt(code)
    affine = np.eye(4)
    for i, (world, sign) in enumerate(ornt.astype(int)):
        affine[:3, i] = 0.05
        affine[world, i] = sign
        affine[:3, i] *= (3, 2, 1)[i]
    affine[:3, 3] = [10, -20, 30]
    return affine.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_every_orientation_becomes_canonical(tmp_path, code):
    affine = _oriented(code)
    path = _save(tmp_path / "a.nii", affine=affine)
    canonical = nib.as_closest_canonical(nib.load(path))
    expected = np.asarray(canonical.dataobj).T
    with open_volume(path) as volume:
        assert volume.meta == {"orientation": code}
        assert volume.axes == "zyx"
        assert volume.affine is not None
        assert np.allclose(volume.affine, canonical.affine[REVERSE], rtol=1e-12)
        assert np.array_equal(volume.data.read(), expected)
        assert np.array_equal(volume[1:, ::-2, 2], expected[1:, ::-2, 2])
        # a voxel is where it was
        value = volume[1, 2, 0]
        index = np.argwhere(value == DATA)[0]
        world = volume.affine @ [1, 2, 0, 1]
        assert np.allclose(world[2::-1], nib.affines.apply_affine(affine, index))


def test_nibabel_reads_ours(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = [[3, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]]
    affine[:3, 3] = [1, 2, 3]
    for name in ("a.nii", "a.nii.gz"):
        write_volume(tmp_path / name, Volume(DATA, "zyx", affine=affine))
        image = nib.load(tmp_path / name)
        assert np.array_equal(np.asarray(image.dataobj), DATA.T)
        assert image.get_data_dtype() == np.int16
        assert np.allclose(image.affine, affine[REVERSE], atol=1e-6)
        assert np.allclose(image.get_qform(), affine[REVERSE], atol=1e-5)
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 2)
        assert image.header.get_zooms() == (1, 1, 3)
        assert image.header.get_xyzt_units()[0] == "mm"


def test_a_shear_is_in_the_sform_alone(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    write_volume(tmp_path / "a.nii", Volume(DATA, "zyx", affine=affine))
    header = nib.load(tmp_path / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 0)
    assert np.allclose(header.get_zooms(), np.linalg.norm(affine[:3, 2::-1], axis=0))


def test_five_axes(tmp_path):
    data = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.float32).reshape(2, 3, 4, 5, 6)  # t z y x c
    write_volume(tmp_path / "a.nii.gz", Volume(data, "tzyxc", spacing=(3, 2, 1)))
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.shape == (5, 4, 3, 2, 6)
    assert np.array_equal(np.asarray(image.dataobj), data.transpose(3, 2, 1, 0, 4))
    assert image.header.get_intent()[0] == "vector"


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((6,), "x"),
        ((6, 5), "yx"),
        ((6, 5, 1), "zyx"),
        ((6, 5, 4), "zyx"),
        ((6, 5, 4, 1), "zyx"),
        ((6, 5, 4, 3), "tzyx"),
        ((6, 5, 4, 1, 3), "zyxc"),
        ((6, 5, 4, 2, 3), "tzyxc"),
        ((6, 5, 1, 3), "tzyx"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_axes_of_others(tmp_path, shape, axes, name):
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    volume = read_volume(_save(tmp_path / name, data))
    assert volume.axes == axes
    full = data.reshape(shape + (1,) * (5 - len(shape)))
    order = full.transpose(3, 2, 1, 0, 4)
    assert np.array_equal(volume.data, order.reshape(volume.shape))


@pytest.mark.parametrize(
    ("unit", "length"), [("mm", 0.5), ("micron", 500.0), ("meter", 0.0005), ("unknown", 0.5)]
)
def test_units(tmp_path, unit, length):
    image = nib.Nifti1Image(DATA, np.diag([length, length, length, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert np.allclose(volume.spacing or (), 0.5, rtol=1e-7)
    assert volume.affine is not None
    assert np.allclose(np.diag(volume.affine)[:3], 0.5, rtol=1e-7)


def test_unknown_orientation_stays_unknown(tmp_path):
    path, image = tmp_path / "a.nii", nib.Nifti1Image(DATA, None)
    image.header.set_zooms((1, 2, 3))
    nib.save(image, path)
    volume = read_volume(path)
    assert (volume.affine, volume.spacing, volume.meta) == (None, (3.0, 2.0, 1.0), {})
    assert np.array_equal(volume.data, DATA.T)
    raw = bytearray(path.read_bytes())
    raw[84:88] = bytes(4)  # the spacing of j
    path.write_bytes(raw)
    assert read_volume(path).spacing is None


def test_the_qform_is_used_without_an_sform(tmp_path):
    image = nib.Nifti1Image(DATA, None)
    image.set_qform(np.diag([-1, 2, 3, 1]), code=1)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert (volume.meta, volume.spacing) == ({"orientation": "LAS"}, (3.0, 2.0, 1.0))
    assert np.array_equal(volume.data, DATA[::-1].T)


def test_scaled_integers_become_float32_and_others_stay(tmp_path):
    image = nib.Nifti1Image(DATA, np.eye(4))
    image.header.set_slope_inter(0.1, -7)
    nib.save(image, tmp_path / "a.nii")
    with open_volume(tmp_path / "a.nii") as volume:
        stored = np.asarray(nib.load(tmp_path / "a.nii").dataobj.get_unscaled())
        slope, intercept = np.float64(np.float32(0.1)), -7.0
        assert volume.dtype == np.float32
        expected = (stored * slope + intercept).astype(np.float32).T
        assert np.array_equal(volume.data.read(), expected)
        assert np.array_equal(volume[2, ::2], expected[2, ::2])
    assert read_volume(_save(tmp_path / "b.nii")).dtype == np.int16


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint16", "float64", "int64", "complex64"])
def test_versions_and_dtypes(tmp_path, kind, name, dtype):
    data = DATA.astype(dtype)
    path = _save(tmp_path / name, data, kind=kind, dtype=dtype)
    volume = read_volume(path)
    assert volume.dtype == dtype
    assert np.array_equal(volume.data, data.T)


def test_big_endian(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(DATA, np.diag([1, 2, 3, 1]), header)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.dtype.isnative
    assert (volume.spacing, volume.dtype) == ((3.0, 2.0, 1.0), np.int16)
    assert np.array_equal(volume.data, DATA.T)


def test_long_axes_use_nifti_2(tmp_path):
    data = np.arange(40_000, dtype=np.int32).reshape(1, 40_000)
    write_volume(tmp_path / "a.nii", Volume(data, "yx"))
    assert isinstance(nib.load(tmp_path / "a.nii"), nib.Nifti2Image)
    volume = read_volume(tmp_path / "a.nii")
    assert volume.axes == "yx"
    assert np.array_equal(volume.data, data)


@pytest.mark.parametrize("axes", ["x", "xc", "zx", "tyc", "txc"])
def test_axes_that_tiff_cannot_hold(tmp_path, axes):
    data = np.arange(24, dtype=np.float32).reshape([24, 1, 1][: len(axes)])
    data = data.reshape({1: (24,), 2: (4, 6), 3: (2, 3, 4)}[len(axes)])
    write_volume(tmp_path / "a.nii.gz", Volume(data, axes))
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.axes == axes
    assert np.array_equal(volume.data, data)


def test_a_volume_in_another_orientation_is_turned_on_reading(tmp_path):
    affine = np.diag([2.0, -1.0, 1.0, 1.0])  # y grows to posterior
    affine[1, 3] = 40
    write_volume(tmp_path / "a.nii", Volume(DATA, "zyx", affine=affine, meta={"a": 1}))
    volume = read_volume(tmp_path / "a.nii")
    assert np.array_equal(volume.data, DATA[:, ::-1])
    expected = np.diag([2.0, 1.0, 1.0, 1.0])
    expected[1, 3] = 36
    assert volume.affine is not None
    assert np.array_equal(volume.affine, expected)
    assert volume.meta == {"a": 1}


def test_an_affine_changed_by_another_program_wins(tmp_path):
    write_volume(tmp_path / "a.nii", Volume(DATA, "zyx", affine=np.diag([3, 0.1, 0.7, 1])))
    image = nib.load(tmp_path / "a.nii")
    moved = image.affine.copy()
    moved[0, 3] = 5
    image.set_sform(moved)
    nib.save(image, tmp_path / "b.nii")
    volume = read_volume(tmp_path / "b.nii")
    assert volume.affine is not None
    assert volume.affine[2, 3] == 5
    assert np.allclose(volume.spacing or (), (3, 0.1, 0.7))


def test_equal_volumes_make_equal_files(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, Volume(DATA, "zyx", spacing=(1, 2, 3)))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_channels_are_streamed_to_where_they_belong(tmp_path):
    data = np.arange(2 * 3 * 4 * 5 * 2, dtype=np.uint8).reshape(2, 3, 4, 5, 2)
    planes = data.reshape(6, 4, 5, 2)
    for name in ("a.nii", "a.nii.gz"):
        write_planes(tmp_path / name, planes, shape=data.shape, dtype="uint8", axes="tzyxc")
        assert np.array_equal(nib.load(tmp_path / name).dataobj, data.transpose(3, 2, 1, 0, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "a.nii.gz"]


def test_axes_are_not_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="Leave axes out"):
        read_volume(_save(tmp_path / "a.nii"), axes="zyx")


@pytest.mark.data
@pytest.mark.parametrize("name", ["ct_head/image.nii.gz", "pet_brain/image.nii"])
def test_real_images(data_folder, name):
    volume = read_volume(data_folder / name)
    canonical = nib.as_closest_canonical(nib.load(data_folder / name))
    assert np.array_equal(volume.data, np.asarray(canonical.dataobj).astype(volume.dtype).T)
    assert volume.affine is not None
    assert np.array_equal(volume.affine, canonical.affine[REVERSE])
