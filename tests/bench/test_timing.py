"""What is timed, how often, and what the compiler says of memory."""

import itertools

import jax.numpy as jnp
import pytest

from biojax.bench import timing
from biojax.bench.timing import median_deviation, repeat, time_calls, time_compiled


@pytest.fixture
def run_of(monkeypatch):
    """A run that takes so many seconds on a clock of its own."""

    def make(seconds):
        now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: now)

        def run():
            nonlocal now
            now += seconds

        return run

    return make


@pytest.mark.parametrize(
    ("seconds", "budget", "count"),
    [
        (0.25, 2.0, 8),  # until the budget is spent
        (0.25, 0.0, 5),  # but 5 at least
        (0.001, 2.0, 50),  # and 50 at most
        (4.0, 1.0, 5),  # however long they take
        (9.0, 1.0, 3),  # up to 20 seconds in all
        (60.0, 1.0, 2),  # after which two are enough
    ],
)
def test_how_many_samples(run_of, seconds, budget, count):
    samples = repeat(run_of(seconds), budget)
    assert samples == pytest.approx((seconds,) * count)


def test_an_outlier_does_not_move_the_deviation():
    assert median_deviation((1.0, 1.1, 0.9, 1.0, 50.0)) == pytest.approx(0.1)
    assert median_deviation((3.0,)) == 0.0


def test_compiled_functions_are_timed_in_parts():
    traced = []

    def function(x, y):
        traced.append(x.shape)
        return x + y

    x = jnp.ones((64, 64))
    found = time_compiled(function, (x, x), budget=0.0)
    assert traced == [(64, 64)]  # once, in the lowering: no run traces again
    assert found.lower is not None
    assert found.compile is not None
    assert min(found.lower, found.compile, found.first, *found.samples) > 0
    assert len(found.samples) == 5
    assert found.peak_bytes == 3 * x.nbytes


def test_functions_of_the_host_are_timed_whole():
    calls = itertools.count()
    found = time_calls(lambda: next(calls), (), budget=0.0)
    assert (found.lower, found.compile, found.peak_bytes) == (None, None, None)
    assert next(calls) == 6  # the first run and five warm ones
