import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """Most of the time of these tests is compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
