"""How long a function takes: lowering, compilation, the first run and warm runs, apart."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

__all__ = ["Timing", "median_deviation", "repeat", "time_calls", "time_compiled"]


class Timing(NamedTuple):
    """Seconds, and the bytes of one run as the compiler plans them."""

    lower: float | None
    compile: float | None
    first: float
    samples: tuple[float, ...]
    peak_bytes: int | None


def time_compiled(function: Callable, arguments: tuple, *, budget: float = 1.0) -> Timing:
    """Time `jax.jit(function)(*arguments)` from its lowering to its warm runs.

    Lowering is tracing and writing StableHLO; what JAX has traced before, such as the same kernel
    in another mode, it does not trace again. Compilation is XLA's, or reading its persistent
    cache where one is configured. The first run may load code and touch memory for the first
    time. Warm runs are those of `repeat`. Each run is waited for, and its output is dropped at
    once, so that every run allocates its output anew, as a model does.

    Args:
      function: pure, of arrays.
      arguments: those arrays, already on the device.
      budget: seconds for the warm runs.

    Returns:
      A `Timing` whose `peak_bytes` are arguments, outputs and temporaries together, from the
      compiled program's `memory_analysis`; None where the backend gives none.
    """
    lowered, lower = _timed(lambda: jax.jit(function).lower(*arguments))
    compiled, compile = _timed(lowered.compile)
    first = _timed(lambda: jax.block_until_ready(compiled(*arguments)))[1]
    samples = repeat(lambda: jax.block_until_ready(compiled(*arguments)), budget)
    return Timing(lower, compile, first, samples, _peak_bytes(compiled))


def time_calls(function: Callable, arguments: tuple, *, budget: float = 1.0) -> Timing:
    """Time a function that runs on the host and compiles what it needs by itself.

    Its first run holds all tracing and compilation, so that `lower` and `compile` are None.
    """
    first = _timed(lambda: jax.block_until_ready(function(*arguments)))[1]
    samples = repeat(lambda: jax.block_until_ready(function(*arguments)), budget)
    return Timing(None, None, first, samples, None)


def repeat(
    run: Callable[[], object],
    budget: float,
    *,
    at_least: int = 5,
    at_most: int = 50,
    patience: float = 20.0,
) -> tuple[float, ...]:
    """The seconds of each of several runs.

    Runs until `budget` seconds are spent, `at_least` times even if that takes longer, and never
    more than `at_most` times. Beyond `patience` seconds two samples are enough.

    >>> len(repeat(lambda: None, 0.0))
    5
    """
    samples: list[float] = []
    while len(samples) < at_most:
        spent = sum(samples)
        enough = 2 if spent > patience else at_least
        if spent >= budget and len(samples) >= enough:
            break
        samples.append(_timed(run)[1])
    return tuple(samples)


def median_deviation(samples: tuple[float, ...]) -> float:
    """The median distance from the median, a spread that single outliers do not move.

    >>> median_deviation((1.0, 2.0, 3.0, 4.0, 100.0))
    1.0
    """
    middle = statistics.median(samples)
    return statistics.median(abs(sample - middle) for sample in samples)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _peak_bytes(compiled: Any) -> int | None:
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(held + memory.temp_size_in_bytes - memory.alias_size_in_bytes)
