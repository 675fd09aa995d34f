"""Resampling by tables: each output gathers the few pixels that it is made of.

The gradient gathers too: each pixel of x reads the outputs that it has a part in, where the
derivative of a gather would scatter.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import left_to_compiler
from biojax.kernels.resize import matmul
from biojax.kernels.resize.weights import Weights, axis_weights
from biojax.typing import Array

__all__ = ["resize"]

# Longer sums, in gradients of images enlarged a lot, are left to a product of matrices.
_MOST_TAPS = 32


def resize(x: Array, size: tuple[int, ...], method: str) -> Array:
    """One axis at a time, those that become smaller first."""
    return left_to_compiler(lambda x: _resize(x, size, method), x)


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def _resize(x: Array, size: tuple[int, ...], method: str) -> Array:
    axes = sorted(range(1, x.ndim - 1), key=lambda axis: size[axis - 1] / x.shape[axis])
    y = x if method == "nearest" else x.astype(accumulator(x.dtype))
    for axis in axes:
        if size[axis - 1] != x.shape[axis]:
            y = _along(y, axis, size[axis - 1], method)
    return y.astype(x.dtype)


def _along(x: Array, axis: int, m: int, method: str) -> Array:
    return _resize_axis(x, axis, x.shape[axis], m, method)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _resize_axis(x: Array, axis: int, n: int, m: int, method: str) -> Array:
    return _gathered(x, axis, axis_weights(n, m, method))


def _resize_axis_fwd(x, axis, n, m, method):
    return _gathered(x, axis, axis_weights(n, m, method)), None


def _resize_axis_bwd(axis, n, m, method, _, dy):
    weights = axis_weights(n, m, method).adjoint
    wide = dy.astype(accumulator(dy.dtype))
    run = _gathered if weights.pixel.shape[1] <= _MOST_TAPS else matmul.along
    return (run(wide, axis, weights).astype(dy.dtype),)


_resize_axis.defvjp(_resize_axis_fwd, _resize_axis_bwd)


def _gathered(x: Array, axis: int, weights: Weights) -> Array:
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    parts = []
    for pixel, weight in zip(weights.pixel.T, weights.weight.T, strict=True):
        part = jnp.take(x, pixel, axis=axis, mode="clip")
        if np.any(weight != 1):
            part = part * weight.astype(x.dtype).reshape(shape)
        parts.append(part)
    return sum(parts[1:], parts[0])
