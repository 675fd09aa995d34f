"""Draws the ratios of a run: `python -m benchmarks.ratios peers.jsonl peers.png`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from biojax.errors import require
from biojax.io.atomic import replacing

__all__ = ["draw_ratios"]

_RIVALS = {"against_xla": ("Flax over XLA", "tab:blue"), "against_torch": ("PyTorch", "tab:orange")}


def draw_ratios(records: Path, path: Path) -> None:
    """Draw how many times as long each rival takes, a row for each case and mode.

    Args:
      records: JSON lines as `benchmarks.peers` writes them.
      path: the picture.

    Raises:
      DependencyError: matplotlib is not installed.
    """
    lines = [json.loads(line) for line in records.read_text().splitlines()][::-1]
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(9, 1 + 0.19 * len(lines)), layout="constrained"
    )
    panel = figure.subplots()
    for key, (label, colour) in _RIVALS.items():
        rows = [i for i, line in enumerate(lines) if line[key]]
        ratios = [lines[i][key]["ratio"] for i in rows]
        spread = [
            min(lines[i][key]["deviation"], 0.9 * r) for i, r in zip(rows, ratios, strict=True)
        ]
        look = {"color": colour, "label": label, "markersize": 4, "elinewidth": 1}
        panel.errorbar(ratios, rows, xerr=spread, fmt="o", **look)
    panel.axvline(1.0, color="black", linewidth=1)
    panel.set_yticks(range(len(lines)))
    names = [f"{line['name']}, {line['mode']}" for line in lines]
    panel.set_yticklabels(names, fontsize="x-small")
    panel.set(
        xscale="log", xlabel="time of the rival / time of biojax: right of 1 biojax is faster"
    )
    panel.set_ylim(-1, len(lines))
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
    draw_ratios(options.records, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
