"""The ceilings are rates, and are measured once."""

import pytest

from biojax.bench import ceilings
from biojax.bench.roofline import measure_copy, measure_matmul


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("biojax.bench.roofline.repeat", lambda run, budget: (run(), 0.5)[1:])


@pytest.mark.usefixtures("quick")
def test_a_matrix_product():
    assert measure_matmul("float32", 32) == 2 * 32**3 / 0.5
    assert measure_matmul("bfloat16", 16) == 2 * 16**3 / 0.5


@pytest.mark.usefixtures("quick")
def test_a_copy_reads_and_writes():
    assert measure_copy(1024) == 2 * 4 * 1024 / 0.5


def test_each_dtype_is_measured_once(monkeypatch):
    asked = []
    monkeypatch.setattr("biojax.bench.roofline._matmul", lambda dtype: asked.append(dtype) or 3.0)
    monkeypatch.setattr("biojax.bench.roofline._copy", lambda: 2.0)
    assert ceilings("bfloat16") == (3.0, 2.0)
    assert asked == ["bfloat16"]
