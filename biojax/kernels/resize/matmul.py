"""Resampling by a dense matrix for each axis, for hardware that multiplies better than it reads."""

import jax.numpy as jnp
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import left_to_compiler
from biojax.kernels.resize.weights import Weights, axis_weights
from biojax.typing import Array

__all__ = ["along", "fits", "resize"]


def fits(x: Array) -> bool:
    """Floating numbers: large labels would not survive a product."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def resize(x: Array, size: tuple[int, ...], method: str) -> Array:
    """One axis at a time, those that become smaller first."""
    if not fits(x):
        raise UnsupportedError(
            "resize",
            f"implementation='matmul' for x of {x.dtype}",
            "a floating dtype",
            "Use implementation='gather', or None to choose",
        )
    return left_to_compiler(lambda x: _resize(x, size, method), x)


def _resize(x: Array, size: tuple[int, ...], method: str) -> Array:
    axes = sorted(range(1, x.ndim - 1), key=lambda axis: size[axis - 1] / x.shape[axis])
    y = x.astype(accumulator(x.dtype))
    for axis in axes:
        if size[axis - 1] != x.shape[axis]:
            y = along(y, axis, axis_weights(x.shape[axis], size[axis - 1], method))
    return y.astype(x.dtype)


def along(x: Array, axis: int, weights: Weights) -> Array:
    """The weights' matrix times every line of x along the axis."""
    matrix = weights.matrix.astype(x.dtype)
    y = jnp.tensordot(matrix, x, ((1,), (axis,)), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(y, 0, axis)
