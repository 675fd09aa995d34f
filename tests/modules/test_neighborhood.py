"""Attention layers over images: with windows as large as these they are those over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import rotary_angles
from biojax.modules import (
    AxialAttention,
    MultiHeadAttention,
    NeighborhoodAttention,
    NeighborhoodBlock,
    TransformerBlock,
)

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 8)), jnp.float32)


def of(layer, variables, x, **options) -> jax.Array:
    return jnp.asarray(layer.apply(variables, x, **options))


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_an_image_that_the_window_holds(with_parameters):
    tokens, angles = X.reshape(2, 12, 8), rotary_angles((3, 4), 4, base=5.0)
    layer = NeighborhoodAttention(2, kernel_size=9, base=5.0)
    variables = with_parameters(layer, X)
    want = of(MultiHeadAttention(2), variables, tokens, angles=angles)
    close(of(layer, variables, X).reshape(tokens.shape), want)
    still = of(NeighborhoodAttention(2, kernel_size=(3, 4), rotary=False), variables, X)
    close(still.reshape(tokens.shape), of(MultiHeadAttention(2), variables, tokens))


def test_a_block_is_that_of_transformers(with_parameters):
    fields = {"mlp_ratio": 2.0, "mlp": "swiglu", "layer_scale": 0.1}
    block = NeighborhoodBlock(2, kernel_size=4, base=5.0, **fields)
    variables = with_parameters(block, X)
    want = of(
        TransformerBlock(2, **fields),
        variables,
        X.reshape(2, 12, 8),
        angles=rotary_angles((3, 4), 4, base=5.0),
    )
    close(of(block, variables, X), want.reshape(X.shape))


def test_a_voxel_sees_its_neighbourhood_and_no_more(with_parameters):
    layer = NeighborhoodAttention(2, kernel_size=(3, 1), dilation=(1, 2), is_causal=(True, False))
    variables = with_parameters(layer, X)
    moved = jax.jit(layer.apply)(variables, X.at[0, 1, 2].add(1.0))
    changed = np.any(np.asarray(moved != jax.jit(layer.apply)(variables, X)), axis=-1)
    assert np.argwhere(changed).tolist() == [[0, 1, 2], [0, 2, 2]]


def test_lines_along_an_axis(with_parameters):
    layer = AxialAttention(2, 1, is_causal=True, base=5.0)
    variables = with_parameters(layer, X)
    columns = jnp.moveaxis(X, 1, 2)
    tokens, angles = columns.reshape(8, 3, 8), rotary_angles(3, 4, base=5.0)
    want = of(MultiHeadAttention(2, is_causal=True), variables, tokens, angles=angles)
    got = jnp.moveaxis(of(layer, variables, X), 1, 2)
    close(got, want.reshape(columns.shape))


def test_branches_that_are_left_out(with_parameters):
    block = NeighborhoodBlock(2, kernel_size=3, drop_path_rate=1.0, dropout_rate=0.5)
    variables = with_parameters(block, X)
    y = of(block, variables, X, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(y, X)


def test_dtypes(keeps_dtypes):
    keeps_dtypes(lambda **kind: NeighborhoodAttention(2, **kind), X)
    keeps_dtypes(lambda **kind: AxialAttention(2, 1, **kind), X)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="NeighborhoodAttention: got num_heads=3 for 8 features"):
        NeighborhoodAttention(3).init(jax.random.key(0), X)
    with pytest.raises(ConfigError, match=r"AxialAttention.*mean num_heads=4\?"):
        AxialAttention(5, 1).init(jax.random.key(0), X)
    with pytest.raises(ShapeError, match=r"AxialAttention.*mean axis=2\?"):
        AxialAttention(2, 3).init(jax.random.key(0), X)
    with pytest.raises(ConfigError, match="head_size=2 for 2 axes"):
        NeighborhoodAttention(4).init(jax.random.key(0), X)
