"""`fit`: a plain loop over one step, with everything a long run needs around it."""

import contextlib
import dataclasses
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from biojax.errors import ConfigError, DataError, require
from biojax.io.atomic import make_folder
from biojax.parallel import gather
from biojax.training.checkpoint import Checkpoints, to_json
from biojax.training.log import Log
from biojax.training.progress import draw_progress, show_progress
from biojax.training.state import TrainState

__all__ = ["Fit", "fit"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a run ended.

    Attributes:
      state: the state after the last step.
      step: how many steps are done, those of earlier runs included.
      interrupted: whether Ctrl-C or SIGTERM ended it; the same call goes on from here.
      records: the log, see `biojax.training.log.Log`.
    """

    state: TrainState
    step: int
    interrupted: bool
    records: list[dict[str, Any]]


def fit(
    step_fn: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]],
    state: TrainState,
    batches: Iterable[Mapping[str, Any]],
    *,
    steps: int,
    folder: str | os.PathLike | None = None,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int = 1000,
    log_every: int = 1,
    keep: int = 3,
    config: Any = None,
    progress: bool = True,
) -> Fit:
    """Train up to a number of steps, and go on where an earlier call with this folder stopped.

    Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint; a second Ctrl-C ends
    it at once. The run that goes on is bit for bit the one that was never stopped, as long as
    step, state, batches and machine are made the same.

    The folder gets `step-*/` (see `Checkpoints`), `log.jsonl` and `progress.png`.

    Args:
      step_fn: from `make_train_step`, under any strategy.
      state: from `create_state`. It is donated: use the one that is returned.
      batches: iterable of batches. For a run with a folder its iterator has `get_state()`, which
        gives JSON, and `set_state()`.
      steps: how many steps the run has, those done earlier included.
      folder: where to keep the run, created if needed; None to keep nothing.
      evaluate: called with the state on one device, gives metrics. It must not keep the state.
      evaluate_every: steps between evaluations; None for one at the end.
      checkpoint_every: steps between checkpoints. There is always one at the end.
      log_every: steps that make one record of the log, the mean over them.
      keep: how many checkpoints to keep.
      config: the model's configuration, JSON, stored with checkpoints and compared on resuming.
      progress: whether to show progress in the terminal.

    Raises:
      ConfigError: an option outside its range, batches that cannot be resumed, or `config` that
        is not JSON.
      DataError: the loss or the gradient is not finite, or the batches come to an end.
      CheckpointError: the folder's checkpoints are damaged, belong to another model, or cannot be
        written.
      FileError: the folder cannot be made.
      DependencyError: there is a folder, and matplotlib is not installed.
    """
    for name, value in {
        "steps": steps,
        "checkpoint_every": checkpoint_every,
        "log_every": log_every,
        "evaluate_every": 1 if evaluate_every is None else evaluate_every,
    }.items():
        if value < 1:
            raise ConfigError("fit", f"{name}={value}", "1 or more", f"Choose {name} from 1 up")
    say = print if progress else (lambda text: None)
    iterator: Any = iter(batches)
    with _stop_requests() as stop:
        checkpoints = None
        if folder is not None:
            folder = Path(folder)
            checkpoints = _prepare(folder, iterator, config, keep)
            if checkpoints.steps():
                state, data_state = checkpoints.restore(state, config=config)
                iterator.set_state(data_state)
        step = int(state.step)
        if step:
            say(f"Going on from step {step}.")
        with show_progress(step, steps, enabled=progress) as show:
            log = Log(folder and folder / "log.jsonl", step, every=log_every, show=show)
            while not stop.requested:
                due = step == steps or step % (evaluate_every or steps) == 0
                if evaluate and step and due and not log.evaluated(step):
                    with log.paused():
                        say(log.add_evaluation(step, evaluate(gather(state))))
                        _draw(log, folder)
                if step >= steps:
                    break
                batch = _next(iterator, step, steps)
                state, metrics = step_fn(state, batch)
                step += 1
                log.add(step, metrics, math.prod(batch["image"].shape[:-1]))
                if stop.requested or step == steps or step % checkpoint_every == 0:
                    with log.paused():  # raises before a state that is not finite is saved
                        if checkpoints:
                            data_state = iterator.get_state()
                            checkpoints.save(step, state, config=config, data_state=data_state)
            _draw(log, folder)
    if stop.requested:
        kept = f" It is kept in {folder}: run the same again to go on." if folder else ""
        say(f"{stop.requested}: stopped after step {step} of {steps}.{kept}")
    return Fit(state, step, bool(stop.requested), log.records)


def _prepare(folder: Path, iterator: Any, config: Any, keep: int) -> Checkpoints:
    """Find out before the first step what would go wrong at the first checkpoint."""
    require("matplotlib.figure", "train")
    if not hasattr(iterator, "get_state") or not hasattr(iterator, "set_state"):
        raise ConfigError(
            "fit",
            f"folder={str(folder)!r} and batches of type {type(iterator).__name__}",
            "an iterator with get_state() and set_state(), so that the run can be resumed",
            "Use the loaders of biojax.data, or folder=None",
        )
    to_json("data_state", iterator.get_state())
    to_json("config", config)
    make_folder(folder)
    checkpoints = Checkpoints(folder, keep=keep)
    checkpoints.clean()
    return checkpoints


def _next(iterator: Iterator, step: int, steps: int) -> Any:
    try:
        return next(iterator)
    except StopIteration:
        raise DataError(
            "fit",
            f"the end of the batches after step {step}",
            f"batches for {steps} steps",
            "Let the loader repeat its cases, or lower steps",
            f"steps={step}" if step else None,
        ) from None


def _draw(log: Log, folder: Path | None) -> None:
    if folder and log.records:
        draw_progress(log.records, folder / "progress.png")


class _Stop:
    """The name of the signal that asked to stop, or None."""

    requested: str | None = None


@contextlib.contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Turn Ctrl-C and SIGTERM into a request, and a second Ctrl-C into KeyboardInterrupt."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield stop
        return

    def request(number, frame):
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = signal.Signals(number).name

    before = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
