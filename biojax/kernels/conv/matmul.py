"""Transposed convolution whose kernel equals its strides: a matrix product, then depth to space.

No two outputs overlap, so every input pixel becomes a block of k outputs by one matrix
(c -> k * f), and the blocks are put side by side. Its gradient is a matrix product too, where
the gradient of XLA's dilated form is many times slower.
"""

import jax.numpy as jnp

from biojax.errors import UnsupportedError
from biojax.kernels.conv.geometry import Geometry
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import left_to_compiler
from biojax.typing import Array

__all__ = ["conv_transpose", "fits"]


def fits(w: Array, geometry: Geometry) -> bool:
    """One group, kernel equal to strides, no dilation, and neither cropped nor padded."""
    kernel = w.shape[:-2]
    whole = tuple((k - 1, k - 1) for k in kernel)
    undilated = all(d == 1 or k == 1 for d, k in zip(geometry.dilation, kernel, strict=True))
    alone = geometry.groups == 1 and geometry.pads == whole
    return alone and undilated and kernel == geometry.strides


def conv_transpose(x: Array, w: Array, geometry: Geometry) -> Array:
    """y[s * i + r] = x[i] w[s - 1 - r], for every r in 0 .. s - 1 along each axis."""
    if not fits(w, geometry):
        raise UnsupportedError(
            "conv_transpose",
            f"implementation='matmul' for kernel {w.shape[:-2]}, strides {geometry.strides}, "
            f"dilation {geometry.dilation} and {geometry.groups} groups",
            "kernel equal to strides, no dilation, one group, padding 'SAME' or 'VALID'",
            "Use implementation='xla', or None to choose",
        )
    return left_to_compiler(lambda x, w: _blocks(x, w, geometry), x, w)


def _blocks(x: Array, w: Array, geometry: Geometry) -> Array:
    b, *spatial, c = x.shape
    rank, kernel, f = len(spatial), w.shape[:-2], w.shape[-1]
    flipped = jnp.flip(w, range(rank))
    matrix = jnp.moveaxis(flipped, -2, 0).reshape(c, -1)
    blocks = jnp.matmul(
        x, matrix, precision=geometry.precision, preferred_element_type=accumulator(x.dtype)
    ).astype(x.dtype)
    blocks = blocks.reshape(b, *spatial, *kernel, f)
    # (b, i0, i1, i2, r0, r1, r2, f) -> (b, i0, r0, i1, r1, i2, r2, f)
    order = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
    blocks = blocks.transpose(0, *order, 2 * rank + 1)
    out = [n * k for n, k in zip(spatial, kernel, strict=True)]
    return blocks.reshape(b, *out, f)
