"""Convolutions with parameters: Flax's names and layouts, the kernel's values, the block."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError, ShapeError
from biojax.modules import Conv, ConvBlock, ConvTranspose


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def shapes(variables):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables)


@pytest.mark.parametrize(
    ("ours", "flax", "shape", "kernel_size", "options"),
    [
        (Conv, nn.Conv, (1, 6, 4), (3,), {"strides": 2, "use_bias": False}),
        (Conv, nn.Conv, (1, 6, 5, 4), (3, 2), {"feature_group_count": 2, "padding": "VALID"}),
        (Conv, nn.Conv, (1, 4, 3, 5, 4), (3, 1, 3), {"kernel_dilation": (1, 1, 2)}),
        (ConvTranspose, nn.ConvTranspose, (1, 5, 4), (3,), {"strides": (2,)}),
        (ConvTranspose, nn.ConvTranspose, (1, 3, 2, 4, 4), (2, 2, 2), {"strides": (2, 2, 2)}),
    ],
)
def test_parameters_move_to_and_from_flax(ours, flax, shape, kernel_size, options, with_parameters):
    x = normal(*shape)
    module, peer = ours(6, kernel_size, **options), flax(6, kernel_size, **options)
    variables = with_parameters(peer, x)
    assert shapes(with_parameters(module, x)) == shapes(variables)
    y = module.apply(variables, x)
    np.testing.assert_allclose(y, peer.apply(variables, x), rtol=1e-5, atol=1e-5)


def test_conv_is_the_kernel_and_a_bias(with_parameters):
    x = normal(2, 5, 6, 4)
    options = {"strides": (2, 1), "padding": ((1, 0), (0, 2)), "kernel_dilation": (1, 2)}
    module = Conv(6, 3, feature_group_count=2, **options)
    variables = with_parameters(module, x)
    w, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert w.shape == (3, 3, 2, 6)
    y = kernels.conv(x, w, feature_group_count=2, **options) + bias
    np.testing.assert_array_equal(module.apply(variables, x), y)


def test_conv_transpose_is_the_kernel_and_a_bias(with_parameters):
    x = normal(2, 3, 4, 4)
    module = ConvTranspose(6, (2, 3), strides=(2, 1), padding="VALID")
    variables = with_parameters(module, x)
    w, bias = variables["params"]["kernel"], variables["params"]["bias"]
    y = kernels.conv_transpose(x, w, strides=(2, 1), padding="VALID") + bias
    np.testing.assert_array_equal(module.apply(variables, x), y)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (2, 1))])
def test_conv_transpose_in_groups_is_one_per_group(padding, with_parameters):
    x = normal(2, 3, 4, 4)
    options = {"strides": (2, 3), "padding": padding}
    module = ConvTranspose(6, 3, feature_group_count=2, **options)
    variables = with_parameters(module, x)
    w, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert w.shape == (3, 3, 2, 6)
    parts = [
        kernels.conv_transpose(x[..., i : i + 2], w[..., j : j + 3], **options)
        for i, j in ((0, 0), (2, 3))
    ]
    expected = jnp.concatenate(parts, axis=-1) + bias
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make", [partial(Conv, 4, 3), partial(ConvTranspose, 4, 2, strides=2), partial(ConvBlock, 4)]
)
def test_dtypes(make, keeps_dtypes):
    keeps_dtypes(make, normal(1, 4, 4, 2))


def test_bfloat16_is_close(with_parameters):
    x, module = normal(1, 4, 4, 2), ConvBlock(4)
    variables = with_parameters(module, x)
    y = module.clone(dtype=jnp.bfloat16).apply(variables, x)
    np.testing.assert_allclose(np.asarray(y, np.float32), module.apply(variables, x), atol=0.1)


def test_precision_reaches_the_kernel(with_parameters):
    x = normal(1, 4, 2)
    for module in (Conv(3, 3, precision="highest"), ConvTranspose(3, 2, precision="highest")):
        variables = with_parameters(module, x)
        assert "HIGHEST" in str(jax.make_jaxpr(module.apply)(variables, x))


@pytest.mark.parametrize("strides", [1, (1, 2, 2)])
def test_the_block_by_hand(strides, with_parameters):
    x = normal(2, 3, 4, 5, 2)
    module = ConvBlock(4, (1, 3, 5), strides=strides, negative_slope=0.2)
    variables = with_parameters(module, x)
    conv, norm = variables["params"]["conv"], variables["params"]["norm"]
    padding = ((0, 0), (1, 1), (2, 2))
    y = kernels.conv(x, conv["kernel"], strides=strides, padding=padding) + conv["bias"]
    y = np.asarray(y, np.float64)
    mean, var = y.mean((1, 2, 3), keepdims=True), y.var((1, 2, 3), keepdims=True)
    y = (y - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
    expected = np.where(y > 0, y, 0.2 * y)
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_the_block_without_a_norm_and_its_tag(with_parameters):
    x = normal(1, 4, 4, 2)
    module = ConvBlock(3, norm=None, negative_slope=0.0)
    variables = with_parameters(module, x)
    assert list(variables["params"]) == ["conv"]
    conv = variables["params"]["conv"]
    y = nn.relu(kernels.conv(x, conv["kernel"], padding=1) + conv["bias"])
    np.testing.assert_allclose(module.apply(variables, x), y, rtol=1e-6, atol=1e-6)
    assert "name=block" in str(jax.make_jaxpr(module.apply)(variables, x))


def test_a_linear_block_that_begins_as_nothing():
    x = normal(1, 4, 4, 2)
    zeros = nn.initializers.zeros_init()
    module = ConvBlock(3, use_bias=False, scale_init=zeros, negative_slope=1.0)
    y, variables = jax.jit(module.init_with_output)(jax.random.key(0), x)
    assert list(variables["params"]["conv"]) == ["kernel"]
    np.testing.assert_array_equal(y, jnp.zeros((1, 4, 4, 3)))
    norm = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    y = module.apply({"params": {**variables["params"], "norm": norm}}, x)
    mean = jnp.asarray(y).mean((1, 2))
    np.testing.assert_allclose(mean, jnp.zeros((1, 3)), atol=1e-5)  # negatives are kept


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Conv(3, (3, 3, 3)), ShapeError, r"^Conv: got kernel_size=\(3, 3, 3\).*or 2 of them"),
        (ConvTranspose(3, (2,)), ShapeError, r"^ConvTranspose: got kernel_size=\(2,\)"),
        (
            Conv(4, 3, feature_group_count=4),
            ConfigError,
            r"feature_group_count=4 for 2 channels in and 4 out.*mean feature_group_count=2\?",
        ),
        (ConvTranspose(3, 3, feature_group_count=2), ConfigError, r"^ConvTranspose.*divides both"),
        (Conv(3, 3, feature_group_count=2), ConfigError, "Did you mean feature_group_count=1"),
        (Conv(3, 3, feature_group_count=0), ConfigError, "a number of groups that divides both"),
        (ConvBlock(3, (3, 2)), ConfigError, r"odd numbers.*Did you mean kernel_size=\(3, 3\)\?"),
        (ConvBlock(3, norm="instanse"), ConfigError, "Did you mean 'instance'"),
    ],
)
def test_what_is_refused(module, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(module.init, jax.random.key(0), normal(1, 4, 4, 2))
