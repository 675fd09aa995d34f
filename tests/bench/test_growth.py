"""Slopes of time and memory against length, and where they are drawn."""

import pytest

from biojax.bench import draw_growth, grow, select_cases, table_of_growth
from biojax.bench.lengths import LENGTHS


@pytest.fixture
def records(make_record):
    """Quadratic time and linear memory of one kernel, and another of a single length."""
    several = [
        make_record(target="lstm", spec=f"t{n}", samples=(1e-9 * n * n,), peak_bytes=4 * n)
        for n in (4096, 256, 1024)
    ]
    return [*several, make_record(target="gru", spec="t256")]


def test_slopes_are_those_of_the_powers(records):
    (growth,) = grow(records)
    assert growth.name == "lstm forward, planes"
    assert growth.lengths == [256, 1024, 4096]
    assert growth.time_slope == pytest.approx(2)
    assert growth.memory_slope == pytest.approx(1)
    assert table_of_growth([growth]).splitlines()[-1] == (
        "| lstm forward, planes | 256 - 4,096 | 2.00 | 1.00 |"
    )


def test_memory_may_be_unknown(make_record):
    rows = [make_record(spec=f"t{n}", samples=(float(n),), peak_bytes=None) for n in (256, 1024)]
    (growth,) = grow(rows)
    assert growth.memory_slope is None
    assert growth.peak_bytes is None
    assert table_of_growth([growth]).endswith("| 1.00 | - |")


def test_the_picture(records, make_record, tmp_path):
    growths = grow([*records, make_record(spec="t512", peak_bytes=None)])
    for some in (growths, []):
        draw_growth(some, tmp_path / "growth.png")
        assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_every_kernel_has_every_length():
    cases = select_cases("lengths", "*forward")
    kernels = [
        "linear_scan",
        "selective_scan",
        "ssd",
        "rg_lru",
        "mlstm",
        "slstm",
        "rnn",
        "lstm",
        "gru",
        "attention",
        "linear_attention",
        "neighborhood_attention",
        "window_attention",
    ]
    assert sorted((case.target, case.spec) for case in cases) == sorted(
        (kernel, f"t{t}") for kernel in kernels for t in LENGTHS
    )
    assert {case.suite for case in cases} == {"lengths"}
