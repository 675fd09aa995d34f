"""The harness: how long, how much memory, and how near to what the machine can do."""

from biojax.bench.case import Case, Work
from biojax.bench.changes import Change, compare
from biojax.bench.growth import Growth, draw_growth, grow, table_of_growth
from biojax.bench.record import Record, read_records, write_records
from biojax.bench.report import (
    describe,
    draw_roofline,
    draw_times,
    table,
    table_of_changes,
    write_text,
)
from biojax.bench.roofline import Ceilings, ceilings
from biojax.bench.suites import SUITES, measure, run, select_cases
from biojax.bench.timing import Timing, time_calls, time_compiled
from biojax.bench.turns import Ratio, geometric_mean, ratio, take_turns

__all__ = [
    "SUITES",
    "Case",
    "Ceilings",
    "Change",
    "Growth",
    "Ratio",
    "Record",
    "Timing",
    "Work",
    "ceilings",
    "compare",
    "describe",
    "draw_growth",
    "draw_roofline",
    "draw_times",
    "geometric_mean",
    "grow",
    "measure",
    "ratio",
    "read_records",
    "run",
    "select_cases",
    "table",
    "table_of_changes",
    "table_of_growth",
    "take_turns",
    "time_calls",
    "time_compiled",
    "write_records",
    "write_text",
]
