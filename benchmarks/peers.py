"""biojax against plain XLA and PyTorch: `python -m benchmarks.peers --help`, from a checkout.

Kernels against `flax.linen`, `jax.lax.scan` and `jax.nn.dot_product_attention`, models against the
same ones of Flax's layers, and all of them against PyTorch, in one process, in turns. A ratio is
the rival's time over ours, round by round, and its median: above 1, biojax is faster. Of PyTorch's
two layouts the one with the faster median counts. Before anything is timed, outputs and gradients
are held against each other. Compilation is timed once, apart, and is no part of a ratio.

Needs the extra `peers`: torch, monai, dynamic-network-architectures.
"""

import argparse
import datetime
import fnmatch
import importlib.metadata
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.aims import summary
from benchmarks.contest import Contest, Result, hold
from benchmarks.peer_kernels import kernel_contests
from benchmarks.peer_models import model_contests
from benchmarks.peer_modules import module_contests
from benchmarks.ratios import draw_ratios
from biojax.bench.machine import count_cores, describe_machine
from biojax.bench.report import markdown, milliseconds, write_text
from biojax.errors import BiojaxError, ConfigError, DataError, nearest, require
from biojax.io.atomic import make_folder, replacing

__all__ = ["main", "table"]


def table(results: Sequence[Result]) -> str:
    """A Markdown table, a row for each contest."""
    return "\n".join(markdown(_HEAD, [_row(result) for result in results]))


_HEAD = (
    "case",
    "mode",
    "biojax",
    "XLA",
    "PyTorch",
    "vs XLA",
    "vs PyTorch",
    "rounds",
    "compile",
    "XLA's compile",
    "MiB",
    "XLA's MiB",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contests, print each as it is done, and write `peers.jsonl`, `.md` and `.png`.

    Returns:
      0, or 2 for a mistake.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--filter", default="*", help="part of a name such as conv/3d_64_c32/both")
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--seconds", type=float, default=10.0, help="after which no round begins")
    parser.add_argument(
        "--rounds",
        type=int,
        default=9,
        help="at most; never fewer than 3, or 2 of more than a minute",
    )
    parser.add_argument("--pause", type=float, default=0.1, help="seconds before each turn")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except BiojaxError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.threads < 1:
        raise ConfigError(
            "peers", f"threads={options.threads}", "1 or more", "Give as many as there are cores"
        )
    contests = _select(options.filter)
    torch: Any = require("torch", "peers")
    torch.set_num_threads(options.threads)
    cores = count_cores()
    if cores != options.threads:
        warnings.warn(
            f"PyTorch has {options.threads} threads and JAX the {cores} cores of this process; "
            f"for equal ones use --threads {cores}, or taskset",
            stacklevel=1,
        )
    folder = make_folder(options.out)
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "monai", "dynamic-network-architectures")
    }
    date = datetime.date.today().isoformat()
    where = {"date": date, **describe_machine(), "threads": options.threads, **versions}
    head = f"{date}; {where['machine']}; {where['versions']}, torch {versions['torch']}"
    print(f"{head}; JAX on {cores} cores, PyTorch on {options.threads} threads\n")
    results: list[Result] = []
    differing: list[DataError] = []
    for i, contest in enumerate(contests, 1):
        print(f"[{i}/{len(contests)}] {contest.name}/{contest.mode}", end="  ", flush=True)
        try:
            results.append(
                hold(contest, budget=options.seconds, at_most=options.rounds, pause=options.pause)
            )
        except DataError as error:  # the others can still be compared
            differing.append(error)
            print(error, flush=True)
            continue
        print("  ".join(_row(results[-1])[2:]), flush=True)
        with replacing(folder / "peers.jsonl", overwrite=True) as temporary:
            temporary.write_text("".join(f"{each.to_json(where)}\n" for each in results))
    if differing and not results:
        raise differing[0]
    missing = "".join(f"\nNot timed: {error}\n" for error in differing)
    text = f"{table(results)}\n\n{summary(results)}\n{missing}"
    write_text(folder / "peers.md", f"{head}\n\n{text}")
    draw_ratios(folder / "peers.jsonl", folder / "peers.png")
    print(f"\n{text}")
    if differing:
        raise differing[0]


def _select(pattern: str) -> list[Contest]:
    contests = [*kernel_contests(), *module_contests(), *model_contests()]
    names = [f"{contest.name}/{contest.mode}" for contest in contests]
    fitting = [
        contest
        for contest, name in zip(contests, names, strict=True)
        if fnmatch.fnmatchcase(name, f"*{pattern}*")
    ]
    if not fitting:
        raise ConfigError(
            "peers",
            f"the filter {pattern!r}, which fits no contest",
            f"part of a name such as {names[0]}",
            "Widen it, or leave it out",
            nearest(pattern.strip("*"), names),
        )
    return fitting


def _row(result: Result) -> tuple[str, ...]:
    def seconds(name: str | None) -> str:
        rounds = result.rounds.get(name or "")
        return milliseconds(statistics.median(rounds)) if rounds else "-"

    def against(rival: str | None) -> str:
        found = result.against(rival)
        return f"{found.value:.2f} ±{found.deviation:.2f}" if found else "-"

    def compiled(name: str) -> str:
        found = result.compile_seconds.get(name)
        return "-" if found is None else f"{found:.2f} s"

    def extra(name: str) -> str:
        found = result.extra_bytes.get(name)
        return "-" if found is None else f"{found / 2**20:.1f}"

    layout, plain = result.layout, result.plain
    return (
        result.name,
        result.mode,
        seconds("biojax"),
        f"{seconds(plain)} {(plain or '').removeprefix('xla')}".strip(),
        f"{seconds(layout)} {(layout or '').removeprefix('torch ')}".strip(),
        against(plain),
        against(layout),
        str(len(result.rounds["biojax"])),
        compiled("biojax"),
        compiled("xla"),
        extra("biojax"),
        extra("xla"),
    )


if __name__ == "__main__":
    sys.exit(main())
