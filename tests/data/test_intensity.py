import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from biojax.data import (
    ClipWindow,
    Compose,
    MinMax,
    Percentile,
    ZScore,
    clip_window,
    from_config,
    minmax,
    percentile,
    to_config,
    zscore,
)
from biojax.errors import ConfigError, DataError, ShapeError

STEPS = [
    ClipWindow(-160, 240),
    ZScore(),
    ZScore("nonzero"),
    ZScore("otsu"),
    Percentile(1, 99),
    MinMax(),
]


@pytest.fixture
def image():
    """Two channels of noise, of which the second is brighter and in a body amid air."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (12, 16, 16, 2))
    x[3:9, 4:12, 4:12, 1] += 50
    return x


def test_clip_window_in_hounsfield_units():
    hu = np.array([-2000, -160, -60, 40, 240, 3000], np.int16)[:, None]
    np.testing.assert_array_equal(
        clip_window(hu, -160, 240)[:, 0], np.array([0, 0, 0.25, 0.5, 1, 1], np.float32)
    )


def test_zscore_is_of_each_channel(image):
    y = zscore(image)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-5)


def test_zscore_of_nonzero_voxels_uses_their_statistics_everywhere():
    x = np.zeros((4, 4, 1))
    x[0, :, 0] = [1, 3, 5, 7]
    y = zscore(x, "nonzero")
    np.testing.assert_allclose(y[0, :, 0], (np.array([1, 3, 5, 7]) - 4) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(y[1:], -4 / np.sqrt(5), rtol=1e-6)


def test_zscore_within_the_otsu_mask_is_of_the_body(image):
    y = zscore(image, "otsu")[..., 1]
    body = y[4:8, 5:11, 5:11]  # away from the smoothed edge
    assert abs(body.mean()) < 0.2
    assert abs(body.std() - 1) < 0.2
    assert y[:2].mean() < -20


def test_percentile_clips_to_what_numpy_finds(image):
    y = percentile(image, 2, 90)
    for c in range(2):
        low, high = np.percentile(image[..., c].astype(np.float32), (2, 90))
        expected = (np.clip(image[..., c], low, high) - low) / (high - low)
        np.testing.assert_allclose(y[..., c], expected, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (7, 3), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(STEPS),
)
def test_every_step_is_finite_float32_and_leaves_its_input(x, step):
    before = x.copy()
    y = step(x)
    assert y.dtype == np.float32
    assert y.shape == x.shape
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(x, before)
    if not isinstance(step, ZScore):
        assert y.min() >= 0
        assert y.max() <= 1 + 1e-6


@pytest.mark.parametrize("value", [0.0, 0.1, -1e5, 7e6])
def test_constant_images_become_zero(value):
    x = np.full((9, 9, 2), value)
    for step in STEPS[1:]:
        np.testing.assert_allclose(step(x), 0, atol=abs(value) * 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_values_that_are_not_finite(step, bad):
    x = np.ones((4, 4, 1))
    x[0, 0] = bad
    with pytest.raises(DataError, match="1 of 16 values"):
        step(x)


def test_images_that_are_none():
    with pytest.raises(DataError, match="complex64"):
        minmax(np.ones((4, 1), np.complex64))
    with pytest.raises(DataError, match="shape"):
        minmax(np.ones((0, 1)))
    with pytest.raises(ShapeError, match="channel"):
        minmax(np.ones(4))


@pytest.mark.parametrize("step", [*STEPS, Compose(tuple(STEPS)), Compose()], ids=repr)
def test_a_stored_pipeline_repeats_training_exactly(image, step):
    restored = from_config(json.loads(json.dumps(to_config(step))))
    assert restored == step
    np.testing.assert_array_equal(restored(image), step(image))


def test_compose_is_its_steps_in_order(image):
    composed = Compose((Percentile(1, 99), ZScore()))(image)
    np.testing.assert_array_equal(composed, zscore(percentile(image, 1, 99)))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "zscor"}, "Did you mean 'zscore'"),
        ({"name": ["zscore"]}, "whose name is one of"),
        ({"mask": "otsu"}, "whose name is one of"),
        ("zscore", "whose name is one of"),
        ([[{"name": "zscore"}]], "whose name is one of"),
        ({"name": "clip_window", "low": 1}, "options"),
        ({"name": "percentile", "hihg": 1}, "Did you mean 'high'"),
        ({"name": "zscore", "mask": "otsuu"}, "Did you mean 'otsu'"),
        ({"name": "percentile", "low": "1"}, "finite numbers"),
        ({"name": "percentile", "low": 5, "high": 200}, "<= 100"),
        ({"name": "clip_window", "low": 3, "high": 3}, "low=3 and high=3"),
    ],
)
def test_configs_that_cannot_be_read(config, said):
    with pytest.raises(ConfigError, match=said):
        from_config(config)


def test_only_known_steps_are_stored():
    with pytest.raises(ConfigError, match="ClipWindow"):
        to_config(np.sqrt)  # pyright: ignore[reportArgumentType]
