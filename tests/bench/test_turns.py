"""Contenders take turns, and ratios are taken within a round."""

import pytest

from biojax.bench import geometric_mean, ratio, take_turns, turns


@pytest.fixture
def clock(monkeypatch):
    """A clock that sleeping and `spend` move, nothing else."""
    now = [0.0]

    def spend(seconds):
        now[0] += seconds

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(turns.time, "sleep", spend)
    return spend


@pytest.fixture
def contenders(clock):
    """Who ran, in order, and two that take 1 and 3 seconds."""
    ran = []

    def make(name, seconds):
        def run():
            ran.append(name)
            clock(seconds)

        return run

    return ran, {"ours": make("ours", 1.0), "theirs": make("theirs", 3.0)}


def test_the_order_is_reversed_in_every_second_round(contenders):
    ran, both = contenders
    rounds = take_turns(both, at_most=3, budget=100.0, pause=0.125, warm=0.0)
    assert ran == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert rounds == {"ours": (1.0,) * 3, "theirs": (3.0,) * 3}


def test_a_turn_is_filled(contenders):
    ran, both = contenders
    rounds = take_turns(both, at_most=1, at_least=1, turn=5.0)
    assert (ran.count("ours"), ran.count("theirs")) == (6, 3)  # one of each does not count
    assert rounds["ours"] == (1.0,)  # the median of the runs in it


@pytest.mark.parametrize(("budget", "count"), [(0.0, 2), (9.0, 3), (1e9, 9)])
def test_rounds_are_bounded_by_time(contenders, budget, count):
    _, both = contenders
    assert len(take_turns(both, budget=budget, warm=0.0)["ours"]) == count


def test_long_runs_are_not_repeated(contenders):
    ran, both = contenders
    assert take_turns(both, at_most=1, at_least=1, warm=2.0)["theirs"] == (3.0,)
    assert (ran.count("ours"), ran.count("theirs")) == (2, 1)


def test_pauses_are_not_counted(contenders):
    _, both = contenders
    assert take_turns(both, at_most=2, pause=50.0)["theirs"] == (3.0, 3.0)


def test_a_slow_round_is_slow_for_both():
    """Twice as slow in the second round, for both: the ratio stays."""
    found = ratio((3.0, 6.0, 3.3), (1.0, 2.0, 1.0))
    assert found.value == pytest.approx(3.0)
    assert found.deviation == pytest.approx(0.0)
    with pytest.raises(ValueError, match="zip"):
        ratio((1.0,), (1.0, 2.0))


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
