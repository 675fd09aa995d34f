"""The contract of `conv` and `conv_transpose`: one product per tap of the kernel."""

import itertools

import jax.numpy as jnp

from biojax.kernels.conv.geometry import Geometry, dilated, out_size, pad
from biojax.typing import Array

__all__ = ["conv", "conv_transpose"]


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """The sum over the taps of (the image shifted by the tap) x (the tap's matrix)."""
    strides, pads, dilation, groups, precision = geometry
    kernel = w.shape[:-2]
    extent = dilated(kernel, dilation)
    out = [out_size(*each) for each in zip(x.shape[1:-1], pads, extent, strides, strict=True)]
    x = pad(x, pads)
    x = x.reshape(*x.shape[:-1], groups, -1)
    w = w.reshape(*w.shape[:-1], groups, -1)
    y = jnp.zeros((), x.dtype)
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(k * d, k * d + (n - 1) * s + 1, s)
            for k, d, n, s in zip(tap, dilation, out, strides, strict=True)
        )
        shifted = x[:, *window]
        y = y + jnp.einsum("...gc,cgf->...gf", shifted, w[tap], precision=precision)
    return y.reshape(*y.shape[:-2], -1)


def conv_transpose(x: Array, w: Array, geometry: Geometry) -> Array:
    """The image with zeros between its pixels, convolved."""
    b, *spatial, c = x.shape
    spread = [(n - 1) * s + 1 for n, s in zip(spatial, geometry.strides, strict=True)]
    every = tuple(slice(None, None, s) for s in geometry.strides)
    z = jnp.zeros((b, *spread, c), x.dtype).at[:, *every].set(x)
    return conv(z, w, geometry._replace(strides=(1,) * len(spatial)))
