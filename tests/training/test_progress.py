import io
import sys

import matplotlib.image
import pytest

from biojax.training.progress import draw_progress, show_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_where_there_is_no_terminal(capsys):
    with show_progress(0, 100, enabled=True) as show:
        show(1, 0.5, 2.0, 3.2e6)
        show(2, 0.25, 2.0, 3.2e6)  # too soon after the first
        show(100, 0.125, 4.0, 6.4e6)
    assert capsys.readouterr().out.splitlines() == [
        "step 1/100  loss 0.5000  2 steps/s  3.2 Mvoxels/s  ETA 0:00:50",
        "step 100/100  loss 0.1250  4 steps/s  6.4 Mvoxels/s  ETA 0:00:00",
    ]


def test_a_bar_in_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with show_progress(3, 10, enabled=True) as show:
        show(4, 0.5, 2.0, 3.2e6)
    text = terminal.getvalue()
    assert "step 4/10" in text
    assert "loss 0.5000  2 steps/s  3.2 Mvoxels/s" in text


def test_lines_where_rich_is_not_installed(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with show_progress(0, 10, enabled=True) as show:
        show(1, 0.5, 2.0, 3.2e6)
    assert terminal.getvalue().startswith("step 1/10  loss 0.5000")


def test_nothing_if_not_enabled(capsys):
    with show_progress(0, 10, enabled=False) as show:
        show(1, 0.5, 2.0, 3.2e6)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("evaluations", [0, 2])
def test_the_figure_is_a_whole_png(tmp_path, evaluations):
    records = [{"step": i, "loss": 1 / i} for i in range(1, 10)] + [{"step": 10, "loss": None}]
    for i in range(evaluations):
        records.append({"step": 5 * (i + 1), "evaluation": {"dice": 0.5 + i / 4, "dice_1": None}})
    draw_progress(records, tmp_path / "progress.png")
    draw_progress(records, tmp_path / "progress.png")  # replaces the first
    height, width = matplotlib.image.imread(tmp_path / "progress.png").shape[:2]
    assert (height, width) == (720 if evaluations else 420, 960)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]
