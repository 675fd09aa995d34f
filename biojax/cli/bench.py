"""`biojax bench`: how fast the kernels, models and volumes are."""

import dataclasses
import warnings
from pathlib import Path

from biojax.errors import DependencyError

__all__ = ["Bench", "bench"]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time kernels, models or whole volumes, and compare with an earlier run.

    The suite lengths says how time and memory grow with the length of a sequence: growth.md and
    growth.png have the slopes on logarithmic axes, 1 being linear.

    Lowering, compilation, the first and the warm runs are timed apart. The folder gets
    records.jsonl, to which records are added, table.md, time.png and roofline.png.

    Exit code 1 if --compare finds that something became slower beyond the noise, which is 5 % of
    the earlier median or 3 times both runs' median deviations together, whichever is more.
    """

    suite: str
    """What to measure: kernels, lengths, models or volumes."""
    filter: str = "*"
    """Part of a case's name target/spec/mode, with * and ?, such as conv/3d or lstm*forward."""
    implementation: tuple[str, ...] = ()
    """Implementations of the kernels to time, one after the other; the library's choice if none."""
    compare: Path | None = None
    """The records.jsonl of an earlier run. Only the same case on the same machine compares."""
    out: Path = Path("bench-results")
    """Folder for the results."""
    seconds: float = 1.0
    """For the warm runs of each case, of which there are at least 5 and at most 50."""


def bench(config: Bench) -> int:
    """Print a line for each case as it is done, and the comparison.

    Returns:
      1 if something became slower, else 0.

    Raises:
      ConfigError: an unknown suite, filter or implementation.
      UnsupportedError: the implementation can do none of the cases.
      FileError: the earlier records cannot be read, or there is nowhere to write.
    """
    from biojax import bench as harness
    from biojax.cli.progress import bar
    from biojax.io.atomic import make_folder

    cases = harness.select_cases(config.suite, config.filter, config.implementation)
    before = [] if config.compare is None else harness.read_records(config.compare)
    path = make_folder(config.out) / "records.jsonl"
    kept = harness.read_records(path) if path.exists() else []
    harness.write_records(path, kept)  # finds out now, not after hours, whether it can be written
    records = []
    with bar("bench", enabled=True) as progress:
        for record in harness.run(cases, budget=config.seconds, progress=progress):
            records.append(record)
            harness.write_records(path, [*kept, *records])
            print(harness.describe(record), flush=True)
    slower = False
    comparison = ""
    if config.compare is not None:
        changes, alone = harness.compare(records, before)
        slower = any(change.verdict == "slower" for change in changes)
        comparison = f"{harness.table_of_changes(changes, alone)}\n"
        print(f"\nCompared with {config.compare}:\n{comparison}", end="")
    harness.write_text(path.with_name("table.md"), "\n".join((harness.table(records), comparison)))
    growths = harness.grow(records) if config.suite == "lengths" else []
    if growths:
        text = f"{harness.table_of_growth(growths)}\n"
        print(f"\n{text}", end="")
        harness.write_text(path.with_name("growth.md"), text)
    try:
        if growths:
            harness.draw_growth(growths, path.with_name("growth.png"))
        harness.draw_times(records, path.with_name("time.png"))
        harness.draw_roofline(records, path.with_name("roofline.png"))
    except DependencyError as error:
        warnings.warn(f"no pictures: {error}", stacklevel=2)
    return int(slower)
