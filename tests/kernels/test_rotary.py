"""Rotary positions by their formula, and what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import rotary, rotary_angles

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 3, 14)), jnp.float32)


@pytest.mark.parametrize("grid", [5, (3, 2), (2, 3, 4)])
def test_angles_by_the_formula(grid):
    sizes = (grid,) if isinstance(grid, int) else grid
    head_size = 12 * len(sizes) + 1  # the odd channel stays
    angles = np.asarray(rotary_angles(grid, head_size, base=100.0, num_prefix=2))
    assert angles.dtype == np.float32
    same = rotary_angles(np.array(grid)[()], head_size, base=100.0, num_prefix=2)
    np.testing.assert_array_equal(same, angles)
    np.testing.assert_array_equal(angles[:2], 0)
    for p, place in enumerate(np.ndindex(*sizes)):
        expected = [at / 100 ** (i / 6) for at in place for i in range(6)]
        np.testing.assert_allclose(angles[2 + p], expected, rtol=1e-6)


def test_pairs_are_turned_like_complex_numbers():
    angles = rotary_angles((3, 2), 12, num_prefix=1)
    pairs = np.asarray(X)[..., :12].reshape(2, 7, 3, 6, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * np.asarray(angles))[:, None]
    y = np.asarray(rotary(X, angles))
    expected = np.stack([turned.real, turned.imag], axis=-1).reshape(2, 7, 3, 12)
    np.testing.assert_allclose(y[..., :12], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(y[..., 12:], X[..., 12:])  # beyond the angles
    np.testing.assert_array_equal(y[:, 0], X[:, 0])  # the class token
    np.testing.assert_array_equal(y[:1], rotary(X[:1], angles[None]))
    narrow = rotary(X.astype(jnp.bfloat16), angles)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), y, rtol=1e-2, atol=1e-2)


def test_products_depend_on_the_distance_alone():
    q, k = X[:1, :1], X[:1, 1:2]
    angles = rotary_angles((4, 5), 14)

    def product(i, j):
        places = [angles[at[0] * 5 + at[1]][None] for at in (i, j)]
        return np.sum(rotary(q, places[0]) * rotary(k, places[1]))

    expected = product((0, 1), (2, 0))
    for shift in ((1, 0), (0, 3), (1, 4)):
        i, j = np.add((0, 1), shift), np.add((2, 0), shift)
        if max(i[1], j[1]) < 5:
            np.testing.assert_allclose(product(i, j), expected, rtol=1e-4)
    assert abs(product((0, 0), (2, 0)) - expected) > 1e-2


@pytest.mark.parametrize("shape", [(6, 7), (7, 8), (3, 7, 2), (), (7,)])
def test_angles_that_do_not_fit(shape):
    with pytest.raises(ShapeError, match=r"^rotary: got angles .*\(7, m\) or \(2, 7, m\).* to 7"):
        jax.eval_shape(rotary, X, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[None], r"x of float32 and shape \(1, 2, 7, 3, 14\)\..*x.reshape\(b, t, n, k\)"),
        (X.astype(int), "x of int32"),
        (X.tolist(), r"x of list\. Expected an array"),
    ],
)
def test_heads_that_are_not_of_tokens(x, message):
    with pytest.raises(ShapeError, match=rf"^rotary: got {message}"):
        rotary(x, jnp.zeros((7, 7)))


def test_grids_and_heads_that_do_not_fit():
    for grid in ((), (2, 0), 2.0):
        with pytest.raises(ShapeError, match="at least one axis, each with at least one token"):
            rotary_angles(grid, 8)
    with pytest.raises(ConfigError, match=r"head_size=5 for 3 axes.*Did you mean head_size=6\?"):
        rotary_angles((2, 2, 2), 5)
