"""What is left out, and what is scaled."""

import jax
import jax.numpy as jnp
import numpy as np

from biojax.modules import DropPath, LayerScale


def test_whole_images_are_left_out_and_the_mean_stays():
    x = jnp.ones((2000, 2, 1, 3))
    y = DropPath(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    each = np.asarray(y).reshape(2000, -1)
    np.testing.assert_allclose(each, np.repeat(each[:, :1], 6, axis=1))
    assert set(np.unique(each)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(each.mean(), 1, atol=0.05)
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x), x)
    np.testing.assert_array_equal(DropPath().apply({}, x, train=True), x)


def test_scales(with_parameters, keeps_dtypes):
    x = jnp.ones((2, 3))
    scale = LayerScale(0.5).init(jax.random.key(0), x)["params"]["scale"]
    np.testing.assert_array_equal(scale, np.full(3, 0.5, np.float32))
    variables = {"params": {"scale": jnp.arange(3.0)}}
    np.testing.assert_array_equal(LayerScale().apply(variables, x), [[0, 1, 2]] * 2)
    keeps_dtypes(LayerScale, x)
