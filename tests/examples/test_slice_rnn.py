"""Balls and rods in slices: the stacks, the filter, and the default run."""

import numpy as np
import pytest

from biojax.models import SliceRNN
from examples import slice_rnn
from examples.slice_rnn import BLOCK, DEPTH, RADII, SIDE, Slices


def test_shrinking_averages_blocks_and_puts_coronal_slices_first():
    volume = np.random.default_rng(0).random((9, 14, 7))
    slices = slice_rnn.shrink(volume)
    assert slices.shape == (4, 3, 2)
    assert slices[1, 2, 0] == pytest.approx(volume[6:9, 3:6, 0:3].mean())
    assert BLOCK == 3


def test_tissue_is_grey_and_white():
    label = np.zeros((3, 6, 12), int)
    label[:, :3, :3], label[:, :3, 3:6], label[:, 3:] = 2, 3, 1
    image = np.random.default_rng(0).random(label.shape)
    slices, tissue = slice_rnn.prepare(image, label)
    np.testing.assert_allclose(slices, slice_rnn.shrink(image))
    assert tissue.tolist() == [[[1, 1, 0, 0]], [[0, 0, 0, 0]]]


def test_balls_end_and_rods_do_not():
    rng = np.random.default_rng(0)
    for _ in range(9):
        ball = slice_rnn.thing(True, rng)
        cut = np.flatnonzero(ball.max((1, 2)))
        assert cut[0] > 0
        assert cut[-1] < DEPTH - 1
        assert (np.diff(cut) == 1).all()
        low, high = (4 / 3 * np.pi * radius**3 for radius in RADII)
        assert 0.7 * low < ball.sum() < 1.4 * high
        rod = slice_rnn.thing(False, rng)
        areas = rod.sum((1, 2))
        assert areas.min() > 0
        # Somewhere inside, the same disc in every slice, but for the grid and the border.
        assert areas.std() < 0.3 * areas.mean()


def test_stacks_by_hand(monkeypatch):
    monkeypatch.setattr(slice_rnn, "NOISE", 0.0)
    # Slices whose first row tells their number, whatever brightness and contrast are.
    n = 20
    pattern = np.zeros((n, SIDE, SIDE))
    pattern[np.arange(n), 0, np.arange(n)] = 4.0
    made = np.stack([pattern, np.ones_like(pattern)])
    stacks, hits = slice_rnn.draw_stacks(made, 12, np.random.default_rng(0))
    assert stacks.shape == (12, DEPTH, SIDE, SIDE, 1)
    np.testing.assert_allclose(stacks.mean((2, 3, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(stacks.std((2, 3, 4)), 1, atol=1e-4)
    order = stacks[:, :, 0, :, 0].argmax(2)
    assert {tuple(set(steps)) for steps in np.diff(order, axis=1).tolist()} == {(1,), (-1,)}
    assert 0 < hits.max(1).sum() < 12
    # Where a ball is cut, more is bright than in other slices of that stack.
    bright = (stacks[:, :, 1:] > stacks.min((2, 3), keepdims=True) + 0.2).sum((2, 3, 4))
    for areas, hit in zip(bright, hits > 0, strict=True):
        assert not hit.any() or areas[hit].mean() > areas[~hit].mean()


def test_the_filter_finds_dots_and_not_lines():
    rng = np.random.default_rng(0)
    made = [np.stack([slice_rnn.thing(ball, rng) for _ in range(8)]) for ball in (True, False)]
    balls, rods = (slice_rnn.dots(things[..., None], 1.5) for things in made)
    assert balls[0].min() > 2 * rods[0].max()
    cut = made[0].max((2, 3)) > 0
    assert balls[1][cut].mean() > 5 * balls[1][~cut].mean()
    np.testing.assert_array_equal(balls[0], balls[1].max(1))


def test_a_slice_alone_answers_for_stacks_by_the_mean(monkeypatch):
    seen = []

    def train(model, images, labels, config):
        seen.append((images.shape, labels))
        return lambda stacks: (stacks.mean((1, 2, 3, 4)), stacks.max((2, 3, 4)))

    monkeypatch.setattr(slice_rnn, "train", train)
    stacks = np.random.default_rng(0).random((3, DEPTH, 2, 2, 1))
    labels = np.tile([*[0] * (DEPTH - 1), 1, 1], (3, 1))
    stack, each = slice_rnn.alone(SliceRNN(1, 1), stacks, labels, stacks, Slices())
    shape, pairs = seen[0]
    assert shape == (3 * DEPTH, 1, 2, 2, 1)
    assert pairs.tolist() == [*[[0, 1]] * (DEPTH - 1), [1, 1]] * 3
    np.testing.assert_allclose(stack, stacks.mean((1, 2, 3, 4)))
    np.testing.assert_allclose(each, stacks.max((2, 3, 4)))


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Two steps of a small network on few stacks; that of a slice alone is left out."""

    def create(*classes, **fields):
        small = {"encoder_features": (2,), "num_blocks": (1,), "features": 2}
        return SliceRNN(*classes, **{**fields, **small})

    monkeypatch.setattr(slice_rnn, "SliceRNN", create)
    monkeypatch.setattr(slice_rnn, "SCALES", (1.5,))
    monkeypatch.setattr(slice_rnn, "alone", lambda *args: slice_rnn.dots(args[3], 1.5))
    return Slices(folder=tmp_path / "new" / "run", steps=2, batch=2, stacks=128)


def test_a_run_leaves_a_report_and_a_picture(short, capsys):
    rule, alone, network = slice_rnn.main(short)
    assert rule.method == "dot filter"
    assert rule.slices > 0.6
    assert network.parameters == alone.parameters > 0
    report = (short.folder / "report.md").read_text()
    assert f"| {rule.slices:.3f} " in report
    assert report.count("\n| ") == 5
    assert "average of 152" in report
    assert "22 held out" in capsys.readouterr().out
    assert (short.folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in short.folder.iterdir()) == ["picture.png", "report.md"]


@pytest.mark.slow
def test_the_default_run_is_better_than_a_slice_alone_and_the_filter(tmp_path):
    rule, alone, network = slice_rnn.main(Slices(folder=tmp_path))
    assert network.slices > rule.slices + 0.05
    assert network.slices > alone.slices + 0.2
    assert network.stacks > alone.stacks + 0.1
