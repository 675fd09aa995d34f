"""Pooling by XLA's own window reductions."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.conv.geometry import Pads, cropped, out_size
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import left_to_compiler
from biojax.typing import Array

__all__ = ["avg_pool", "counts", "max_pool"]


def max_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """`reduce_window` with max."""
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.iinfo(x.dtype).min
    return _reduce(x, np.asarray(lowest, x.dtype), lax.max, window, strides, pads)


def avg_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """`reduce_window` with a sum, over how many pixels each window holds."""
    zero = np.zeros((), accumulator(x.dtype))
    total = _reduce(x.astype(zero.dtype), zero, lax.add, window, strides, pads)
    for count in counts(x.shape[1:-1], window, strides, pads):
        total = total / count.astype(zero.dtype)
    return total.astype(x.dtype)


def counts(
    spatial: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...], pads: Pads
) -> list[np.ndarray]:
    """How many pixels each window holds along each axis, in shapes that broadcast to (b, *out, c).

    Where nothing is padded, all in one number: XLA would fold a whole array of them slowly.
    """
    if not any(map(any, pads)):
        return [np.asarray(math.prod(window))]
    numbers = []
    for axis, each in enumerate(zip(spatial, pads, window, strides, strict=True)):
        n, (before, _), k, s = each
        start = np.arange(out_size(*each)) * s - before
        held = np.minimum(start + k, n) - np.maximum(start, 0)
        numbers.append(held.reshape(-1, *[1] * (len(spatial) - axis)))
    return numbers


def _reduce(x: Array, init, operator, window, strides, pads) -> Array:
    def run(x: Array) -> Array:
        image, around = cropped(x, pads)  # with which the gradient of a maximum fails in JAX
        return lax.reduce_window(
            image, init, operator, (1, *window, 1), (1, *strides, 1), ((0, 0), *around, (0, 0))
        )

    return left_to_compiler(run, x)
