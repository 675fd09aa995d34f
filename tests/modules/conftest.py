"""What every module must keep."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(scope="session")
def keeps_dtypes() -> Callable:
    """Checks that `dtype` rules the outputs, and `param_dtype` the parameters."""

    def dtypes(module, x) -> tuple[set[str], set[str]]:
        """Of the parameters and of the outputs."""
        y, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        parts = (jax.tree.leaves(variables), jax.tree.leaves(y))
        parameters, outputs = ({str(leaf.dtype) for leaf in part} for part in parts)
        return parameters, outputs

    def check(make: Callable, x) -> None:
        assert dtypes(make(), x) == ({"float32"}, {"float32"})
        assert dtypes(make(dtype=jnp.bfloat16), x) == ({"float32"}, {"bfloat16"})
        assert dtypes(make(param_dtype=jnp.bfloat16), x) == ({"bfloat16"}, {"float32"})
        narrow = x.astype(jnp.bfloat16)
        assert dtypes(make(), narrow) == ({"float32"}, {"float32"})
        assert dtypes(make(param_dtype=jnp.bfloat16), narrow) == ({"bfloat16"}, {"bfloat16"})

    return check
