"""MedNeXt against its layers by hand, and UpKern."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError, ShapeError
from biojax.models import MedNeXt, create_model, upkern

SMALL = {"features": 2, "num_blocks": (1, 1, 1), "expansion_ratio": (2, 3, 4)}


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_by_hand(with_parameters, quick_jit):
    x = image(2, 4, 6, 1)
    model = MedNeXt(3, spatial_dims=2, **SMALL)
    assert model.stride == (2, 2)
    variables = with_parameters(model, x)
    p = variables["params"]

    def pointwise(x, p):
        return x @ p["kernel"][0, 0] + p["bias"]

    def block(x, p, depthwise):
        y = depthwise(x, p["depthwise"]["kernel"]) + p["depthwise"]["bias"]
        mean, var = y.mean((1, 2), keepdims=True), y.var((1, 2), keepdims=True)
        y = (y - mean) / jnp.sqrt(var + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
        y = pointwise(y, p["expand"])
        y = y * jax.scipy.stats.norm.cdf(y)  # GELU, exactly
        return pointwise(y, p["project"])

    def plain(x, w):
        return kernels.conv(x, w, feature_group_count=x.shape[-1])

    def down(x, w):
        return kernels.conv(x, w, strides=2, padding=1, feature_group_count=x.shape[-1])

    def up(x, w):
        parts = [
            kernels.conv_transpose(x[..., i : i + 1], w[..., i : i + 1], strides=2, padding=1)
            for i in range(x.shape[-1])
        ]
        return jnp.concatenate(parts, axis=-1)

    def by_hand(x):
        x = pointwise(x, p["stem"])
        skip = x + block(x, p["encoder0_block0"], plain)
        x = block(skip, p["down0"], down) + pointwise(skip[:, ::2, ::2], p["down0_shortcut"])
        x = x + block(x, p["bottleneck_block0"], plain)
        spread = jnp.zeros((2, 3, 5, 4)).at[:, ::2, ::2].set(x)
        kernel, bias = p["up0_shortcut"]["kernel"], p["up0_shortcut"]["bias"]
        y = block(x, p["up0"], up) + spread @ kernel[0, 0] + bias
        x = skip.at[:, 1:, 1:].add(y)
        x = x + block(x, p["decoder0_block0"], plain)
        return pointwise(x, p["head"])

    assert p["up0"]["expand"]["kernel"].shape == (1, 1, 4, 16)
    assert p["down0"]["expand"]["kernel"].shape == (1, 1, 2, 6)
    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, quick_jit(by_hand)(x), rtol=1e-4, atol=1e-5)


def test_upkern_keeps_what_has_the_same_shape_and_resizes_the_rest(with_parameters):
    x = image(1, 4, 4, 4, 1)
    small, large = (MedNeXt(2, kernel_size=k, **SMALL) for k in (3, 5))
    params = with_parameters(small, x)["params"]
    shapes = jax.eval_shape(large.init, jax.random.key(0), x)["params"]
    grown = upkern(params, shapes)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    before, after = params["up0"], grown["up0"]
    np.testing.assert_array_equal(after["expand"]["kernel"], before["expand"]["kernel"])
    # Tap i of five lies at (i + 1/2) 3/5 - 1/2 of the three: -0.2, 0.4, 1, 1.6, 2.2.
    weights = np.array([[1, 0, 0], [0.6, 0.4, 0], [0, 1, 0], [0, 0.4, 0.6], [0, 0, 1]])
    kernel = np.asarray(before["depthwise"]["kernel"], np.float64)
    expected = np.einsum("ia,jb,kc,abcnf->ijknf", weights, weights, weights, kernel)
    np.testing.assert_allclose(after["depthwise"]["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_upkern_of_constant_kernels_is_constant():
    params, larger = {"kernel": jnp.full((3, 3, 1, 2), 0.5)}, {"kernel": jnp.zeros((5, 7, 1, 2))}
    np.testing.assert_allclose(upkern(params, larger)["kernel"], 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("larger", "message"),
    [
        ({"kernel": jnp.zeros((5, 1, 3))}, r"kernel of \(3, 1, 2\) and \(5, 1, 3\)"),
        ({"kernels": jnp.zeros((5, 1, 2))}, "other names of parameters"),
    ],
)
def test_upkern_refuses_models_that_differ_otherwise(larger, message):
    with pytest.raises(ShapeError, match=message):
        upkern({"kernel": jnp.zeros((3, 1, 2))}, larger)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_blocks": (1, 1)}, "num_blocks for 2 stages"),
        ({"num_blocks": (1, 1, 1)}, "num_blocks for 3 stages and expansion_ratio for 9"),
        ({"kernel_size": 4}, "Did you mean kernel_size=5"),
    ],
)
def test_what_is_refused(fields, message):
    model = create_model("mednext_s", out_channels=2, **fields)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), image(1, 16, 16, 16, 1))
