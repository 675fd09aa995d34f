"""Block-diagonal matrices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import block_diag

from biojax.errors import ConfigError
from biojax.modules import BlockDense

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6)), jnp.float32)


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 6])
def test_it_is_one_matrix_with_zeros(num_blocks, with_parameters):
    module = BlockDense(num_blocks)
    variables = with_parameters(module, X)
    p = variables["params"]
    expected = X @ block_diag(*p["kernel"]) + p["bias"]
    np.testing.assert_allclose(module.apply(variables, X), expected, rtol=1e-5, atol=1e-5)


def test_blocks_start_as_wide_as_their_inputs_ask():
    kernel = BlockDense(4).init(jax.random.key(0), jnp.zeros((1, 256)))["params"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), 64**-0.5, rtol=0.05)


def test_dtypes(keeps_dtypes):
    keeps_dtypes(partial(BlockDense, 2), X)


def test_blocks_must_divide_the_channels():
    for num_blocks, nearest in ((4, 3), (0, 1)):
        with pytest.raises(ConfigError, match=f"for 6 channels.*mean num_blocks={nearest}"):
            jax.eval_shape(BlockDense(num_blocks).init, jax.random.key(0), X)
