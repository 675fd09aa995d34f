"""Tables say what was measured; pictures are written."""

import pytest

from biojax.bench import (
    compare,
    describe,
    draw_roofline,
    draw_times,
    table,
    table_of_changes,
)

PNG = b"\x89PNG\r\n\x1a\n"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_for_each_record(make_record):
    text = table([make_record(), make_record(mode="vjp", flop_count=None, lower_seconds=None)])
    head, _, first, second, *rest = text.splitlines()
    row = dict(zip(cells(head), cells(first), strict=True))
    assert row == {
        "case": "conv/3d_64_c32/forward",
        "dtype": "float32",
        "implementation": "planes",
        "time": "100 ms",
        "±": "10.0 %",
        "lower": "20 ms",
        "compile": "300 ms",
        "GFLOP/s": "10",
        "GB/s": "0.1",
        "Mvoxel/s": "2.62",
        "memory": "16 MiB",
        "roofline": "50 %",
    }
    unknown = dict(zip(cells(head), cells(second), strict=True))
    assert [unknown[name] for name in ("lower", "GFLOP/s", "roofline")] == ["-"] * 3
    places = [line for line in rest if line.startswith("- ")]
    assert places == ["- a processor, 2 cores, Linux; cpu cpu; python 3.11.7, jax 0.10.2"]


def test_a_line_for_one_record(make_record):
    words = describe(make_record()).split()
    assert words[0] == "conv/3d_64_c32/forward"
    assert " ".join(words[1:7]) == "100 ms ±10 % 10 GFLOP/s"
    assert "GFLOP" not in describe(make_record(flop_count=None))


def test_changes_worst_first(make_record):
    earlier = [make_record(spec=name, samples=(1.0,)) for name in "abc"]
    now = [
        make_record(spec=name, samples=(s,)) for name, s in zip("abcd", (1, 2, 4, 1), strict=True)
    ]
    now[1] = make_record(spec="b", samples=(2.0,), implementation="xla")
    lines = table_of_changes(*compare(now, earlier)).splitlines()
    assert [cells(line)[:3] for line in lines[2:4]] == [
        ["conv/c/forward", "slower", "4.00"],
        ["conv/b/forward", "slower", "2.00"],
    ]
    assert cells(lines[3])[-1] == "planes -> xla"
    assert "1 of 3 within the noise" in lines[-2]
    assert lines[-1].endswith("measured before: conv/d/forward.")


def test_no_table_where_nothing_changed(make_record):
    text = table_of_changes(*compare([make_record()], [make_record()]))
    assert text == "1 of 1 within the noise."


@pytest.mark.parametrize("draw", [draw_times, draw_roofline])
def test_pictures(make_record, tmp_path, draw):
    records = [
        make_record(),
        make_record(mode="vjp", dtype="bfloat16", byte_count=10**9),
        make_record(target="unet", flop_count=None),
    ]
    for some in (records, records[2:], []):
        draw(some, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes()[:8] == PNG
