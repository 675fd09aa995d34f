"""What was measured, one JSON object a line."""

import dataclasses
import json
import math
import statistics
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from biojax.bench.timing import median_deviation
from biojax.errors import FileError
from biojax.io.atomic import replacing

__all__ = ["Record", "read_records", "write_records"]

_LARGEST_FILE = 2**28
_DERIVED = (
    "seconds",
    "deviation",
    "flops_per_second",
    "bytes_per_second",
    "voxels_per_second",
    "share",
)


@dataclasses.dataclass(frozen=True)
class Record:
    """One measurement, in seconds, bytes and operations; counts are those of one run.

    Attributes:
      suite: "kernels", "lengths", "models" or "volumes".
      target: the kernel or the model.
      spec: the name of the shapes.
      mode: "forward", "vjp", "both"; "train" and "predict" among the volumes.
      dtype: of the arrays.
      shapes: of the inputs.
      requested: the implementation that was named; None where the library chose.
      implementation: what ran.
      reason: why that one.
      lower_seconds: tracing and lowering; None where it is part of the first run.
      compile_seconds: compilation; likewise.
      first_seconds: the first run.
      samples: every warm run, in order.
      flop_count: of the direct algorithm, see `biojax.bench.counts`; None where it is not known.
      byte_count: inputs and outputs, once each; likewise.
      voxel_count: positions in the input.
      peak_bytes: arguments, outputs and temporaries of the compiled program.
      process_peak_bytes: the process's high-water mark up to then, which never falls.
      matmul_ceiling: FLOP/s of a large matrix product of this dtype in the same process.
      copy_ceiling: bytes a second of a large copy in the same process.
      machine: processor, cores, system.
      device: platform and kind.
      versions: of Python and packages.
      flags: environment variables that steer XLA and its threads.
      date: UTC, ISO 8601.
    """

    suite: str
    target: str
    spec: str
    mode: str
    dtype: str
    shapes: str
    requested: str | None
    implementation: str
    reason: str
    lower_seconds: float | None
    compile_seconds: float | None
    first_seconds: float
    samples: tuple[float, ...]
    flop_count: int | None
    byte_count: int | None
    voxel_count: int
    peak_bytes: int | None
    process_peak_bytes: int | None
    matmul_ceiling: float
    copy_ceiling: float
    machine: str
    device: str
    versions: str
    flags: str
    date: str

    @property
    def name(self) -> str:
        """Target, spec and mode."""
        return f"{self.target}/{self.spec}/{self.mode}"

    @property
    def seconds(self) -> float:
        """The median of the warm runs."""
        return statistics.median(self.samples)

    @property
    def deviation(self) -> float:
        """The median distance of the warm runs from their median."""
        return median_deviation(self.samples)

    @property
    def flops_per_second(self) -> float | None:
        """Of the direct algorithm."""
        return None if self.flop_count is None else self.flop_count / self.seconds

    @property
    def bytes_per_second(self) -> float | None:
        """As if nothing was read or written twice."""
        return None if self.byte_count is None else self.byte_count / self.seconds

    @property
    def voxels_per_second(self) -> float:
        """Positions of the input."""
        return self.voxel_count / self.seconds

    @property
    def share(self) -> float | None:
        """The share of the roofline: the least time that the ceilings allow, over the median.

        least time = max(operations / matmul ceiling, bytes / copy ceiling)

        Above 1 for algorithms that need fewer operations than the direct one, and for data that
        stays in the cache.
        """
        if self.flop_count is None or self.byte_count is None:
            return None
        least = max(self.flop_count / self.matmul_ceiling, self.byte_count / self.copy_ceiling)
        return least / self.seconds

    def to_json(self) -> str:
        """One line; what is derived stands beside what was measured, for readers elsewhere."""
        derived = {name: getattr(self, name) for name in _DERIVED}
        return json.dumps({**dataclasses.asdict(self), **derived}, allow_nan=False)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write them whole, in the place of what was there.

    Raises:
      FileError: the file cannot be written.
    """
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text("".join(f"{record.to_json()}\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """Read what `write_records` wrote. Fields that are not known are left out.

    Raises:
      FileError: there is no such file, or a line of it is no record.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise _error(path, f"more than {_LARGEST_FILE // 2**20} MiB")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise _error(path, f"'{error.strerror}'") from error
    except UnicodeDecodeError as error:
        raise _error(path, "what is not text") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> Record:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _error(path, f"line {number}, which is not JSON") from error
    if not isinstance(values, dict):
        raise _error(path, f"line {number}, which is no JSON object")
    kinds = typing.get_type_hints(Record)
    for name, kind in kinds.items():
        if name not in values:
            raise _error(path, f"line {number} without {name!r}")
        if not _fits(values[name], kind):
            raise _error(path, f"line {number} with {name}={str(values[name])[:40]!r}")
    values["samples"] = tuple(values["samples"])
    return Record(**{name: values[name] for name in kinds})


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of a field's kind, numbers finite and none below zero."""
    if isinstance(kind, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list) and bool(value) and all(_fits(v, float) for v in value)
    if kind is float:  # times and rates, which are divided by
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and 0 < value < 1e300 and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return isinstance(value, kind)


def _error(path: Path, got: str) -> FileError:
    return FileError(
        str(path),
        got,
        "a file of records, as biojax bench writes them",
        "Name the records.jsonl of an earlier run",
    )
