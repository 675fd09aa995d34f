"""White matter in slices: the stacks, the questions, the rule, and the default run."""

import numpy as np
import pytest

from biojax.models import SliceRNN
from examples import slice_rnn
from examples.slice_rnn import BLOCK, DEPTH, Slices


def test_shrinking_averages_blocks_and_puts_coronal_slices_first():
    volume = np.random.default_rng(0).random((9, 14, 7))
    slices = slice_rnn.shrink(volume)
    assert slices.shape == (4, 3, 2)
    assert slices[1, 2, 0] == pytest.approx(volume[6:9, 3:6, 0:3].mean())
    assert BLOCK == 3


def test_shares_and_stacks_by_hand(monkeypatch):
    label = np.full((9, 6, 12), 2)
    label[:, 3:, :6] = 3
    image = np.random.default_rng(0).random(label.shape)
    slices, grey, white = slice_rnn.prepare(image, label)
    np.testing.assert_allclose(slices, slice_rnn.shrink(image))
    assert grey.sum((1, 2)).tolist() == [12, 6]
    assert white.sum((1, 2)).tolist() == [0, 6]

    monkeypatch.setattr(slice_rnn, "NOISE", 0.0)
    # Slices whose pattern tells their number, whatever brightness and contrast are.
    side, n = slice_rnn.SIDE, 20
    pattern = np.zeros((n, side, side))
    pattern[np.arange(n), np.arange(n)] = 1.0
    white = np.linspace(0, 1, n)[:, None, None] * np.ones_like(pattern)
    made = np.stack([pattern, 1 - white, white])
    stacks, shares = slice_rnn.draw_stacks(made, 9, np.random.default_rng(0))
    assert stacks.shape == (9, DEPTH, side, side, 1)
    np.testing.assert_allclose(stacks.mean((2, 3, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(stacks.std((2, 3, 4)), 1, atol=1e-4)
    order = stacks[..., 0, 0].argmax(2)
    np.testing.assert_allclose(shares, order / 19, rtol=1e-5)
    assert {tuple(set(steps)) for steps in np.diff(order, axis=1).tolist()} == {(1,), (-1,)}


def test_questions_by_hand():
    rises, much = slice_rnn.questions(np.array([[0.1, 0.5, 0.3], [0.46, 0.2, 0.3]]))
    assert rises.tolist() == [1, 0]
    assert much.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_the_rule_reads_histograms():
    rng = np.random.default_rng(0)
    shares = rng.uniform(0, 1, (12, DEPTH))
    images = (rng.random((12, DEPTH, 16, 16, 1)) < shares[..., None, None, None]) * 2.0
    stack, each = slice_rnn.rule(images[:8], shares[:8], images[8:])
    assert np.corrcoef(each.ravel(), shares[8:].ravel())[0, 1] > 0.98
    np.testing.assert_allclose(stack, each[:, -1] - each[:, 0])


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Two steps of a small network on few stacks."""

    def create(*classes, **fields):
        small = {"encoder_features": (2,), "num_blocks": (1,), "features": 2}
        return SliceRNN(*classes, **{**fields, **small})

    monkeypatch.setattr(slice_rnn, "SliceRNN", create)
    return Slices(folder=tmp_path / "new" / "run", steps=2, batch=2, stacks=64)


def test_a_run_leaves_a_report_and_a_picture(short, capsys):
    rule, network = slice_rnn.main(short)
    assert rule.method == "histogram of a slice"
    assert rule.parameters == 33
    assert network.parameters > 0
    report = (short.folder / "report.md").read_text()
    assert f"| {rule.slices:.3f} " in report
    assert report.count("\n| ") == 4
    assert "average of 152" in report
    assert "22 held out" in capsys.readouterr().out
    assert (short.folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in short.folder.iterdir()) == ["picture.png", "report.md"]


@pytest.mark.slow
def test_the_default_run_is_better_than_chance(tmp_path):
    _, network = slice_rnn.main(Slices(folder=tmp_path))
    assert network.slices > 0.55
    assert network.stacks > 0.7
