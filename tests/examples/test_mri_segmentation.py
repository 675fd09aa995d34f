"""The demo, on a narrow strip of the template."""

import numpy as np
import pytest

from biojax.io import read_volume
from examples import mri_segmentation
from examples.histogram_baseline import fit_histogram
from examples.mri_template import CLASSES, GAP, HELD_OUT, crop, degrade, load_template, split


@pytest.fixture(scope="module")
def template():
    return load_template()


def test_the_classes_follow_the_maps(template):
    image, label = template
    assert image.shape == label.shape
    assert (image.axes, image.spacing) == ("zyx", (1.0, 1.0, 1.0))
    assert 0 <= image.data.min() < image.data.max() <= 1
    assert np.unique(label.data).tolist() == list(range(len(CLASSES)))
    assert (image.data[label.data == 0] == 0).all()
    # White matter is the brighter of the two in a T1 image.
    assert image.data[label.data == 3].mean() > image.data[label.data == 2].mean()


def test_the_parts_do_not_touch(template):
    image, _ = template
    train, held_out = split(image)
    assert held_out.shape[1] == HELD_OUT
    assert train.shape[1] + GAP + HELD_OUT == image.shape[1]
    np.testing.assert_array_equal(held_out.data, image.data[:, -HELD_OUT:])
    assert train.affine is not None
    assert held_out.affine is not None
    # World coordinates of the first voxel differ by the length between the parts.
    assert held_out.affine[1, 3] - train.affine[1, 3] == train.shape[1] + GAP


def test_degrading_is_seeded_and_as_stated():
    image = np.zeros((40, 48, 56), np.float32)
    image[10:30, 10:40, 10:50] = 1.0
    one, again = (degrade(image, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(degrade(image, np.random.default_rng(4)) - one).mean() > 0.05
    # Where there is no signal, Rician noise is Rayleigh's: its mean is sigma sqrt(pi / 2).
    assert one[image == 0].mean() == pytest.approx(0.12 * np.sqrt(np.pi / 2), rel=0.02)
    bias = degrade(np.ones((64, 64, 64), np.float32), np.random.default_rng(5), noise=0.0)
    assert np.log(bias).std() == pytest.approx(0.15, rel=1e-3)
    assert np.abs(np.diff(np.log(bias), axis=0)).max() < 0.05, "the field is smooth"


def test_the_histogram_tells_what_intensity_tells():
    label = np.zeros((12, 12, 12), np.uint8)
    label[3:9, 3:9, 3:9] = 2
    label[5:7, 5:7, 5:7] = 3
    images = [label + np.random.default_rng(i).normal(0, 0.01, label.shape) for i in range(4)]
    baseline = fit_histogram(images, label, 4)
    assert (baseline.predict(images[0]) == label).mean() > 0.9


@pytest.fixture
def strip(template, monkeypatch):
    """The demo sees a strip of the head only."""
    box = (slice(60, 92), slice(None), slice(60, 92))
    parts = tuple(crop(volume, box) for volume in template)
    monkeypatch.setattr(mri_segmentation, "load_template", lambda: parts)
    return parts


def test_it_writes_everything_and_goes_on(strip, tmp_path, capsys):
    config = mri_segmentation.Demo(
        folder=tmp_path, steps=3, features=(4, 8), patch=16, renderings=2
    )
    assert mri_segmentation.main(config) == 0
    names = {path.name for path in tmp_path.iterdir()}
    written = {"report.md", "overlay.png", "progress.png", "prediction.ome.tif", "image.ome.tif"}
    assert written | {"config.json", "log.jsonl", "step-00000003"} == names
    prediction = read_volume(tmp_path / "prediction.ome.tif")
    held_out = split(strip[1])[1]
    assert prediction.shape == held_out.shape
    np.testing.assert_array_equal(np.asarray(prediction.affine), np.asarray(held_out.affine))
    report = (tmp_path / "report.md").read_text()
    for name in (*CLASSES, "voxels/s", "What the result does not show"):
        assert name in report
    assert "Dice, held-out block" in capsys.readouterr().out
    # The training is done: once more only segments.
    assert mri_segmentation.main(config) == 0
    assert "Going on from step 3" in capsys.readouterr().out
    np.testing.assert_array_equal(
        read_volume(tmp_path / "prediction.ome.tif").data, prediction.data
    )
