"""Surface distances against published values, brute force and their own symmetries."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biojax import metrics
from biojax.errors import ConfigError, DataError, ShapeError

ANISOTROPIC = (0.85, 1.2, 0.9)
EMPTY = np.zeros((99, 99, 99), bool)
EVERY = [  # and what each returns if one mask is empty
    (metrics.hausdorff, np.inf),
    (metrics.hd95, np.inf),
    (metrics.assd, np.inf),
    (partial(metrics.hausdorff, directed=True), np.inf),
    (partial(metrics.surface_dice, tolerance=1.0), 0.0),
]


def ball(radius, centre, spacing=1.0):
    """The balls of MONAI's tests, in a volume of 99 voxels each way."""
    points = np.indices((99, 99, 99)) * np.reshape(np.broadcast_to(spacing, 3), (3, 1, 1, 1))
    return ((points - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) <= radius**2


@pytest.mark.parametrize(
    ("ball_a", "ball_b", "spacing", "percentile", "directed", "undirected"),
    [  # values published with MONAI's HausdorffDistanceMetric
        ((20, (20, 20, 20)), (20, (19, 19, 19)), 1, 100, 1.7320508075688772, 1.7320508075688772),
        ((33, (19, 33, 22)), (33, (20, 33, 22)), 1, 100, 1.0, 1.0),
        ((20, (20, 33, 22)), (40, (20, 33, 22)), 1, 100, 20.09975124224178, 20.223748416156685),
        ((20, (20, 33, 22)), (40, (20, 33, 22)), 1, 95, 19.924858845171276, 20.09975124224178),
        ((20, (20,) * 3), (20, (19,) * 3), ANISOTROPIC, 100, 2.0808651447296143, 2.2671568),
        ((15, (20, 33, 22)), (30, (20, 33, 22)), ANISOTROPIC, 100, 15.439640998840332, 15.62594),
    ],
)
def test_hausdorff_published_values(ball_a, ball_b, spacing, percentile, directed, undirected):
    a, b = ball(*ball_a, spacing=spacing), ball(*ball_b, spacing=spacing)
    value = metrics.hausdorff(a, b, spacing=spacing, percentile=percentile, directed=True)
    assert value == pytest.approx(directed, rel=1e-6)
    value = metrics.hausdorff(a, b, spacing=spacing, percentile=percentile)
    assert value == pytest.approx(undirected, rel=1e-6)


@pytest.mark.parametrize(
    ("ball_a", "ball_b", "spacing", "symmetric", "directed"),
    [  # values published with MONAI's SurfaceDistanceMetric
        ((33, (19, 33, 22)), (33, (20, 33, 22)), 1, 0.350217, 0.3483278807706289),
        ((20, (20, 33, 22)), (40, (20, 33, 22)), 1, 15.117741, 12.040033513150455),
        ((33, (42, 45, 52)), (33, (43, 45, 52)), ANISOTROPIC, 0.4951, 0.4951),
    ],
)
def test_average_distance_published_values(ball_a, ball_b, spacing, symmetric, directed):
    a, b = ball(*ball_a, spacing=spacing), ball(*ball_b, spacing=spacing)
    assert metrics.assd(a, b, spacing=spacing) == pytest.approx(symmetric, rel=2e-6)
    a_to_b, _ = metrics.surface_distances(a, b, spacing=spacing)
    assert a_to_b.mean() == pytest.approx(directed, rel=2e-6)


def test_surface_dice_published_values():
    """Half planes and half spaces ten voxels apart, which reach the border, as in MONAI's tests."""
    a, b = np.zeros((2, 480, 640), bool)
    a[:, 50:], b[:, 60:] = True, True
    wrong = 478 + 480 + 9 * 2
    for spacing, reach in ((1.0, 10), ((0.85, 1.2), 12)):
        value = metrics.surface_dice(a, b, spacing=spacing, tolerance=0)
        assert value == pytest.approx(1 - wrong / (480 * 4 + 588 * 2 + 578 * 2))
        value = metrics.surface_dice(~a, ~b, spacing=spacing, tolerance=0)
        assert value == pytest.approx(1 - wrong / (480 * 4 + 48 * 2 + 58 * 2))
        assert metrics.surface_dice(a, b, spacing=spacing, tolerance=reach - 1) < 1
        assert metrics.surface_dice(a, b, spacing=spacing, tolerance=reach) == 1
    a, b = np.zeros((2, 200, 110, 80), bool)
    a[..., 20:], b[..., 30:] = True, True
    wrong = 200 * 110 + 198 * 108 + 9 * 200 * 2 + 9 * 108 * 2
    whole = 200 * 110 * 4 + (58 + 48) * 200 * 2 + (58 + 48) * 108 * 2
    value = metrics.surface_dice(a, b, spacing=1.0, tolerance=0)
    assert value == pytest.approx(1 - wrong / whole)


@pytest.mark.parametrize(("metric", "one_empty"), EVERY)
def test_empty_masks(metric, one_empty):
    full = ball(5, (20, 20, 20))
    assert np.isnan(metric(EMPTY, EMPTY, spacing=1.0))
    assert metric(full, EMPTY, spacing=1.0) == one_empty
    assert metric(EMPTY, full, spacing=1.0) == one_empty


def brute_force(a, b, spacing):
    """The same by comparing every pair of surface voxels, neighbours looked up one by one."""
    points = []
    for mask in (a, b):
        padded = np.pad(mask, 1)
        inside = np.ones(mask.shape, bool)
        for axis in range(mask.ndim):
            for step in (-1, 1):
                shifted = np.roll(padded, step, axis)
                inside &= shifted[(slice(1, -1),) * mask.ndim]
        points.append(np.argwhere(mask & ~inside) * np.broadcast_to(spacing, mask.ndim))
    distance = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    return distance.min(1), distance.min(0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(9,), (7, 6), (5, 6, 4)]),
    st.floats(0.1, 10.0),
    st.floats(0.1, 0.9),
)
def test_random_masks(seed, shape, scale, density):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, *shape)) < density
    a.flat[0], b.flat[-1] = True, True
    spacing = rng.uniform(0.3, 3.0, len(shape))

    found = metrics.surface_distances(a, b, spacing=spacing)
    expected = brute_force(a, b, spacing)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert metrics.hausdorff(a, b, spacing=spacing) == pytest.approx(max(d.max() for d in expected))
    assert metrics.hd95(a, b, spacing=spacing) == pytest.approx(
        max(np.quantile(d, 0.95) for d in expected)
    )
    for metric in (metrics.hausdorff, metrics.hd95, metrics.assd):
        value = metric(a, b, spacing=spacing)
        assert metric(b, a, spacing=spacing) == pytest.approx(value)
        assert metric(a, b, spacing=scale * spacing) == pytest.approx(scale * value)
        # Where the masks lie on the grid does not matter, only to one another.
        apart = [np.pad(mask, 2) for mask in (a, b)]
        assert metric(*apart, spacing=spacing) == pytest.approx(value)
        assert metric(a, a, spacing=spacing) == 0
    share = metrics.surface_dice(a, b, spacing=spacing, tolerance=1.0)
    assert share == pytest.approx((np.concatenate(expected) <= 1).mean())


def test_masks_may_be_numbers():
    a = ball(5, (20, 20, 20)).astype(np.uint8)
    assert metrics.hausdorff(a, a * 1.0, spacing=1.0) == 0


def test_errors():
    a = np.ones((3, 4), bool)
    with pytest.raises(ShapeError, match="masks on one grid"):
        metrics.assd(a, a.T, spacing=1.0)
    with pytest.raises(ShapeError, match=r"spacing of shape \(3,\) for masks with 2 axes"):
        metrics.assd(a, a, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(DataError, match="spacing="):
        metrics.assd(a, a, spacing=(1.0, np.nan))
    with pytest.raises(DataError, match="spacing="):
        metrics.assd(a, a, spacing=0.0)
    with pytest.raises(DataError, match=r"values from 0 to 2. .* Did you mean labels == 1"):
        metrics.assd(a, np.arange(12).reshape(3, 4) % 3, spacing=1.0)
    with pytest.raises(ConfigError, match="percentile=101"):
        metrics.hausdorff(a, a, spacing=1.0, percentile=101)
    with pytest.raises(ConfigError, match="tolerance=-1"):
        metrics.surface_dice(a, a, spacing=1.0, tolerance=-1.0)
