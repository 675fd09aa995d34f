"""How time and memory grow with the length of a sequence, as slopes on logarithmic axes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from biojax.bench.record import Record
from biojax.bench.report import markdown
from biojax.errors import require
from biojax.io.atomic import replacing

__all__ = ["Growth", "draw_growth", "grow", "table_of_growth"]

_LINES = {"forward": "-", "vjp": ":", "both": "--"}


class Growth(NamedTuple):
    """One kernel in one mode over several lengths.

    Attributes:
      target: the kernel.
      mode: what is run.
      name: kernel, mode and implementation.
      lengths: in rising order.
      seconds: the median at each.
      peak_bytes: of the compiled program at each; None where the backend gives none.
      time_slope: the exponent p of time ~ length^p, by least squares of the logarithms: 1 is
        linear, 2 quadratic.
      memory_slope: likewise; None without memory.
    """

    target: str
    mode: str
    name: str
    lengths: list[int]
    seconds: list[float]
    peak_bytes: list[int] | None
    time_slope: float
    memory_slope: float | None


def grow(records: Sequence[Record]) -> list[Growth]:
    """Group records of the suite "lengths" that differ in length alone, which their specs name.

    Those of a single length are left out.
    """
    groups: dict[tuple[str, ...], dict[int, Record]] = {}
    for r in records:
        name = (r.target, r.mode, r.dtype, r.requested or "")
        groups.setdefault(name, {})[int(r.spec.removeprefix("t"))] = r
    return [_grow(by_length) for by_length in groups.values() if len(by_length) > 1]


def _grow(by_length: dict[int, Record]) -> Growth:
    lengths = sorted(by_length)
    rows = [by_length[n] for n in lengths]
    seconds = [r.seconds for r in rows]
    held = [r.peak_bytes for r in rows if r.peak_bytes is not None]
    held = held if len(held) == len(rows) else None
    first = rows[0]
    dtype = "" if first.dtype == "float32" else f", {first.dtype}"
    return Growth(
        first.target,
        first.mode,
        f"{first.target} {first.mode}, {first.implementation}{dtype}",
        lengths,
        seconds,
        held,
        _slope(lengths, seconds),
        None if held is None else _slope(lengths, held),
    )


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polynomial.Polynomial.fit(np.log(x), np.log(y), 1).convert().coef[1])


def table_of_growth(growths: Sequence[Growth]) -> str:
    """A Markdown table of the slopes."""
    rows = [
        (
            growth.name,
            f"{growth.lengths[0]:,} - {growth.lengths[-1]:,}",
            f"{growth.time_slope:.2f}",
            "-" if growth.memory_slope is None else f"{growth.memory_slope:.2f}",
        )
        for growth in growths
    ]
    return "\n".join(markdown(("what", "steps", "slope of time", "slope of memory"), rows))


def draw_growth(growths: Sequence[Growth], path: Path) -> None:
    """Draw time and memory against length, with their slopes, and beside them a slope of one.

    A colour for each kernel, a line for each mode.

    Raises:
      DependencyError: matplotlib is not installed.
      FileError: the file cannot be written.
    """
    figure = require("matplotlib.figure", "train").Figure(figsize=(13, 5.5), layout="constrained")
    colours = require("matplotlib", "train").colormaps["tab10"].colors
    targets = list(dict.fromkeys(growth.target for growth in growths))
    times, memory = figure.subplots(1, 2)
    for growth in growths:
        colour = colours[targets.index(growth.target) % len(colours)]
        line = _LINES.get(growth.mode, "-.")
        look = {"marker": "o", "markersize": 4, "color": colour, "linestyle": line}
        slope = f"{growth.time_slope:.2f}"
        times.plot(growth.lengths, [1e3 * s for s in growth.seconds], **look)
        if growth.peak_bytes is not None:
            memory.plot(growth.lengths, [n / 2**20 for n in growth.peak_bytes], **look)
            slope += f", {growth.memory_slope:.2f}"
        look["label"] = f"{growth.name}: {slope}"
        times.plot([], [], **look)
    for panel, label in ((times, "time (ms)"), (memory, "memory (MiB)")):
        panel.set(xscale="log", yscale="log", xlabel="steps", ylabel=label)
        panel.grid(which="both", alpha=0.2)
        if panel.lines:
            x, y = np.array(panel.get_xlim()), panel.get_ylim()
            panel.plot(x, y[0] * x / x[0], color="black", linewidth=1, scalex=False)
            panel.set_ylim(y)
    if growths:
        times.plot([], [], color="black", linewidth=1, label="linear")
        figure.legend(fontsize="x-small", loc="outside right upper", title="slopes: time, memory")
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=90)
