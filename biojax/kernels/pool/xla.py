"""Pooling by XLA's own window reductions."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.conv.geometry import Pads
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["avg_pool", "max_pool"]


def max_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """`reduce_window` with max."""
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.iinfo(x.dtype).min
    return _reduce(x, np.asarray(lowest, x.dtype), lax.max, window, strides, pads)


def avg_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """`reduce_window` with a sum, over how many pixels each window holds."""
    zero = np.zeros((), accumulator(x.dtype))
    total = _reduce(x.astype(zero.dtype), zero, lax.add, window, strides, pads)
    if any(map(any, pads)):
        ones = jnp.ones((1, *x.shape[1:-1], 1), zero.dtype)
        count = _reduce(ones, zero, lax.add, window, strides, pads)
    else:
        count = np.prod(window)
    return (total / count).astype(x.dtype)


def _reduce(x: Array, init, operator, window, strides, pads) -> Array:
    return lax.reduce_window(
        x, init, operator, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
    )
