"""Relative biases against the index of every pair, and their tables at other sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ShapeError
from biojax.kernels import relative_bias, resize_relative_table


def table_of(*window: int, heads: int = 2) -> np.ndarray:
    rows = np.prod([2 * w - 1 for w in window])
    return np.random.default_rng(0).standard_normal((rows, heads)).astype(np.float32)


@pytest.mark.parametrize("window", [(3,), (2, 3), (2, 1, 3)])
def test_every_pair_has_the_number_of_its_offset(window):
    table, places = table_of(*window), np.array(list(np.ndindex(*window)))
    offset = places[:, None] - places[None] + np.array(window) - 1
    row = np.ravel_multi_index(tuple(np.moveaxis(offset, -1, 0)), [2 * w - 1 for w in window])
    expected = np.moveaxis(table[row], -1, 0)
    np.testing.assert_array_equal(relative_bias(jnp.asarray(table), window), expected)


def test_gradients_count_pairs_and_scatter_nothing(scatters):
    table = jnp.asarray(table_of(2, 3))
    gradient = jax.grad(lambda table: relative_bias(table, (2, 3)).sum())
    pairs = np.outer([1, 2, 1], [1, 2, 3, 2, 1]).ravel()
    np.testing.assert_array_equal(gradient(table), np.stack([pairs] * 2, -1))
    assert not scatters(gradient, table)


def test_tables_for_other_windows():
    ramp = jnp.arange(-2.0, 3.0)[:, None] + 10 * jnp.arange(-1.0, 2.0)
    table = ramp.T.reshape(-1, 1)  # of windows of 2 x 3, linear in both offsets
    np.testing.assert_array_equal(resize_relative_table(table, (2, 3), (2, 3)), table)
    wide = resize_relative_table(table, (2, 3), (2, 6)).reshape(3, 11)
    np.testing.assert_allclose(wide[1, 1:-1], np.arange(-4, 5) * 5 / 11, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wide[2] - wide[0], 20, rtol=1e-5)


def test_what_is_refused():
    for function in (relative_bias, lambda *args: resize_relative_table(*args, (2, 2))):
        with pytest.raises(ShapeError, match=r"table of shape \(15, 2\).*\(9, n\), one row"):
            function(jnp.asarray(table_of(2, 3)), (2, 2))
