"""Contenders timed in turns, so that their ratio holds on a noisy machine."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from biojax.bench.timing import median_deviation, repeat

__all__ = ["Ratio", "geometric_mean", "ratio", "take_turns"]


class Ratio(NamedTuple):
    """How many times as long a rival takes: its median over the rounds, and the deviation."""

    value: float
    deviation: float


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    budget: float = 10.0,
    at_least: int = 2,
    at_most: int = 9,
    pause: float = 0.1,
    turn: float = 0.1,
    warm: float = 4.0,
) -> dict[str, tuple[float, ...]]:
    """Let every contender run in every round.

    A turn is several runs, as many as fit into `turn` seconds, at most 20, and counts with their
    median. A run before them does not count, since whoever had the turn before has left caches and
    memory to others. The order is reversed in every second round, so that nobody always follows
    the same one.

    Args:
      contenders: functions that return when their work is done. Each should have run before,
        since nothing is left out here as compilation.
      budget: seconds after which no further round begins.
      at_least: rounds that are run whatever they take.
      at_most: rounds.
      pause: seconds of sleep before each turn, in which another library's idle threads, which
        wait in a loop for some milliseconds, give up the cores.
      turn: seconds for one turn.
      warm: a first run that takes longer is the turn itself: caches hardly matter to it.

    Returns:
      For each contender, the seconds of each round.
    """
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    for i in range(at_most):
        if i >= at_least and time.perf_counter() - start > budget:
            break
        for name in list(contenders)[:: -1 if i % 2 else 1]:
            time.sleep(pause)
            samples = repeat(contenders[name], 0.0, at_least=1, at_most=1)
            if samples[0] <= warm:
                samples = repeat(contenders[name], turn, at_least=1, at_most=20)
            rounds[name].append(statistics.median(samples))
    return {name: tuple(samples) for name, samples in rounds.items()}


def ratio(rival: Sequence[float], ours: Sequence[float]) -> Ratio:
    """The rival's time over ours, round by round.

    >>> ratio((2.0, 6.0, 4.0), (1.0, 2.0, 2.0))
    Ratio(value=2.0, deviation=0.0)
    """
    ratios = tuple(theirs / mine for theirs, mine in zip(rival, ours, strict=True))
    return Ratio(statistics.median(ratios), median_deviation(ratios))


def geometric_mean(values: Iterable[float]) -> float:
    """The n-th root of the product of n numbers.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return math.exp(statistics.fmean(map(math.log, values)))
