import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from biojax.data import otsu_threshold
from biojax.errors import DataError


def test_otsu_parts_two_modes():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(10, 1, 4000), rng.normal(30, 2, 2000)])
    assert 14 < otsu_threshold(x) < 24


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.int32, st.integers(2, 40), elements=st.integers(0, 255)))
def test_otsu_maximises_the_variance_between_the_classes(x):
    if x.min() == x.max():
        return
    x = np.concatenate([x, [0, 255]])  # so that every bin holds one grey level

    def between(threshold):
        low, high = x[x <= threshold], x[x > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(t) for t in range(255))
    assert between(otsu_threshold(x)) == pytest.approx(best, rel=1e-6)


def test_otsu_of_a_narrow_range_far_from_zero():
    x = np.array([1e4, 1e4 + 0.001, 1e4 + 0.002, 1e4 + 0.1, 1e4 + 0.101])
    assert 1e4 + 0.003 < otsu_threshold(x) < 1e4 + 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_otsu_of_values_that_are_not_finite(bad):
    with pytest.raises(DataError, match="finite"):
        otsu_threshold(np.array([0, 1, bad]))
