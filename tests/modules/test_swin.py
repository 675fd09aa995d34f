"""Layers of Swin transformers against their kernels, and voxels put side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import attention, relative_bias, window_attention
from biojax.modules import PatchMerging, SwinBlock, WindowAttention


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def heads(x, p):
    return [dense(x, p[name]).reshape(*x.shape[:-1], 2, -1) for name in ("query", "key", "value")]


def test_windows_that_the_image_does_not_fill(with_parameters):
    """5 voxels as 6, of which the last is zero; shifted by one."""
    x = normal(2, 5, 4)
    module = WindowAttention(2, 3, shifted=True)
    variables = with_parameters(module, x)
    p = variables["params"]
    query, key, value = heads(jnp.pad(x, ((0, 0), (0, 1), (0, 0))), p)
    bias = relative_bias(p["table"], (3,))
    y = window_attention(query, key, value, bias, window_size=3, shift=1)
    expected = dense(y.reshape(2, 6, 4)[:, :5], p["proj"])
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_images_smaller_than_a_window_are_one(with_parameters):
    """Nothing is shifted along the second axis, which has 2 voxels of a window of 3."""
    x = normal(2, 2, 2, 4)
    module = WindowAttention(2, (2, 3), shifted=True)
    variables = with_parameters(module, x)
    p = variables["params"]
    assert p["table"].shape == (3 * 5, 2)
    bias = relative_bias(p["table"], (2, 3))[:, :4, :4]
    y = attention(*heads(x.reshape(2, 4, 4), p), bias)
    expected = dense(y.reshape(x.shape), p["proj"])
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_a_block_adds_its_branches(with_parameters):
    x, block = normal(2, 4, 4), SwinBlock(2, 2, mlp_ratio=2.0)
    variables = with_parameters(block, x)
    p = variables["params"]

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p["scale"] + p["bias"]

    tokens = norm(x, p["norm1"])
    z = x + jnp.asarray(WindowAttention(2, 2).apply({"params": p["attention"]}, tokens))
    hidden = jax.nn.gelu(dense(norm(z, p["norm2"]), p["mlp"]["expand"]), approximate=False)
    expected = z + dense(hidden, p["mlp"]["project"])
    np.testing.assert_allclose(block.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("order", "voxels"),
    [
        ("axes", [0, 4, 2, 1, 6, 5, 3, 7]),
        ("raster", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("repeated", [0, 4, 2, 1, 5, 2, 1, 7]),
    ],
)
def test_merging(order, voxels, with_parameters):
    x = normal(1, 2, 2, 3, 2)
    module = PatchMerging(order)
    variables = with_parameters(module, x)
    p = variables["params"]
    padded = np.pad(x, [(0, 0)] * 3 + [(0, 1), (0, 0)])
    blocks = np.stack([padded[0, :, :, i : i + 2].reshape(8, 2)[voxels].ravel() for i in (0, 2)])
    z = (blocks - blocks.mean(-1, keepdims=True)) / np.sqrt(blocks.var(-1, keepdims=True) + 1e-5)
    expected = (z * p["norm"]["scale"] + p["norm"]["bias"]) @ p["reduce"]["kernel"]
    y = module.apply(variables, x)
    np.testing.assert_allclose(y, expected.reshape(1, 1, 1, 2, 4), rtol=1e-4, atol=1e-5)


def test_dtypes(keeps_dtypes):
    x = jnp.ones((1, 4, 4, 4))
    keeps_dtypes(functools.partial(WindowAttention, 2, 3), x)
    keeps_dtypes(PatchMerging, x)


def test_what_is_refused():
    x = jax.ShapeDtypeStruct((1, 4, 4, 6), jnp.float32)
    for module, error, message in (
        (SwinBlock(4), ConfigError, "num_heads=4 for 6 features.*mean num_heads=3"),
        (SwinBlock(2, (2, 2, 2)), ShapeError, "one integer, or 2 of them"),
        (PatchMerging("rastr"), ConfigError, "order='rastr'.*Did you mean 'raster'?"),
    ):
        with pytest.raises(error, match=message):
            jax.eval_shape(module.init, jax.random.key(0), x)
