"""MONAI's attention in windows, and that of plain JAX, compute what ours does."""

import pytest

from benchmarks.contest import check_agreement
from benchmarks.peer_modules import module_contests


def test_contests_have_names_of_their_own():
    names = [f"{contest.name}/{contest.mode}" for contest in module_contests()]
    assert len(set(names)) == len(names) == 4
    assert names[-1] == "window_attention_layer/48_c48_n3_shifted/both"


@pytest.mark.peers
@pytest.mark.parametrize("contest", module_contests(5, 4, 2, 3), ids=lambda c: c.name + c.mode)
def test_all_agree(contest):
    pytest.importorskip("monai", reason="monai is not installed")
    contenders = contest.prepare()
    flash = ["torch flash"] if contest.mode == "forward" else []
    assert list(contenders) == ["biojax", "xla", "torch scores", *flash]
    assert contenders["biojax"].choices[0].startswith("window_attention: ")
    assert contenders["xla"].choices == ()
    check_agreement(contest, contenders)
