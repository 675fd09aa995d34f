"""Draws the ratios of a run: `python -m benchmarks.ratios peers.jsonl peers.png`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest import read_results
from biojax.errors import BiojaxError, require
from biojax.io.atomic import replacing

__all__ = ["draw_ratios"]

_RIVALS = {"plain": ("Flax over XLA", "tab:blue"), "layout": ("PyTorch", "tab:orange")}


def draw_ratios(records: Path, path: Path) -> None:
    """Draw how many times as long each rival takes, a row for each case and mode.

    Args:
      records: JSON lines as `benchmarks.peers` writes them.
      path: the picture.

    Raises:
      FileError: there is no such file, or a line of it is no result.
      DependencyError: matplotlib is not installed.
    """
    results = read_results(records)[::-1]
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(9, 1 + 0.19 * len(results)), layout="constrained"
    )
    panel = figure.subplots()
    for rival, (label, colour) in _RIVALS.items():
        found = [result.against(getattr(result, rival)) for result in results]
        rows = [i for i, ratio in enumerate(found) if ratio]
        ratios = [ratio.value for ratio in found if ratio]
        spread = [min(ratio.deviation, 0.9 * ratio.value) for ratio in found if ratio]
        look = {"color": colour, "label": label, "markersize": 4, "elinewidth": 1}
        panel.errorbar(ratios, rows, xerr=spread, fmt="o", **look)
    panel.axvline(1.0, color="black", linewidth=1)
    panel.set_yticks(range(len(results)))
    names = [f"{result.name}, {result.mode}" for result in results]
    panel.set_yticklabels(names, fontsize="x-small")
    panel.set(
        xscale="log", xlabel="time of the rival / time of biojax: right of 1 biojax is faster"
    )
    panel.set_ylim(-1, len(results))
    panel.grid(axis="x", which="both", alpha=0.2)
    figure.legend(loc="outside upper right", fontsize="small")
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw one file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ratios", description=__doc__)
    parser.add_argument("records", type=Path, help="peers.jsonl")
    parser.add_argument("picture", type=Path, help="such as peers.png")
    options = parser.parse_args(arguments)
    try:
        draw_ratios(options.records, options.picture)
    except BiojaxError as error:
        print(f"ratios: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
