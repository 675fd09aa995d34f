"""Self-attention layers against the kernel and their own formula."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError
from biojax.modules import MultiHeadAttention, TransformerBlock

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6)), jnp.float32)
MASK = jnp.tri(5, dtype=bool)


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


@partial(jax.jit, static_argnames=["num_heads"])
def attend(x, params, num_heads, mask):
    """Heads are slices of the features: head i is features i * k to (i + 1) * k."""
    query, key, value = jnp.split(dense(x, params["qkv"]), 3, axis=-1)
    b, t, c = x.shape
    heads = (b, t, num_heads, c // num_heads)
    y = kernels.attention(query.reshape(heads), key.reshape(heads), value.reshape(heads), mask=mask)
    return dense(y.reshape(b, t, c), params["proj"])


@pytest.mark.parametrize("mask", [None, MASK])
def test_attention_is_the_kernel_between_two_matrices(mask, with_parameters):
    module = MultiHeadAttention(3)
    variables = with_parameters(module, X)
    params = variables["params"]
    assert params["qkv"]["kernel"].shape == (6, 18)
    assert params["proj"]["kernel"].shape == (6, 6)
    expected = attend(X, params, 3, mask)
    y = jax.jit(module.apply)(variables, X, mask)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def layer_norm(x, params):
    x = np.asarray(x, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return jnp.asarray(x * params["scale"] + params["bias"], jnp.float32)


def test_the_block_by_its_formula(with_parameters):
    module = TransformerBlock(2, mlp_ratio=1.5)
    variables = with_parameters(module, X)
    p = variables["params"]
    assert p["mlp1"]["kernel"].shape == (6, 9)
    x = X + attend(layer_norm(X, p["norm1"]), p["attention"], 2, MASK)
    expected = x + dense(nn.gelu(dense(layer_norm(x, p["norm2"]), p["mlp1"])), p["mlp2"])
    y = jax.jit(module.apply)(variables, X, MASK)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_dropout_only_while_training(with_parameters):
    module = TransformerBlock(2, dropout_rate=0.5)
    variables = with_parameters(module, X)
    run = jax.jit(lambda key: module.apply(variables, X, train=True, rngs={"dropout": key}))
    one, same, other = (run(jax.random.key(i)) for i in (0, 0, 1))
    still = jax.jit(module.apply)(variables, X)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one, still)
    without = jax.jit(partial(TransformerBlock(2).apply, train=True))(variables, X)
    np.testing.assert_array_equal(still, without)


def test_dtypes(keeps_dtypes):
    keeps_dtypes(partial(MultiHeadAttention, 2), X)


def test_the_block_keeps_the_wider_dtype_of_its_sum():
    for x, expected in ((X, "float32"), (X.astype(jnp.bfloat16), "bfloat16")):
        block = TransformerBlock(2, dtype=jnp.bfloat16)
        y, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
        assert jnp.result_type(y) == expected
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}


@pytest.mark.parametrize(("heads", "nearest"), [(4, 3), (5, 6), (100, 6), (0, 1)])
def test_heads_that_do_not_divide(heads, nearest):
    text = rf"got num_heads={heads} for 6 features.*Did you mean num_heads={nearest}\?"
    with pytest.raises(ConfigError, match=f"^MultiHeadAttention: {text}"):
        jax.eval_shape(TransformerBlock(heads).init, jax.random.key(0), X)
