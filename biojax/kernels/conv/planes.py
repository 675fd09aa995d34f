"""3-D convolution as a sum of 2-D convolutions over the kernel's depth.

XLA has a fast 2-D convolution on CPU and a slow 3-D one. Planes are folded into the batch, so one
2-D convolution per depth of the kernel does the whole volume: y = sum_i conv2d(x[z + i], w[i]).
With few channels the depths are stacked as channels instead, and one 2-D convolution is enough:
the copies cost less than the passes that they save, above all in the gradient.
"""

import jax.numpy as jnp
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv import xla
from biojax.kernels.conv.geometry import Geometry, out_size, pad
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["conv"]

# Stacking wins up to here, float32 on two CPU cores, forward and backward (32^3, 3x3x3).
FEW_CHANNELS = 16


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any strides, dilation and padding; no groups."""
    if x.ndim != 5 or geometry.groups != 1:
        raise UnsupportedError(
            "conv",
            f"implementation='planes' for {x.ndim - 2}-D with {geometry.groups} groups",
            "3-D and one group",
            "Use implementation='xla', or None to choose",
        )
    b, *_, c = x.shape
    kd, kh, kw, _, f = w.shape
    stride, dilation, pads = geometry.strides[0], geometry.dilation[0], geometry.pads
    depth = out_size(x.shape[1], pads[0], (kd - 1) * dilation + 1, stride)
    x = pad(x, (pads[0], (0, 0), (0, 0)))
    flat = geometry._replace(
        strides=geometry.strides[1:], pads=pads[1:], dilation=geometry.dilation[1:]
    )

    def planes(i: int) -> Array:
        """The planes that depth i of the kernel sees, folded into the batch."""
        start = i * dilation
        taken = lax.slice_in_dim(x, start, start + (depth - 1) * stride + 1, stride, axis=1)
        return taken.reshape(b * depth, *taken.shape[2:])

    if c <= FEW_CHANNELS:
        stacked = jnp.concatenate([planes(i) for i in range(kd)], axis=-1)
        kernel = jnp.moveaxis(w, 0, 2).reshape(kh, kw, kd * c, f)
        y = xla.conv(stacked, kernel, flat)
    else:
        total = jnp.zeros((), accumulator(x.dtype))
        for i in range(kd):
            total += xla.accumulated(planes(i), w[i], flat)
        y = total.astype(x.dtype)
    return y.reshape(b, depth, *y.shape[1:])
