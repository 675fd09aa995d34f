"""The history of a run, one JSON object a line."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from biojax.errors import DataError
from biojax.io.atomic import replacing

__all__ = ["Log"]

Record = dict[str, Any]


class Log:
    """Reads a step's metrics when the next one is under way: the device never waits for the host.

    There are two kinds of record. That of training has `step`, the means since the record before
    it of every metric, `seconds` since the run began, `steps_per_second` and `voxels_per_second`.
    That of evaluation has `step`, `seconds`, and `evaluation` with its metrics. What is not finite
    is null.

    Args:
      path: the file, or None to keep the records in memory only. Records after `step`, which a
        resumed run will make again, are dropped from it.
      step: how many steps are done.
      every: how many steps make one record.
      show: called with (step, loss, steps_per_second, voxels_per_second) after every step.
    """

    def __init__(self, path: Path | None, step: int, *, every: int, show: Callable):
        self.records = _read(path, step) if path and path.exists() else []
        self._path, self._every, self._show = path, every, show
        before = max((record.get("seconds", 0.0) for record in self.records), default=0.0)
        self._clock = time.perf_counter()
        self._start = self._clock - before
        self._pending: tuple[int, Any, int] | None = None
        self._since: list[Mapping[str, float]] = []
        self._seconds, self._voxels = 0.0, 0
        if path:
            with replacing(path, overwrite=True) as temporary:
                temporary.write_text("".join(map(_line, self.records)))

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation of this step is there."""
        return any(r["step"] == step and "evaluation" in r for r in reversed(self.records))

    def add(self, step: int, metrics: Mapping[str, Any], voxels: int) -> None:
        """Take a step, which is read later if it is still running, and wait for the one before.

        Raises:
          DataError: the loss or the gradient of a step that is over is not finite.
        """
        self._finish()
        self._pending = (step, metrics, voxels)
        if metrics["loss"].is_ready():
            self._finish()

    def add_evaluation(self, step: int, metrics: Mapping[str, Any]) -> str:
        """Take the metrics of an evaluation, and put them into words."""
        numbers = {name: _number(value) for name, value in metrics.items()}
        self._write({"step": step, "seconds": self._elapsed(), "evaluation": numbers})
        known = [f"{name} {x:.4g}" for name, x in numbers.items() if x is not None]
        return f"step {step}: {', '.join(known) or 'nothing to evaluate'}"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for the last step, and leave what is done meanwhile out of the rates.

        Raises:
          DataError: the loss or the gradient of that step is not finite.
        """
        self._finish()
        if self._since:
            self._record()
        yield
        self._clock = time.perf_counter()

    def _finish(self) -> None:
        if self._pending is None:
            return
        (step, metrics, voxels), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        self._seconds, self._clock = self._seconds + now - self._clock, now
        self._voxels += voxels
        self._since.append({"step": step, **values})
        rate = len(self._since) / self._seconds
        self._show(step, values["loss"], rate, self._voxels / self._seconds)
        wrong = [n for n in ("loss", "grad_norm") if not math.isfinite(values.get(n, 0.0))]
        if wrong or step % self._every == 0:
            self._record()
        if wrong:
            raise DataError(
                "fit",
                f"{wrong[0]} {values[wrong[0]]} at step {step}",
                "a finite loss and gradient",
                "Lower the learning rate, set clip_norm, and look for values in the images that "
                "are not finite; checkpoints hold earlier steps only",
            )

    def _record(self) -> None:
        last = self._since[-1]
        means = {name: _number(np.mean([step[name] for step in self._since])) for name in last}
        self._write(
            {
                **means,
                "step": last["step"],
                "seconds": self._elapsed(),
                "steps_per_second": len(self._since) / self._seconds,
                "voxels_per_second": self._voxels / self._seconds,
            }
        )
        self._since, self._seconds, self._voxels = [], 0.0, 0

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _write(self, record: Record) -> None:
        self.records.append(record)
        if self._path:
            with self._path.open("a") as file:
                file.write(_line(record))


def _read(path: Path, step: int) -> list[Record]:
    """The records up to a step. A line that was cut off while it was written is left out."""
    records = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [r for r in records if isinstance(r, dict) and r.get("step", step + 1) <= step]


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
