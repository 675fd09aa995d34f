"""Models with known parameters, and programs that compile quickly."""

import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def with_parameters() -> Callable:
    """The model's variables for such an input, random, without compiling its initialisers."""

    def fill(model, x, **options):
        def leaf(path, value):
            rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
            fan_in = np.prod(value.shape[:-1]) if value.ndim > 1 else 4
            return jnp.asarray(rng.standard_normal(value.shape) / np.sqrt(fan_in), value.dtype)

        shapes = jax.eval_shape(functools.partial(model.init, **options), jax.random.key(0), x)
        return jax.tree_util.tree_map_with_path(leaf, dict(shapes))

    return fill


@pytest.fixture(scope="session")
def quick_jit(quickly) -> Callable:
    """`jax.jit` without the compiler's optimisations: each program here runs once or twice."""
    return functools.partial(jax.jit, compiler_options=quickly)
