"""The contests: all contenders do the same, and ratios are read the right way round."""

import json

import numpy as np
import pytest

from benchmarks import contest as contests
from benchmarks import peers
from benchmarks.contest import Contender, Contest, Result, check_agreement, hold
from benchmarks.peers import table
from biojax.errors import DataError


@pytest.fixture
def results() -> list[Result]:
    """Two convolutions, one of them without PyTorch."""
    rounds = {
        "biojax": (1.0, 2.0, 1.0),
        "xla": (4.0, 8.0, 4.0),
        "torch contiguous": (3.0, 6.0, 3.0),
        "torch channels_last": (0.5, 1.0, 0.5),
    }
    alone = {"biojax": (2.0, 2.0), "xla": (2.0, 2.0)}
    compiled, choices = {"biojax": 1.234, "xla": 0.5}, ("conv: planes (on CPU)",)
    extra = {"biojax": 3 * 2**19, "xla": 2**30}
    return [
        Result("conv/3d_64_c32", "forward", "float32", rounds, compiled, choices, extra),
        Result("conv/2d_256_c64", "forward", "float32", alone),
    ]


def contender(*arrays) -> Contender:
    return Contender(lambda: None, lambda: [np.asarray(a) for a in arrays])


def agree(ours: Contender, theirs: Contender, mode="forward", dtype="float32") -> None:
    check_agreement(Contest("x", mode, dtype, dict), {"biojax": ours, "xla": theirs})


def test_disagreement_is_found_before_anything_is_timed():
    ours = contender([1.0, 2.0], [3.0])
    agree(ours, contender([1.0, 2.001], [3.0]))
    for rival in (contender([1.0, 2.01], [3.0]), contender([1.0, 2.0], [[3.0]])):
        with pytest.raises(DataError, match="x/both: xla: got 1 of 2 outputs and gradients differ"):
            agree(ours, rival, "both")
    for nan in (contender([1.0, np.nan], [3.0]), contender([1.0, 2.0])):
        with pytest.raises((DataError, ValueError)):
            agree(ours, nan)


def test_limits_are_wider_for_bfloat16_and_for_what_a_step_changes():
    ours = contender(0.7, [1.0, 2.0])
    agree(ours, contender(0.7, [1.0, 2.05]), dtype="bfloat16")
    agree(ours, contender(0.7, [1.07, 2.07]), "train")  # 4.4 % of the norm
    for wrong in (contender(0.71, [1.0, 2.0]), contender(0.7, [1.0, 2.2])):
        with pytest.raises(DataError, match="x/train: xla: got 1 of 2"):
            agree(ours, wrong, "train")


@pytest.mark.parametrize(
    ("long", "at_most", "budget", "count"),
    [(60.0, 2, 10.0, 3), (60.0, 5, 0.0, 3), (60.0, 5, 10.0, 5), (0.0, 5, 10.0, 2)],
)
def test_three_rounds_at_least_unless_they_are_long(long, at_most, budget, count, monkeypatch):
    monkeypatch.setattr(contests, "_LONG_ROUND", long)
    ours = contender([1.0])._replace(compile_seconds=0.5, choices=("why",), extra_bytes=3)
    contest = Contest("x/y", "forward", "float32", lambda: {"biojax": ours, "xla": contender([1])})
    found = hold(contest, at_most=at_most, budget=budget, pause=0.0, turn=0.0)
    assert [len(rounds) for rounds in found.rounds.values()] == [count, count]
    assert found.layout is None
    assert found.compile_seconds == {"biojax": 0.5}
    assert found.choices == ("why",)
    assert found.extra_bytes == {"biojax": 3}


def test_ratios_above_one_are_in_our_favour(results):
    first, second = results
    assert first.layout == "torch channels_last"
    assert first.against("xla") == (4.0, 0.0)
    assert first.against(first.layout) == (0.5, 0.0)
    assert second.against(second.layout) is None
    line = json.loads(first.to_json({"machine": "m", "torch": "2.13.0"}))
    assert line["against_torch"] == {"ratio": 0.5, "deviation": 0.0}
    assert line["rounds"]["xla"] == [4.0, 8.0, 4.0]
    assert line["compile_seconds"] == {"biojax": 1.234, "xla": 0.5}
    assert line["choices"] == ["conv: planes (on CPU)"]
    assert (line["layout"], line["torch"]) == ("torch channels_last", "2.13.0")
    assert json.loads(second.to_json({}))["against_torch"] is None


def test_the_table(results):
    rows = table(results).splitlines()
    assert rows[2] == (
        "| conv/3d_64_c32 | forward | 1000 ms | 4000 ms | 500 ms channels_last "
        "| 4.00 ±0.00 | 0.50 ±0.00 | 3 | 1.23 s | 0.50 s | 1.5 | 1024.0 |"
    )
    assert rows[3].endswith("| - | 1.00 ±0.00 | - | 2 | - | - | - | - |")


def test_mistakes_are_answered(capsys):
    assert peers.main(["--filter", "conv/3d_65_c32/both"]) == 2
    assert "Did you mean 'conv/3d_64_c32/both'?" in capsys.readouterr().err
    assert peers.main(["--threads", "0"]) == 2
    assert "threads=0" in capsys.readouterr().err
