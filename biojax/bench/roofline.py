"""What this machine can do at best, measured in the process that is being timed."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from biojax.bench.timing import repeat
from biojax.typing import Dtype

__all__ = ["Ceilings", "ceilings", "measure_copy", "measure_matmul"]


class Ceilings(NamedTuple):
    """The two roofs: operations and bytes a second."""

    flops_per_second: float
    bytes_per_second: float


def ceilings(dtype: Dtype) -> Ceilings:
    """Both ceilings, the matrix product's in `dtype`; each is measured once per process."""
    return Ceilings(_matmul(jnp.dtype(dtype).name), _copy())


def measure_matmul(dtype: Dtype, size: int = 2048) -> float:
    """FLOP/s of the product of two square matrices: the best of several.

    Args:
      dtype: of the matrices.
      size: rows and columns.
    """
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    return 2 * size**3 / _best(lambda: jax.block_until_ready(product(a, a)))


def measure_copy(size: int = 2**25) -> float:
    """Bytes a second, read and written, from one float32 array to another: the best of several.

    The target is a buffer that was written before (a donated one): memory fresh from the system
    is cleared page by page at first touch, which would be several times slower.

    Args:
      size: elements of the array, 2**25 being 128 MiB.
    """
    arrays = [jnp.zeros(size, jnp.float32), jnp.ones(size, jnp.float32)]
    add = jax.jit(lambda x, y: x + 1, donate_argnums=1, keep_unused=True).lower(*arrays).compile()

    def run() -> None:
        x, y = arrays
        arrays[:] = [jax.block_until_ready(add(x, y)), x]

    return 8 * size / _best(run)


def _best(run) -> float:
    run()
    return min(repeat(run, 0.5))


_matmul = functools.cache(measure_matmul)
_copy = functools.cache(measure_copy)
