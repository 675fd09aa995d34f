"""What a run shows of itself: a bar or lines in the terminal, and a figure in a file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from biojax.errors import DependencyError, require
from biojax.io.atomic import replacing

__all__ = ["draw_progress", "show_progress"]

_SECONDS_BETWEEN_LINES = 10.0
Show = Callable[[int, float, float, float], None]


@contextlib.contextmanager
def show_progress(step: int, steps: int, *, enabled: bool) -> Iterator[Show]:
    """Show how far training is: a bar with rich in a terminal, and plain lines elsewhere.

    Args:
      step: how many steps are done.
      steps: how many there will be.
      enabled: False to show nothing.

    Yields:
      A function of (step, loss, steps per second, voxels per second).
    """
    if not enabled:
        yield lambda step, loss, rate, voxel_rate: None
    elif sys.stdout.isatty() and _has_rich():
        with _bar(step, steps) as show:
            yield show
    else:
        yield _lines(steps)


def draw_progress(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the loss, and below it the metrics of evaluation, against the step.

    Args:
      records: as kept by `Log`.
      path: a PNG file, which is replaced.

    Raises:
      DependencyError: matplotlib is not installed.
      FileError: the file cannot be written.
    """
    figure_module = require("matplotlib.figure", "train")  # no pyplot: no window, no global state
    training = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "evaluation" in record]
    figure = figure_module.Figure(figsize=(8, 6 if evaluations else 3.5), layout="constrained")
    panels = figure.subplots(2 if evaluations else 1, sharex=True, squeeze=False)[:, 0]
    steps, losses = _curve(training, lambda record: record["loss"])
    panels[0].plot(steps, losses, linewidth=1, alpha=0.35)
    panels[0].plot(steps, _smooth(losses), linewidth=1.5, color="C0", label="running mean")
    panels[0].set_ylabel("loss")
    panels[0].legend(fontsize="small")
    if evaluations:
        for name in evaluations[-1]["evaluation"]:
            curve = _curve(evaluations, lambda record, name=name: record["evaluation"].get(name))
            panels[1].plot(*curve, marker=".", linewidth=1, label=name)
        panels[1].set_ylabel("evaluation")
        panels[1].legend(fontsize="small", ncols=2)
    panels[-1].set_xlabel("step")
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=120)


def _curve(records: Sequence[dict[str, Any]], of: Callable) -> tuple[list[int], list[float]]:
    values = [of(record) for record in records]
    return [r["step"] for r in records], [float("nan") if v is None else v for v in values]


def _smooth(values: list[float]) -> list[float]:
    """The mean of each value and those before it, over a twentieth of them all."""
    width = max(len(values) // 20, 1)
    return [sum(values[max(i - width, 0) : i]) / min(i, width) for i in range(1, len(values) + 1)]


def _has_rich() -> bool:
    try:
        require("rich.progress", "train")
    except DependencyError:
        return False
    return True


@contextlib.contextmanager
def _bar(step: int, steps: int) -> Iterator[Show]:
    rich = require("rich.progress", "train")
    columns = (
        rich.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        rich.BarColumn(),
        rich.TextColumn("{task.fields[numbers]}"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns) as progress:
        task = progress.add_task("", total=steps, completed=step, numbers="compiling")

        def show(step, loss, rate, voxel_rate):
            progress.update(task, completed=step, numbers=_numbers(loss, rate, voxel_rate))

        yield show


def _lines(steps: int) -> Show:
    last = float("-inf")

    def show(step, loss, rate, voxel_rate):
        nonlocal last
        now = time.monotonic()
        if step < steps and now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        left = round((steps - step) / rate)
        eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        print(f"step {step}/{steps}  {_numbers(loss, rate, voxel_rate)}  ETA {eta}", flush=True)

    return show


def _numbers(loss: float, rate: float, voxel_rate: float) -> str:
    return f"loss {loss:.4f}  {rate:.3g} steps/s  {_engineering(voxel_rate)}voxels/s"


def _engineering(value: float) -> str:
    """A number with the SI prefix that suits it.

    >>> _engineering(12_345_678)
    '12.3 M'
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
