"""Grouped convolution: several groups at a time, as one convolution by planes.

Groups of a few channels leave most of a vector instruction empty. So neighbours are merged until
they have `CHANNELS` channels together, and the kernel of the merged group holds theirs on its
diagonal and zeros elsewhere:

y[b, o, (m, f)] = sum over k, n, c of  x[b, o + k, (n, c)] * (w[k, c, m, f] if n == m else 0)

for groups n and m of one merged group. Multiplying by those zeros costs less than it gains.
"""

from functools import cache

import jax.numpy as jnp
from jax import lax

from biojax.kernels.conv import blocked, planes
from biojax.kernels.conv.blocked import Method
from biojax.kernels.conv.geometry import Geometry
from biojax.typing import Array

__all__ = ["conv", "method"]

# The least of input and output channels of merged groups; float32 on two CPU cores, forward and
# backward (32^3 and 128^2, 1 to 16 channels in a group): 16 is as fast forward, and slower back.
CHANNELS = 8
# Merged groups whose code is written out, before it becomes a loop: that saves the copies between.
UNROLLED = 8


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any groups, strides, dilation and padding."""
    return blocked.conv(method(geometry.groups), x, w, geometry)


@cache
def method(groups: int) -> Method:
    """For kernels (kd, kh, kw, c // groups, f)."""

    def merged(kernel: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """How many merged groups there are, and the kernel's shape for one of them."""
        *taps, c, f = kernel
        each = min(groups, -(-CHANNELS // max(1, min(c, f // groups))))
        return -(-groups // each), (*taps, each * c, each * f // groups)

    def prepare(w: Array) -> Array:
        """To (parts, kd, kh, kw, c of one, f of one)."""
        parts, (*_, c, f) = merged(w.shape)
        group = jnp.arange(f) // (w.shape[-1] // groups)
        w, each = _apart(w, parts, f), c // w.shape[-2]
        # Not a product with a diagonal: the gradient's sum, of rank 8, crashes in jaxlib 0.10.2.
        return jnp.concatenate([jnp.where(group == i, w, 0) for i in range(each)], axis=-2)

    def forward(window: Array, w: Array, geometry: Geometry) -> Array:
        parts, (*_, c, f) = w.shape[0], w.shape
        images, one_group = _apart(window, parts, c), geometry._replace(groups=1)

        def part(_, operands: tuple[Array, Array]) -> tuple[None, Array]:
            return None, planes.METHOD.forward(*operands, one_group)

        y = jnp.moveaxis(lax.scan(part, None, (images, w), unroll=UNROLLED)[1], 0, -2)
        return y.reshape(*y.shape[:-2], -1)[..., : window.shape[-1] * f // c]

    def gradient(window: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
        parts, kernel = merged(kernel)
        one_group = geometry._replace(groups=1)

        def part(_, operands: tuple[Array, Array]) -> tuple[None, Array]:
            return None, planes.METHOD.gradient(*operands, kernel, one_group)

        images = _apart(window, parts, kernel[-2]), _apart(dy, parts, kernel[-1])
        return lax.scan(part, None, images, unroll=UNROLLED)[1]

    def scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
        *_, c, f = kernel
        return (
            groups * c + 2 * f + planes.METHOD.gradient_scratch(merged(kernel)[1], columns, strides)
        )

    return Method(prepare, forward, gradient, scratch, scratch)


def _apart(x: Array, parts: int, channels: int) -> Array:
    """(..., c) to (parts, ..., channels), with zeros for what is missing in the last part."""
    widths = [(0, 0, 0)] * (x.ndim - 1) + [(0, parts * channels - x.shape[-1], 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), widths)
    return jnp.moveaxis(x.reshape(*x.shape[:-1], parts, channels), -2, 0)
