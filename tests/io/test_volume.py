"""`Volume` says what is wrong with its fields, and holds them."""

import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import DataError, ShapeError
from biojax.io import Volume

ZYX = np.zeros((4, 5, 6), np.int16)


def _affine(*lengths: float) -> np.ndarray:
    return np.diag([*lengths, 1.0])


def test_fields_and_shapes():
    volume = Volume(np.zeros((2, 4, 5, 6, 3)), "tzyxc", spacing=[3, 2.0, 1])
    assert volume.shape == (2, 4, 5, 6, 3)
    assert volume.spatial_axes == "zyx"
    assert volume.spatial_shape == (4, 5, 6)
    assert volume.spacing == (3.0, 2.0, 1.0)
    assert volume.dtype == np.float64
    assert volume.model_array().shape == volume.shape
    assert Volume(jnp.ones((5, 6)), "yx").model_array().shape == (5, 6, 1)


def test_repr_prints_no_pixels():
    volume = Volume(ZYX, "zyx", spacing=(1, 1, 1), modality="CT", channels="HU", source="/a/b.nii")
    text = "Volume(zyx (4, 5, 6) int16, spacing (1.0, 1.0, 1.0) mm, CT, channels HU, from b.nii)"
    assert repr(volume) == text


@pytest.mark.parametrize("axes", ["zy", "zyxc", "xyz", "zzx", "zyq", "", None, "ZYX"])
def test_axes_must_be_known_ordered_and_fit(axes):
    with pytest.raises(ShapeError, match="Expected"):
        Volume(ZYX, axes)


def test_misordered_axes_are_answered_with_the_order():
    with pytest.raises(ShapeError, match="Did you mean 'zyx'"):
        Volume(ZYX, "xyz")


def test_data_must_be_a_full_array():
    with pytest.raises(ShapeError, match=r"numpy\.asarray"):
        Volume([[1]], "yx")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="empty"):
        Volume(np.zeros((0, 3)), "yx")


@pytest.mark.parametrize("spacing", [(1, 2), (1, 2, 3, 4), 1.0, ("a", 1, 1)])
def test_one_spacing_per_spatial_axis(spacing):
    with pytest.raises(ShapeError, match="3 numbers in millimetres"):
        Volume(ZYX, "zyx", spacing=spacing)


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf])
def test_spacing_is_finite_and_positive(bad):
    with pytest.raises(DataError, match="finite numbers above 0"):
        Volume(ZYX, "zyx", spacing=(1, bad, 1))


def test_spacing_comes_from_the_affine():
    turned = np.eye(4)
    turned[:3, :3] = [[0, 0, 2.5], [0, -0.7, 0], [0.1, 0, 0]]
    volume = Volume(ZYX, "zyx", affine=turned)
    assert volume.spacing == (0.1, 0.7, 2.5)
    assert Volume(ZYX[0], "yx", affine=turned).spacing == (0.7, 2.5)
    assert volume.affine is not None
    assert not volume.affine.flags.writeable
    turned[0, 0] = 9  # the volume has its own copy
    assert volume.affine[0, 0] == 0


def test_spacing_and_affine_must_agree():
    with pytest.raises(DataError, match="same spacing"):
        Volume(ZYX, "zyx", spacing=(1, 1, 2), affine=np.eye(4))
    volume = Volume(ZYX, "zyx", affine=np.eye(4)).replace(affine=_affine(2, 3, 4))
    assert volume.spacing == (2.0, 3.0, 4.0)


def test_affines_that_cannot_be():
    with pytest.raises(ShapeError, match=r"\(4, 4\)"):
        Volume(ZYX, "zyx", affine=np.eye(3))
    for bad in (_affine(1, np.nan, 1), np.eye(4) + np.eye(4)[[3, 0, 1, 2]]):
        with pytest.raises(DataError, match="finite numbers and a last row"):
            Volume(ZYX, "zyx", affine=bad)
    singular = np.eye(4)
    singular[:3, 1] = singular[:3, 0]
    for bad in (_affine(1, 0, 1), singular):
        with pytest.raises(DataError, match="singular"):
            Volume(ZYX, "zyx", affine=bad)
    assert Volume(ZYX, "zyx", affine=_affine(1e-6, 1e-6, 1e-6)).spacing == (1e-6, 1e-6, 1e-6)


def test_channels_are_counted_and_printable():
    data = np.zeros((5, 6, 2))
    assert Volume(data, "yxc", channels=["a", "b"]).channels == ("a", "b")
    assert Volume(ZYX, "zyx", channels=["DAPI"]).channels == ("DAPI",)
    with pytest.raises(ShapeError, match="2"):
        Volume(data, "yxc", channels=["a"])
    for bad in (["a", ""], ["a", "b\n"], ["a", 1]):
        with pytest.raises(DataError, match="printable"):
            Volume(data, "yxc", channels=bad)


def test_meta_is_json():
    assert Volume(ZYX, "zyx", meta={"a": (1, 2)}).meta == {"a": [1, 2]}
    for bad in ({"a": np.zeros(2)}, {"a": np.nan}, {"a": object()}):
        with pytest.raises(DataError, match="JSON"):
            Volume(ZYX, "zyx", meta=bad)
    with pytest.raises(DataError, match="modality"):
        Volume(ZYX, "zyx", modality=3)  # pyright: ignore[reportArgumentType]


def test_replace_keeps_the_rest():
    volume = Volume(ZYX, "zyx", spacing=(3, 2, 1), modality="CT")
    other = volume.replace(data=ZYX[0], axes="yx", spacing=volume.spacing[1:])  # pyright: ignore
    assert (other.axes, other.spacing, other.modality) == ("yx", (2.0, 1.0), "CT")
    assert volume.axes == "zyx"
