"""Records for reading: Markdown tables and pictures."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from biojax.bench.changes import Change
from biojax.bench.record import Record
from biojax.errors import require
from biojax.io.atomic import replacing

__all__ = ["describe", "draw_roofline", "draw_times", "table", "table_of_changes", "write_text"]

_MARKERS = {"forward": "o", "vjp": "v", "both": "s", "train": "s", "predict": "D"}


def describe(record: Record) -> str:
    """One line about one record."""
    rate = record.flops_per_second
    parts = [
        f"{record.name:44}",
        f"{milliseconds(record.seconds)} ±{100 * record.deviation / record.seconds:.0f} %",
        f"{_giga(rate)} GFLOP/s" if rate is not None else "",
        f"{record.voxels_per_second / 1e6:.3g} Mvoxel/s",
        record.implementation,
    ]
    return "  ".join(part for part in parts if part)


def table(records: Sequence[Record]) -> str:
    """A Markdown table: a row for each record, and below it where they were measured."""
    head = (
        "case",
        "dtype",
        "implementation",
        "time",
        "±",
        "lower",
        "compile",
        "GFLOP/s",
        "GB/s",
        "Mvoxel/s",
        "memory",
        "roofline",
    )
    rows = [
        (
            r.name,
            r.dtype,
            r.implementation,
            milliseconds(r.seconds),
            f"{100 * r.deviation / r.seconds:.1f} %",
            _or_none(milliseconds, r.lower_seconds),
            _or_none(milliseconds, r.compile_seconds),
            _or_none(_giga, r.flops_per_second),
            _or_none(_giga, r.bytes_per_second),
            f"{r.voxels_per_second / 1e6:.3g}",
            _or_none(lambda n: f"{n / 2**20:.0f} MiB", r.peak_bytes),
            _or_none(lambda share: f"{100 * share:.0f} %", r.share),
        )
        for r in records
    ]
    places = dict.fromkeys(_place(record) for record in records)
    return "\n".join([*markdown(head, rows), "", _LEGEND, "", *places, ""])


_LEGEND = """\
Time is the median of the warm runs and ± their median deviation. Operations are those of the
direct algorithm, bytes inputs and outputs once; roofline is the least time that the ceilings
allow over the time taken, and may exceed 100 % for faster algorithms and data in cache. Memory is
what the compiled program holds: arguments, outputs and temporaries."""


def table_of_changes(changes: Sequence[Change], alone: Sequence[Record]) -> str:
    """A Markdown table of what is slower or faster, and how many are not, or stand alone."""
    moved = sorted((c for c in changes if c.verdict != "same"), key=lambda c: -c.ratio)
    rows = [
        (
            change.after.name,
            change.verdict,
            f"{change.ratio:.2f}",
            milliseconds(change.before.seconds),
            milliseconds(change.after.seconds),
            milliseconds(change.noise),
            _turn(change),
        )
        for change in moved
    ]
    head = ("case", "is", "now / then", "then", "now", "noise", "implementation")
    lines = [*markdown(head, rows), ""] if rows else []
    lines.append(f"{len(changes) - len(moved)} of {len(changes)} within the noise.")
    if alone:
        names = ", ".join(dict.fromkeys(record.name for record in alone))
        lines.append(f"Not comparable, since the same case was not measured before: {names}.")
    return "\n".join(lines)


def draw_times(records: Iterable[Record], path: Path) -> None:
    """Draw time against size, a colour for each target and a marker for each mode.

    Raises:
      DependencyError: matplotlib is not installed.
      FileError: the file cannot be written.
    """
    figure, panel = _figure()
    _scatter(panel, records, lambda r: (r.voxel_count, 1e3 * r.seconds))
    panel.set(xscale="log", yscale="log", xlabel="voxels or steps", ylabel="time (ms)")
    _save(figure, panel, path)


def draw_roofline(records: Sequence[Record], path: Path) -> None:
    """Draw operations a second against operations a byte, under the measured ceilings.

    Raises:
      DependencyError: matplotlib is not installed.
      FileError: the file cannot be written.
    """
    counted = [r for r in records if r.flop_count and r.byte_count]
    figure, panel = _figure()
    points = [(r.flop_count or 0) / (r.byte_count or 1) for r in counted] or [1.0]
    ends = (min(points) / 2, max(points) * 2)
    for i, dtype in enumerate(dict.fromkeys(r.dtype for r in counted)):
        last = [r for r in counted if r.dtype == dtype][-1]
        ridge = last.matmul_ceiling / last.copy_ceiling
        at = sorted({ends[0], min(max(ridge, ends[0]), ends[1]), ends[1]})
        roof = [min(x * last.copy_ceiling, last.matmul_ceiling) / 1e9 for x in at]
        panel.plot(
            at, roof, color="black", linestyle=("-", "--", ":")[i % 3], label=f"{dtype} roof"
        )
    _scatter(
        panel,
        counted,
        lambda r: ((r.flop_count or 0) / (r.byte_count or 1), (r.flops_per_second or 0) / 1e9),
    )
    panel.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    _save(figure, panel, path)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table.

    >>> markdown(("a", "b"), [("1", "2")])
    ['| a | b |', '| --- | --- |', '| 1 | 2 |']
    """
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def milliseconds(seconds: float) -> str:
    """Three digits.

    >>> milliseconds(0.01234)
    '12.3 ms'
    """
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in the place of what was there."""
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.3g}"


def _or_none(form, value) -> str:
    return "-" if value is None else form(value)


def _turn(change: Change) -> str:
    before, after = change.before.implementation, change.after.implementation
    return after if before == after else f"{before} -> {after}"


def _place(record: Record) -> str:
    flags = f", flags {record.flags}" if record.flags else ""
    return f"- {record.machine}; {record.device}; {record.versions}{flags}"


def _figure() -> tuple[Any, Any]:
    figure = require("matplotlib.figure", "train").Figure(figsize=(9, 5.5), layout="constrained")
    return figure, figure.subplots()


def _scatter(panel: Any, records: Iterable[Record], point: Callable) -> None:
    """A colour for each target, a marker for each mode, and a legend of both."""
    colours = require("matplotlib", "train").colormaps["tab20"].colors
    records = list(records)
    targets = list(dict.fromkeys(record.target for record in records))
    for i, target in enumerate(targets):
        label = target
        for record in records:
            if record.target == target:
                marker = _MARKERS.get(record.mode, "x")
                look = {"color": colours[i % len(colours)], "alpha": 0.8, "label": label}
                panel.plot(*point(record), marker, **look)
                label = None
    for mode in dict.fromkeys(record.mode for record in records):
        panel.plot([], [], _MARKERS.get(mode, "x"), color="grey", label=mode)


def _save(figure: Any, panel: Any, path: Path) -> None:
    panel.grid(which="both", alpha=0.2)
    if panel.lines:
        figure.legend(fontsize="x-small", loc="outside right upper")
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=120)
