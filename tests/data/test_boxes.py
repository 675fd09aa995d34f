import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biojax.data import boxes
from biojax.errors import ConfigError, ShapeError

axis = st.tuples(st.integers(1, 30), st.integers(1, 12))
overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9])


@settings(max_examples=200, deadline=None)
@given(st.lists(axis, min_size=1, max_size=3), overlaps)
def test_windows_cover_stay_inside_and_come_in_raster_order(axes, overlap):
    shape, window = zip(*axes, strict=True)
    starts = boxes(shape, window, overlap)
    covered = np.zeros(shape, bool)
    for start in starts:
        covered[tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))] = True
    assert covered.all()
    assert (starts >= 0).all()
    assert (starts + np.minimum(window, shape) <= shape).all()
    assert starts.tolist() == sorted(starts.tolist())
    assert len({tuple(start) for start in starts}) == len(starts)


@settings(max_examples=300, deadline=None)
@given(axis, overlaps)
def test_overlap_even_spread_and_fewest_windows(lengths, overlap):
    length, window = lengths
    starts = boxes((length,), (window,), overlap)[:, 0]
    steps = np.diff(starts)
    longest = max(1, window - math.ceil(round(overlap * window, 6)))
    assert (steps <= longest).all()
    assert (window - longest >= overlap * window - 1e-6) or longest == 1
    if len(steps):
        assert steps.max() - steps.min() <= 1
        # One window fewer could not reach the end with the steps allowed.
        assert (len(starts) - 2) * longest < length - window


def test_the_product_of_axes_with_the_last_fastest():
    starts = boxes((6, 4, 10), (4, 4, 6), 0.5)
    expected = itertools.product([0, 2], [0], [0, 2, 4])
    assert starts.tolist() == [list(start) for start in expected]


def test_a_window_larger_than_the_shape_starts_at_zero():
    assert boxes((3, 5), (8, 5)).tolist() == [[0, 0]]


def test_rounding_of_the_overlap_asks_for_no_extra_voxel():
    # 0.07 * 100 is 7.000000000000001 in floating point: steps of 93 reach 193 in two windows.
    assert boxes((193,), (100,), 0.07)[:, 0].tolist() == [0, 93]


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 50, math.nan])
def test_overlap_outside_its_range(overlap):
    with pytest.raises(ConfigError, match="fraction"):
        boxes((8,), (4,), overlap)


@pytest.mark.parametrize(
    ("shape", "window"), [((8, 8), (4,)), ((), ()), ((0,), (4,)), ((8,), (0,))]
)
def test_shapes_that_do_not_fit(shape, window):
    with pytest.raises(ShapeError):
        boxes(shape, window)
