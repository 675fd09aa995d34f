"""The planes of an MRI volume: the split, the report, and the default run."""

import numpy as np
import pytest

from biojax.models import create_model
from examples import classify_planes
from examples.classify_planes import GAP, HELD_OUT, MARGIN, PLANES, Planes, Result


def test_parts_are_blocks_with_a_gap_and_hold_mirror_images_together():
    n = 81
    along_z = np.broadcast_to(np.arange(1.0, n + 1)[:, None, None], (n, n, n))
    for plane in range(3):
        parts = classify_planes.split_slices(np.moveaxis(along_z, 0, plane))
        images, labels, held_out, truth = parts
        assert images.shape[1:] == held_out.shape[1:] == (64, 64, 1)
        # A slice across `plane` has its own number everywhere.
        places = [
            set(x[y == plane].max((1, 2, 3)).astype(int) - 1) for x, y in (parts[:2], parts[2:])
        ]
        middle = n // 2
        assert places[1] == set(range(middle - HELD_OUT, middle + HELD_OUT + 1))
        assert min(abs(i - j) for i in places[0] for j in places[1]) == GAP + 1
        assert all({n - 1 - i for i in part} == part for part in places)
        np.testing.assert_array_equal(np.bincount(truth), [2 * HELD_OUT + 1] * 3)
        np.testing.assert_array_equal(np.unique(labels), [0, 1, 2])


def test_shrinking_keeps_the_mean_intensity():
    image = np.random.default_rng(0).random((189, 153))
    small = classify_planes.shrink(image)
    assert small.shape == (64, 64, 1)
    assert small.sum() * classify_planes.BLOCK**2 == pytest.approx(image.sum())


def test_result_by_hand():
    result = Result("a", 1, 0.0, np.array([[3, 1], [2, 0]]))
    assert (result.accuracy, result.chance) == (0.5, 4 / 6)


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A run of two steps on a small network."""

    def create(name, **fields):
        return create_model(name, **{**fields, "features": (2, 2), "dense": 4})

    monkeypatch.setattr(classify_planes, "create_model", create)
    return Planes(folder=tmp_path / "new" / "run", steps=2, batch=4)


def test_a_run_leaves_a_report_and_a_picture(short, capsys):
    (result,) = classify_planes.main(short)
    assert result.matrix.shape == (3, 3)
    np.testing.assert_array_equal(result.matrix.sum(1), [25] * 3)
    assert result.parameters == 2 * 10 + 2 * 19 + (14 * 14 * 2 + 1) * 4 + 5 * 3
    report = (short.folder / "report.md").read_text()
    row = f"{result.accuracy:.3f} "
    assert row in report
    assert row in capsys.readouterr().out
    assert "average of 152" in report
    assert all(f"recall {plane}" in report for plane in PLANES)
    assert (short.folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in short.folder.iterdir()) == ["picture.png", "report.md"]


def test_a_mistake_is_one_message_and_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["classify_planes", "--folder", "/dev/null/a"])
    with pytest.raises(SystemExit) as exit:
        classify_planes.run(classify_planes.main, Planes, "classify_planes")
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("classify_planes: /dev/null/a: got 'Not a directory'. Expected")


@pytest.mark.slow
def test_the_default_run_beats_chance_by_the_stated_margin(tmp_path):
    (result,) = classify_planes.main(Planes(folder=tmp_path))
    assert result.accuracy - result.chance >= MARGIN
