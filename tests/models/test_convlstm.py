"""The forecaster of frames against its layers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.scan.convolutional import conv_lstm
from biojax.models import ConvLSTMForecaster, count_parameters


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


@pytest.mark.parametrize(
    ("features", "published"),
    [((256,), 13_524_496), ((128, 128), 10_042_896), ((128, 64, 64), 7_585_296)],
)
def test_published_parameters_but_for_the_peepholes(features, published):
    found = count_parameters(ConvLSTMForecaster(features=features), (1, 10, 64, 64, 1))
    assert found + 2 * 3 * sum(features) == published


@pytest.mark.parametrize("shape", [(2, 3, 8, 2), (1, 3, 8, 4, 1), (1, 2, 4, 4, 8, 1)])
def test_untrained_it_repeats_the_last_frame(shape, quick_jit):
    model = ConvLSTMForecaster(2, len(shape) - 2, 2, (3,), 3)
    x = image(*shape)
    y, _ = quick_jit(model.init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(y, np.repeat(x[:, -1:], 2, axis=1))


def test_forecaster_by_hand(with_parameters, quick_jit):
    x = image(2, 3, 4, 6, 1)
    model = ConvLSTMForecaster(2, patch_size=2, features=(3, 2), kernel_size=3)
    variables = with_parameters(model, x)
    p = variables["params"]

    def by_hand(x):
        patches = x.reshape(2, 3, 2, 2, 3, 2).transpose(0, 1, 2, 4, 3, 5).reshape(2, 3, 2, 3, 4)
        weights = [[p[f"encoder{i}"][name] for name in ("w_x", "w_h", "bias")] for i in (0, 1)]
        h, first = conv_lstm(patches, *weights[0])
        _, second = conv_lstm(h, *weights[1])
        q = p["forecaster0"]
        still = jnp.zeros((2, 2, 2, 3, 1)), jnp.zeros((3, 3, 1, 12))
        low, _ = conv_lstm(*still, q["w_h"], q["bias"], *first)
        q = p["forecaster1"]
        high, _ = conv_lstm(low, q["w_x"], q["w_h"], q["bias"], *second)
        change = dense(jnp.concatenate([low, high], axis=-1), p["head"])
        change = change.reshape(2, 2, 2, 3, 2, 2).transpose(0, 1, 2, 4, 3, 5)
        return x[:, -1:] + change.reshape(2, 2, 4, 6, 1)

    assert "w_x" not in p["forecaster0"]
    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, quick_jit(by_hand)(jnp.asarray(x)), rtol=1e-5, atol=1e-5)
    assert not np.allclose(y[:, 0], y[:, 1])


def test_what_the_forecaster_refuses():
    model = ConvLSTMForecaster(features=(2,))
    assert model.stride == (1, 4, 4)
    with pytest.raises(ShapeError, match=r"image of \(3, 8, 10\).*Did you mean \(3, 8, 12\)\?"):
        model.init(jax.random.key(0), jnp.ones((1, 3, 8, 10, 1)))
    with pytest.raises(ShapeError, match="with spatial_dims=3"):
        model.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    with pytest.raises(ShapeError, match=r"spatial_dims=4. Expected \(b, t, d, h, w, c\)"):
        model.clone(spatial_dims=4).init(jax.random.key(0), jnp.ones((1, 3, 8, 8, 1)))
    for axes in (1, 5):
        with pytest.raises(ConfigError, match=f"got spatial_dims={axes}"):
            model.clone(spatial_dims=axes).init(jax.random.key(0), jnp.ones((1,) * (axes + 2)))


def test_frames_are_float32_whatever_the_clip_is():
    model = ConvLSTMForecaster(features=(2,), kernel_size=3, param_dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 2, 4, 4, 1), jnp.bfloat16)
    y, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert y.dtype == "float32"
