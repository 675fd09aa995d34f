"""Convolution as one matrix product for each block: of the patches that its outputs see.

y[o, f] = sum over k, c of  patches[o, (k, c)] * w[(k, c), f],   patches[o, (k, c)] = x[o + k, c]

What is copied for the patches is as many times the image as the kernel has taps. That pays where
there are few pixels and many channels, as in the last stages of a network: there the product reads
its weights once, and anything else reads them again for each row or plane.

Source: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
processing", 2006, section 3.
"""

import itertools
import math

import jax.numpy as jnp
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv import blocked
from biojax.kernels.conv.blocked import Method
from biojax.kernels.conv.geometry import Geometry, dilated, out_size, pad
from biojax.typing import Array

__all__ = ["conv"]


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any strides, dilation and padding; one group."""
    if geometry.groups != 1:
        raise UnsupportedError(
            "conv",
            f"implementation='patches' for {geometry.groups} groups",
            "one group",
            "Use implementation='xla', or None to choose",
        )
    return blocked.conv(_METHOD, x, w, geometry)


def _patches(window: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    """(b, d, h, w, c) to (b, *out, taps * c)."""
    window = pad(window, geometry.pads)
    extent = dilated(kernel[:3], geometry.dilation)
    sizes = zip(window.shape[1:4], extent, geometry.strides, strict=True)
    out = [out_size(n, (0, 0), e, s) for n, e, s in sizes]
    parts = []
    for tap in itertools.product(*(range(k) for k in kernel[:3])):
        first = [k * d for k, d in zip(tap, geometry.dilation, strict=True)]
        last = [i + (n - 1) * s + 1 for i, n, s in zip(first, out, geometry.strides, strict=True)]
        ends = (window.shape[0], *last, window.shape[-1])
        parts.append(lax.slice(window, (0, *first, 0), ends, (1, *geometry.strides, 1)))
    return jnp.concatenate(parts, axis=-1)


def _forward(window: Array, w: Array, geometry: Geometry) -> Array:
    patches = _patches(window, w.shape, geometry)
    return jnp.matmul(patches, w.reshape(-1, w.shape[-1]), precision=geometry.precision)


def _gradient(window: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    patches = _patches(window, kernel, geometry)
    product = jnp.einsum("bzyxk,bzyxf->kf", patches, dy, precision=geometry.precision)
    return product.reshape(kernel)


def _scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
    return math.prod(kernel[:-1]) + kernel[-1]


_METHOD = Method(lambda w: w, _forward, _gradient, _scratch, _scratch)
