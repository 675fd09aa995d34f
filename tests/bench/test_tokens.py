"""Attention against tokens, out of what a run of the peers has written."""

import pytest

from benchmarks import ratios, tokens
from benchmarks.contest import Result, read_results
from biojax.errors import FileError


@pytest.fixture
def records(tmp_path):
    """Two lengths, the longer without a rival, and a kernel that is no attention."""
    layouts = {"torch contiguous": (8.0,) * 3, "torch channels_last": (6.0,) * 3}
    rivals = {"biojax": (1.0, 3.0, 2.0), **layouts}
    held = {"biojax": 2**20, "xla": 2**24}
    results = [
        Result("attention/t1024_n2", "both", "float32", rivals, extra_bytes=held),
        Result("attention/t4096_n1", "both", "float32", {"biojax": (9.0,)}),
        Result("attention/t343_n4_windows", "both", "float32", {"biojax": (1.0,)}),
    ]
    path = tmp_path / "peers.jsonl"
    path.write_text("".join(f"{result.to_json({'threads': 2})}\n" for result in results))
    return path


def test_results_are_read_as_they_were_written(records):
    first, *others = read_results(records)
    assert (first.name, first.extra_bytes["xla"]) == ("attention/t1024_n2", 2**24)
    ratio = first.against(first.layout)
    assert ratio is not None
    assert ratio.value == 3.0  # the median of 6 / 1, 6 / 3 and 6 / 2
    assert len(others) == 2


def test_times_are_those_of_a_head_and_of_the_faster_layout(records):
    found = tokens._by_tokens(read_results(records), lambda result: result.rounds)
    assert found == {
        ("biojax", "both"): {1024: 1.0, 4096: 9.0},
        ("torch", "both"): {1024: 3.0},
    }


def test_draws(records, tmp_path):
    picture = tmp_path / "tokens.png"
    assert tokens.main([str(records), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("program", [tokens, ratios])
@pytest.mark.parametrize("content", ["no JSON", "[]\n", '{"name": "x"}\n'])
def test_other_files_are_answered(program, content, tmp_path, capsys):
    path = tmp_path / "peers.jsonl"
    path.write_text(content)
    assert program.main([str(path), str(tmp_path / "x.png")]) == 2
    assert "no file of results" in capsys.readouterr().err
    with pytest.raises(FileError, match="what is no file of results"):
        read_results(tmp_path / "missing.jsonl")
