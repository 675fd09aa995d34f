"""Measuring the implementations of a kernel where it runs, to choose the fastest from then on."""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from biojax.errors import ConfigError, UnsupportedError
from biojax.kernels import measured
from biojax.kernels.dispatch import of_arrays, platform, trace
from biojax.kernels.measured import Row

__all__ = ["tune"]


def tune(
    kernel: Callable, *args, path: str | os.PathLike | None = None, budget: float = 1.0, **kwargs
) -> Row:
    """Measure every implementation that can do a call, and choose the fastest from now on.

    Each is compiled and run on this machine, forward and with the gradients in every floating
    array; the runs of all take turns, so that noise falls on each alike. The winner is the one
    with the least median time with the gradients. From then on the same call (the same shapes,
    dtypes and options, on the same kind of device and with the same version of JAX) chooses it,
    and `explain` says so. Functions that were compiled before are compiled anew.

    Args:
      kernel: a kernel, such as `conv`.
      *args: its arguments; arrays may be `jax.ShapeDtypeStruct`, and are ones then.
      path: a JSON file that keeps the row beside those it holds. Other processes read it if the
        environment variable BIOJAX_TUNED names it. By default the file that the variable names,
        else none.
      budget: seconds for the runs of each implementation in each of the two modes.
      **kwargs: the kernel's keyword arguments.

    Returns:
      The row: every implementation's seconds, and the winner. Printed it is a table.

    Raises:
      ConfigError: `kernel` is not one kernel, or the implementation is named already.
      FileError: the file is no table, in which case it stays as it is, or cannot be written. A
        choice raises the same if BIOJAX_TUNED names a file that is missing or no table: to go
        on by the rules would hide that what was asked for is not what runs.

    >>> from biojax.kernels import conv
    >>> row = tune(conv, jnp.ones((1, 5, 3, 2)), jnp.ones((1, 1, 2, 2)), budget=0.0)
    >>> sorted(row.seconds)
    ['fft', 'grouped', 'patches', 'planes', 'pointwise', 'xla']
    """
    path = path or os.environ.get(measured.VARIABLE)
    rows = measured.read(path) if path and Path(path).exists() else []
    call, arrays = of_arrays(kernel, args, kwargs)
    measured.publish(rows)  # what the variable names need not exist yet
    calls = trace(call, arrays)
    if len(calls) != 1 or kwargs.get("implementation") is not None:
        raise ConfigError(
            "tune",
            f"a call of {len(calls)} kernels, implementation={kwargs.get('implementation')!r}",
            "one kernel, and no implementation named",
            "Tune each kernel by itself: `explain` tells which a model calls",
        )
    arrays = [jnp.ones(a.shape, a.dtype) if _abstract(a) else jnp.asarray(a) for a in arrays]
    seconds = _seconds(call, arrays, calls[0].implementations, budget)
    fastest = min(seconds, key=lambda name: seconds[name][1])
    where = platform()
    device = measured.describe_device(where)
    row = Row(where, device, jax.__version__, calls[0].text, fastest, seconds)
    if path:
        measured.write(path, [*(r for r in rows if r[:4] != row[:4]), row])
    measured.publish([row])
    return row


def _abstract(array) -> bool:
    return isinstance(array, jax.ShapeDtypeStruct)


def _seconds(
    call: Callable, arrays: list, names: tuple[str, ...], budget: float
) -> dict[str, tuple[float, float]]:
    """Median seconds, forward and with the gradients, of each that does not refuse."""
    floating = [jnp.issubdtype(a.dtype, jnp.inexact) for a in arrays]

    def both(name: str, *arrays):
        def run(*differentiated):
            rest = iter(differentiated)
            filled = [next(rest) if f else a for a, f in zip(arrays, floating, strict=True)]
            return call(*filled, implementation=name)

        if not any(floating):  # labels have no gradient
            return call(*arrays, implementation=name)
        out, pull = jax.vjp(run, *(a for a, f in zip(arrays, floating, strict=True) if f))
        return out, pull(out)

    programs = {}
    for name in names:
        forward = jax.jit(partial(call, implementation=name))
        try:
            steps = forward.lower(*arrays), jax.jit(partial(both, name)).lower(*arrays)
        except UnsupportedError:
            continue
        programs[name] = [step.compile() for step in steps]
    forward, backward = (
        _in_turns([steps[mode] for steps in programs.values()], arrays, budget) for mode in (0, 1)
    )
    times = zip(programs, forward, backward, strict=True)
    return {name: (f, b) for name, f, b in times}


def _in_turns(programs: list[Callable], arrays: list, budget: float) -> list[float]:
    """The median seconds of each program, of at least two runs and at most fifty."""

    def timed(program: Callable) -> float:
        start = time.perf_counter()
        jax.block_until_ready(program(*arrays))
        return time.perf_counter() - start

    first = [timed(program) for program in programs]
    rounds = min(50, max(2, int(budget * len(programs) / sum(first))))
    samples = [[timed(program) for program in programs] for _ in range(rounds)]
    return [statistics.median(each) for each in zip(*samples, strict=True)]
