"""Depthwise convolution as sums of shifted images, one multiply-add for each tap of the kernel.

y[z, y, x, c] = sum over i, j, k of  x[z + i, y + j, x + k, c] * w[i, j, k, c]

There is no matrix product in it, so the sum is written out for the compiler, which makes vector
instructions of it. Channels are split into `LANES` at a time, with the width inside of them: then
the weights of a plane stay in registers along a row, and each multiply-add loads one operand
instead of two.

The weights' gradient is a sum of the same kind, with rows of the image and of the outputs'
gradient in the places of image and kernel: a reduction for each tap would read everything anew.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv.blocked import Method, convolve, lifted
from biojax.kernels.conv.blocks import varying
from biojax.kernels.conv.geometry import Geometry, out_size, pad
from biojax.typing import Array

__all__ = ["METHOD", "conv", "fits"]

LANES = 8
# Sums of many more terms the compiler leaves scalar (jaxlib 0.10.2: 81 are vectors, 125 are not),
# and into sums of many fewer it puts the reading of a block, which has the same effect.
MAX_TERMS = 64
ROWS = 16


def fits(w: Array, geometry: Geometry) -> bool:
    """One channel in and one out for each group."""
    return w.shape[-2] == 1 and w.shape[-1] == geometry.groups


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any kernel, strides, dilation and padding."""
    if not fits(w, geometry):
        raise UnsupportedError(
            "conv",
            f"implementation='depthwise' for a kernel {w.shape} in {geometry.groups} groups",
            "one input and one output channel for each group",
            "Use implementation='xla', or None to choose",
        )
    y = convolve(METHOD, *lifted(x, w, geometry))
    return y.reshape(y.shape[0], *y.shape[5 - x.ndim + 1 :])


def _forward(window: Array, w: Array, geometry: Geometry) -> Array:
    (kd, kh, kw, _, c), (sd, sh, sw), (dd, dh, dw) = w.shape, geometry.strides, geometry.dilation
    lanes = LANES if c % LANES == 0 else c
    window = pad(window, geometry.pads)
    b, *sizes, _ = window.shape
    steps = zip(sizes, (kd, kh, kw), geometry.dilation, geometry.strides, strict=True)
    depth, height, width = (out_size(n, (0, 0), (k - 1) * d + 1, s) for n, k, d, s in steps)
    split = window.reshape(b, *sizes, c // lanes, lanes).swapaxes(3, 4)  # (b, z, y, c', x, lanes)
    w = w.reshape(kd, kh, kw, c // lanes, 1, lanes)

    def taken(image: Array, first: Array | int, count: int, stride: int, axis: int) -> Array:
        """Every stride-th slice that one tap sees along an axis."""
        image = lax.dynamic_slice_in_dim(image, first, (count - 1) * stride + 1, axis)
        return lax.slice_in_dim(image, 0, None, stride, axis)

    def terms(i: Array | int, rows: Sequence[Array | int]) -> Array:
        """The sum over some rows of depth i of the kernel."""
        image = taken(split, i * dd, depth, sd, axis=1)
        parts = []
        for j in rows:
            row = taken(image, j * dh, height, sh, axis=2)
            parts += [taken(row, k * dw, width, sw, axis=4) * w[i, j, k] for k in range(kw)]
        return sum(parts[1:], start=parts[0])

    if kd * kh * kw <= MAX_TERMS:
        y = sum((terms(i, range(kh)) for i in range(1, kd)), start=terms(0, range(kh)))
    elif kh * kw <= 2 * MAX_TERMS:
        steps = jnp.arange(1, kd)
        y = lax.scan(lambda y, i: (y + terms(i, range(kh)), None), terms(0, range(kh)), steps)[0]
    else:
        steps = jnp.arange(1, kd * kh)
        y = lax.scan(lambda y, i: (y + terms(i // kh, [i % kh]), None), terms(0, [0]), steps)[0]
    return y.swapaxes(3, 4).reshape(b, depth, height, width, c)


def _gradient(window: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    """For each column of the kernel, products of rows, added up over `ROWS` rows at a time."""
    (kd, kh, kw, _, c), (sd, sh, sw), (dd, dh, dw) = kernel, geometry.strides, geometry.dilation
    window = pad(window, geometry.pads)
    b, depth, height, width, _ = dy.shape
    rows = min(ROWS, height)
    groups = -(-height // rows)
    span_d, span_h = (kd - 1) * dd + 1, (kh - 1) * dh + 1
    extra = groups * rows - height
    dy = jnp.pad(dy, ((0, 0), (0, 0), (0, extra), (0, 0), (0, 0)))
    window = jnp.pad(window, ((0, 0), (0, 0), (0, extra * sh), (0, 0), (0, 0)))

    def step(totals: tuple[Array, ...], i: Array):
        n, z, y = i // (depth * groups), i // groups % depth, i % groups * rows
        size = (1, span_d, (rows - 1) * sh + span_h, *window.shape[3:])
        x = lax.dynamic_slice(window, (n, z * sd, y * sh, 0, 0), size)[0, ::dd]
        d = lax.dynamic_slice(dy, (n, z, y, 0, 0), (1, 1, rows, width, c))[0, 0]

        def column(k: int) -> Array:
            """Over every depth and row of the kernel, the sum of rows of x times rows of dy."""
            part = lax.slice_in_dim(x, k * dw, k * dw + (width - 1) * sw + 1, sw, axis=2)
            terms = [part[:, r * sh : r * sh + span_h : dh] * d[r] for r in range(rows)]
            return sum(terms[1:], start=terms[0])

        return tuple(total + column(k) for k, total in enumerate(totals)), None

    zero = varying(jnp.zeros((kd, kh, width, c), dy.dtype), window, dy)
    totals = (zero,) * kw
    totals = lax.scan(step, totals, jnp.arange(b * depth * groups))[0]
    return jnp.stack([total.sum(2) for total in totals], axis=2)[:, :, :, None]


def _scratch(kernel: tuple[int, ...]) -> int:
    return 4 * kernel[-1]


METHOD = Method(lambda w: w, _forward, _gradient, _scratch)
