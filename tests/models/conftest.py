"""Programs that compile quickly."""

import functools
from collections.abc import Callable

import jax
import pytest


@pytest.fixture(scope="session")
def quick_jit(quickly) -> Callable:
    """`jax.jit` without the compiler's optimisations: each program here runs once or twice."""
    return functools.partial(jax.jit, compiler_options=quickly)
