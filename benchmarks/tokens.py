"""Draws attention against tokens: `python -m benchmarks.tokens peers.jsonl tokens.png`."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.contest import Result, read_results
from biojax.errors import BiojaxError, DataError, require
from biojax.io.atomic import replacing

__all__ = ["draw_tokens"]

_NAME = re.compile(r"attention/t(\d+)_n(\d+)")
_CONTENDERS = {
    "biojax": ("biojax", "tab:green"),
    "xla": ("jax.nn", "tab:blue"),
    "torch": ("PyTorch", "tab:orange"),
}
_LINES = {"forward": "-", "both": "--"}


def draw_tokens(records: Path, path: Path) -> None:
    """Draw the time and the memory of one head of `attention`, of biojax and its rivals.

    Args:
      records: JSON lines as `benchmarks.peers` writes them.
      path: the picture.

    Raises:
      DataError: attention is not among them.
      FileError: there is no such file, or a line of it is no result.
      DependencyError: matplotlib is not installed.
    """
    results = read_results(records)
    times = _by_tokens(results, lambda result: result.rounds)
    held = _by_tokens(results, lambda result: result.extra_bytes)
    if not times:
        raise DataError(
            "draw_tokens",
            f"no contest of attention in {records}",
            "some such as attention/t4096_n8",
            "Run benchmarks.peers with --filter 'attention/*'",
        )
    figure = require("matplotlib.figure", "train").Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, found, unit in zip(panels, (times, held), (1e3, 2**-20), strict=True):
        for (contender, mode), points in found.items():
            label, colour = _CONTENDERS[contender]
            look = {"marker": "o", "color": colour, "linestyle": _LINES[mode]}
            tokens = sorted(points)
            name = f"{label}, {'forward' if mode == 'forward' else 'with gradients'}"
            panel.plot(tokens, [unit * points[t] for t in tokens], label=name, **look)
        panel.set(xscale="log", yscale="log", xlabel="tokens")
        panel.set_xticks(
            sorted({t for points in times.values() for t in points}), labels=[], minor=True
        )
        panel.grid(which="both", alpha=0.2)
    panels[0].set(ylabel="time of a head (ms)")
    panels[1].set(ylabel="memory of a head beside its arrays (MiB)")
    panels[0].legend(fontsize="small")
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=100)


def _by_tokens(
    results: Sequence[Result], measured: Callable[[Result], dict]
) -> dict[tuple[str, str], dict[int, float]]:
    """What each contender took for a head, by contender and mode, then by the number of tokens."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for result in results:
        name = _NAME.fullmatch(result.name)
        if name is None:
            continue
        tokens, heads = map(int, name.groups())
        for contender, values in measured(result).items():
            points = found.setdefault((contender.partition(" ")[0], result.mode), {})
            value = float(np.median(values)) / heads
            points[tokens] = min(points.get(tokens, value), value)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw one file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokens", description=__doc__)
    parser.add_argument("records", type=Path, help="peers.jsonl")
    parser.add_argument("picture", type=Path, help="such as tokens.png")
    options = parser.parse_args(arguments)
    try:
        draw_tokens(options.records, options.picture)
    except BiojaxError as error:
        print(f"tokens: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
