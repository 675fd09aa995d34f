"""Convolution with one tap: a matrix product over the channels of every pixel."""

import jax.numpy as jnp

from biojax.errors import UnsupportedError
from biojax.kernels.conv import blocked
from biojax.kernels.conv.blocked import Method
from biojax.kernels.conv.geometry import Geometry, pad
from biojax.typing import Array

__all__ = ["METHOD", "conv", "fits"]


def fits(w: Array, geometry: Geometry) -> bool:
    """One tap, one group."""
    return max(w.shape[:-2]) == 1 and geometry.groups == 1


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any strides and padding."""
    if not fits(w, geometry):
        raise UnsupportedError(
            "conv",
            f"implementation='pointwise' for a kernel {w.shape} in {geometry.groups} groups",
            "a kernel of one tap and one group",
            "Use implementation='xla', or None to choose",
        )
    return blocked.conv(METHOD, x, w, geometry)


def _taken(window: Array, geometry: Geometry) -> Array:
    """The pixels that count."""
    window = pad(window, geometry.pads)
    return window[:, *(slice(None, None, s) for s in geometry.strides)]


def _forward(window: Array, w: Array, geometry: Geometry) -> Array:
    return jnp.matmul(_taken(window, geometry), w[0, 0, 0], precision=geometry.precision)


def _gradient(window: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    x = _taken(window, geometry)
    product = jnp.einsum("bzyxc,bzyxf->cf", x, dy, precision=geometry.precision)
    return product.reshape(kernel)


def _scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
    return 0


def _gradient_scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
    return 2 * (kernel[-2] + kernel[-1])


METHOD = Method(lambda w: w, _forward, _gradient, _scratch, _gradient_scratch)
