"""The verb `bench`: files, comparison and exit codes, and mistakes in one message."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import biojax
from biojax.bench import Ceilings, read_records, write_records
from biojax.cli import main
from biojax.errors import DependencyError

LINE = ["bench", "kernels", "--filter", "rnn/t256_c128/forward", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    """The ceilings of a machine that nobody has."""
    monkeypatch.setattr("biojax.bench.suites.ceilings", lambda dtype: Ceilings(2e10, 1e9))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """The folder of an earlier run."""
    folder = tmp_path_factory.mktemp("bench") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("biojax.bench.suites.ceilings", lambda dtype: Ceilings(2e10, 1e9))
        assert main([*LINE, "--out", str(folder)]) == 0
    return folder


def test_lengths_have_slopes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("biojax.bench.lengths.LENGTHS", (8, 16))
    line = ["bench", "lengths", "--filter", "rnn/*forward", "--seconds", "0.01"]
    assert main([*line, "--out", str(tmp_path)]) == 0
    (row,) = (tmp_path / "growth.md").read_text().splitlines()[2:]
    assert row.startswith("| rnn forward, sequential | 8 - 16 |")
    assert row in capsys.readouterr().out
    assert (tmp_path / "growth.png").exists()


def times_as_long(path: Path, source: Path, factor: float) -> None:
    """The records of `source`, as if everything had taken so much longer, without noise."""
    (record,) = read_records(source)
    samples = (factor * record.seconds,) * 3
    write_records(path, [dataclasses.replace(record, samples=samples)])


def check_mistake(capsys, line: list[str], *parts: str) -> None:
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.startswith("biojax: ")
    assert len(err.strip().splitlines()) == 1
    for part in ("got ", "Expected ", *parts):
        assert part in err


def test_what_is_written(earlier):
    assert sorted(path.name for path in earlier.iterdir()) == [
        "records.jsonl",
        "roofline.png",
        "table.md",
        "time.png",
    ]
    (record,) = read_records(earlier / "records.jsonl")
    assert record.name == "rnn/t256_c128/forward"
    assert record.implementation == "sequential"
    assert f"| {record.name} |" in (earlier / "table.md").read_text()


def test_records_are_added(earlier, capsys):
    path = earlier / "records.jsonl"
    before = read_records(path)
    assert main([*LINE, "--out", str(earlier), "--implementation", "sequential"]) == 0
    (said, *_) = capsys.readouterr().out.splitlines()
    assert said.startswith("rnn/t256_c128/forward")
    assert said.endswith("sequential")
    now = read_records(path)
    assert now[: len(before)] == before
    assert [record.requested for record in now[len(before) :]] == ["sequential"]
    write_records(path, before)


@pytest.mark.parametrize(("factor", "code", "said"), [(1e-6, 1, "slower"), (1e6, 0, "faster")])
def test_a_comparison_decides_the_exit_code(
    earlier, tmp_path, capsys, monkeypatch, factor, code, said
):
    # A few short samples on a busy machine may spread by more than a third of their median.
    monkeypatch.setattr("biojax.bench.changes._DEVIATIONS", 0)
    times_as_long(tmp_path / "then.jsonl", earlier / "records.jsonl", factor)
    line = [*LINE, "--out", str(tmp_path / "now"), "--compare", str(tmp_path / "then.jsonl")]
    assert main(line) == code
    out = capsys.readouterr().out
    assert f"| rnn/t256_c128/forward | {said} |" in out
    assert f"| {said} |" in (tmp_path / "now" / "table.md").read_text()


def test_a_comparison_with_another_machine_says_so(earlier, tmp_path, capsys):
    (record,) = read_records(earlier / "records.jsonl")
    write_records(tmp_path / "then.jsonl", [dataclasses.replace(record, machine="elsewhere")])
    line = [*LINE, "--out", str(tmp_path / "now"), "--compare", str(tmp_path / "then.jsonl")]
    assert main(line) == 0
    assert "Not comparable" in capsys.readouterr().out


def test_without_matplotlib_there_are_no_pictures(tmp_path, monkeypatch):
    def missing(module, extra):
        raise DependencyError(module, "nothing", "matplotlib", f"pip install biojax[{extra}]")

    monkeypatch.setattr("biojax.bench.report.require", missing)
    with pytest.warns(UserWarning, match=r"no pictures: .*pip install biojax\[train\]"):
        assert main([*LINE, "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.jsonl", "table.md"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["bench", "kernel"], "Did you mean 'kernels'?"),
        (["bench", "kernels", "--filter", "lstn"], "Did you mean 'lstm'?"),
        (["bench", "models", "--filter", "unett"], "Did you mean 'unet'?"),
        (["bench", "models", "--implementation", "xla"], "Leave it out"),
        ([*LINE, "--implementation", "sequentiel"], "Did you mean 'sequential'?"),
        ([*LINE, "--compare", "nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_mistakes(capsys, tmp_path, line, said):
    check_mistake(capsys, [*line, "--out", str(tmp_path)], said)


def test_a_comparison_with_something_else(capsys, tmp_path):
    path = tmp_path / "image.jsonl"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    check_mistake(
        capsys, [*LINE, "--out", str(tmp_path / "out"), "--compare", str(path)], str(path)
    )
    assert not (tmp_path / "out").exists()


def test_nowhere_to_write(capsys, tmp_path):
    (tmp_path / "file").write_text("kept")
    check_mistake(capsys, [*LINE, "--out", str(tmp_path / "file")], "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records.jsonl").write_text("not ours")
    check_mistake(capsys, [*LINE, "--out", str(tmp_path / "out")], "line 1")
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "out" / "records.jsonl").read_text() == "not ours"


def test_the_suites_are_modules_of_a_checkout():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", "--filter", "nothing_like_it"],
        cwd=Path(biojax.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "fits no case of 'kernels'" in run.stderr
