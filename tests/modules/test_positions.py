"""Learned positions, on their own grid and on others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ShapeError
from biojax.kernels import resize
from biojax.modules import LearnedPositions

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 5)), jnp.float32)


def test_each_place_has_its_vector(with_parameters):
    variables = with_parameters(LearnedPositions(), X)
    table = variables["params"]["table"]
    assert table.shape == (3, 4, 5)
    np.testing.assert_array_equal(LearnedPositions().apply(variables, X), X + table)


def test_other_grids_read_between_the_places(with_parameters):
    variables = with_parameters(LearnedPositions(), X)
    larger = jnp.ones((2, 6, 7, 5))
    expected = larger + resize(variables["params"]["table"][None], (6, 7))
    y = LearnedPositions().apply(variables, larger)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    # Twice as fine, the means of two neighbours are those of the coarse grid, but for the border.
    ramp = {"params": {"table": jnp.arange(4.0)[:, None]}}
    y = LearnedPositions().apply(ramp, jnp.zeros((1, 8, 1)))
    np.testing.assert_allclose(y[0, 1:-1, 0], np.arange(0.25, 3, 0.5), rtol=1e-6)


def test_the_grid_may_be_given(with_parameters):
    module = LearnedPositions((6, 2))
    variables = with_parameters(module, X)  # of another grid
    table = variables["params"]["table"]
    assert table.shape == (6, 2, 5)
    np.testing.assert_allclose(module.apply(variables, X), X + resize(table[None], (3, 4)))
    with pytest.raises(ShapeError, match=r"tokens \(2, 3, 4, 5\) for positions \(6, 5\)"):
        jax.eval_shape(LearnedPositions((6,)).init, jax.random.key(0), X)


def test_other_ranks_and_channels_are_refused(with_parameters):
    variables = with_parameters(LearnedPositions(), X)
    for x in (X[..., :4], X[:, 0]):
        with pytest.raises(ShapeError, match=r"for positions \(3, 4, 5\)"):
            LearnedPositions().apply(variables, x)


def test_dtypes(keeps_dtypes):
    keeps_dtypes(LearnedPositions, X)


def test_positions_start_small():
    table = LearnedPositions().init(jax.random.key(0), jnp.zeros((1, 30, 30, 4)))["params"]["table"]
    np.testing.assert_allclose(np.std(table), 0.02, rtol=0.05)
