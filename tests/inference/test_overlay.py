"""The picture shows what it says, down to its pixels."""

import numpy as np
import pytest
from matplotlib.image import imread

from biojax.errors import ShapeError
from biojax.inference import draw_overlay
from biojax.io import Volume


def red(path) -> int:
    """How many pixels have the colour of errors."""
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    return int((np.abs(pixels - [255, 0, 0]).sum(-1) < 3).sum())


@pytest.fixture
def volumes():
    rng = np.random.default_rng(0)
    image = Volume(rng.normal(size=(8, 10, 12)), "zyx", spacing=(2.0, 1.0, 1.0))
    label = np.zeros((8, 10, 12), np.uint8)
    label[2:6, 3:8, 4:9] = 1
    return image, image.replace(data=label)


def test_errors_are_red_only_where_there_are_any(volumes, tmp_path):
    image, truth = volumes
    draw_overlay(tmp_path / "right.png", image, truth, truth, classes=("background", "liver"))
    wrong = truth.replace(data=truth.data * 0)
    draw_overlay(tmp_path / "wrong.png", image, wrong, truth, classes=("background", "liver"))
    # The legend has a swatch of the same red.
    assert red(tmp_path / "wrong.png") > red(tmp_path / "right.png") + 1000


def test_it_replaces_the_file_and_leaves_no_other(volumes, tmp_path):
    image, label = volumes
    (tmp_path / "overlay.png").write_text("old")
    draw_overlay(tmp_path / "overlay.png", image, label)
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.png"]
    assert imread(tmp_path / "overlay.png").ndim == 3


def test_flat_images_and_channels(tmp_path):
    image = Volume(np.random.default_rng(0).random((10, 12, 3)), "yxc")
    label = Volume(np.eye(10, 12, dtype=np.uint8), "yx")
    draw_overlay(tmp_path / "flat.png", image, label, label)
    assert imread(tmp_path / "flat.png").ndim == 3


def test_other_grids_are_refused(volumes, tmp_path):
    image, label = volumes
    with pytest.raises(ShapeError, match="one 2-D or 3-D grid"):
        draw_overlay(tmp_path / "no.png", image, label.replace(data=label.data[1:]))
    assert list(tmp_path.iterdir()) == []
