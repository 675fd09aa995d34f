"""A convolution, its transpose and its weights' gradient: three maps, each linear in two arrays.

For images x, weights w and outputs y, `sum(convolve(x, w) * y)` is linear in each of the three;
`transposed(y, w)` is its gradient in x and `weight_gradient(x, y)` that in w. So the gradients of
all three, of any order, are the other two again, and whoever can compute the three on one device
gets derivatives here, and sharing over devices.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from biojax.kernels.conv.geometry import Geometry, dilated
from biojax.kernels.conv.sharded import (
    axes_of,
    over_devices,
    window_of_outputs,
    window_of_pixels,
)
from biojax.kernels.meshes import left_to_compiler, varying
from biojax.typing import Array

__all__ = ["Maps", "adjoint", "conv_transpose", "convolve", "transposed", "weight_gradient"]


class Maps(NamedTuple):
    """One way to compute the three, on one device and without regard to derivatives.

    Args:
      convolve: x, w (*k, c // g, f) and the geometry to y.
      transposed: y, w, the geometry and the spatial size of x to x.
      weight_gradient: x, y, an array after which to begin, w's shape and the geometry to w, in
        the dtype that sums are held in.
    """

    convolve: Callable[[Array, Array, Geometry], Array]
    transposed: Callable[[Array, Array, Geometry, tuple[int, ...]], Array]
    weight_gradient: Callable[[Array, Array, Array, tuple[int, ...], Geometry], Array]


@partial(jax.jit, static_argnums=(0, 3), inline=True)
def convolve(maps: Maps, x: Array, w: Array, geometry: Geometry) -> Array:
    """(b, *spatial, c) and (*k, c // g, f) to (b, *out, f)."""

    def run(x: Array, w: Array) -> Array:
        return _convolve(maps, varying(x, w), varying(w, x), geometry)

    return left_to_compiler(run, x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _convolve(maps: Maps, x: Array, w: Array, geometry: Geometry) -> Array:
    axes = axes_of(x.shape[1:-1], w.shape, geometry)

    def share(splits):
        def part(x, w):
            window, inner = window_of_pixels(x, geometry, axes, splits[1:])
            return maps.convolve(window, w, inner)

        return part

    return over_devices(share, "xw->y", axes, x, w)


@partial(jax.jit, static_argnums=(0, 3, 4), inline=True)
def transposed(
    maps: Maps, y: Array, w: Array, geometry: Geometry, spatial: tuple[int, ...]
) -> Array:
    """The adjoint in x of `convolve(maps, x, w, geometry)`, for x of size `spatial`."""

    def run(y: Array, w: Array) -> Array:
        return _transposed(maps, varying(y, w), varying(w, y), geometry, spatial)

    return left_to_compiler(run, y, w)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _transposed(
    maps: Maps, y: Array, w: Array, geometry: Geometry, spatial: tuple[int, ...]
) -> Array:
    axes = axes_of(spatial, w.shape, geometry)

    def share(splits):
        def part(y, w):
            window, inner, size = window_of_outputs(y, geometry, axes, splits[1:])
            return maps.transposed(window, w, inner, size)

        return part

    return over_devices(share, "yw->x", axes, y, w)


def conv_transpose(maps: Maps, x: Array, w: Array, geometry: Geometry) -> Array:
    """(b, *spatial, c) and (*k, c // g, f) to (b, *out, f): the adjoint of a strided convolution.

    The geometry is that of a transposed convolution, with pads around the x already spread out.
    """
    extent = dilated(w.shape[:-2], geometry.dilation)
    spatial, pads = [], []
    for n, s, e, (low, high) in zip(
        x.shape[1:-1], geometry.strides, extent, geometry.pads, strict=True
    ):
        size = (n - 1) * s + 1 + low + high - (e - 1)
        before = e - 1 - low
        spatial.append(size)
        pads.append((before, (n - 1) * s + e - size - before))
    strided = geometry._replace(pads=tuple(pads))
    return transposed(maps, x, adjoint(w, geometry.groups), strided, tuple(spatial))


def adjoint(w: Array, groups: int) -> Array:
    """The kernel that takes output gradients to input gradients: mirrored, in and out swapped."""
    *kernel, c, f = w.shape
    w = jnp.flip(w, range(len(kernel))).reshape(*kernel, c, groups, f // groups)
    return jnp.swapaxes(w, -3, -1).reshape(*kernel, f // groups, groups * c)


def weight_gradient(
    maps: Maps, x: Array, y: Array, w: Array, geometry: Geometry, after: Array
) -> Array:
    """The gradient of `sum(convolve(maps, x, w, geometry) * y)` in w, computed after `after`.

    Args:
      maps: how.
      x: pixels.
      y: weights of the outputs in that sum.
      w: gives its shape and dtype.
      geometry: of the convolution.
      after: an array of x's or of y's shape.
    """
    dw = _weight_gradient(maps, x, y, after, w.shape, geometry)
    return jnp.asarray(dw, w.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def _weight_gradient(
    maps: Maps, x: Array, y: Array, after: Array, kernel: tuple[int, ...], geometry: Geometry
) -> Array:
    axes = axes_of(x.shape[1:-1], kernel, geometry)

    def share(splits):
        names = [name for split in splits for name in split.names]

        def part(x, y, after):
            window, inner = window_of_pixels(x, geometry, axes, splits[1:])
            dw = maps.weight_gradient(window, y, after, kernel, inner)
            return lax.psum(dw, names) if names else dw

        return part

    roles = "xyx->w" if after.shape == x.shape else "xyy->w"
    return over_devices(share, roles, axes, x, y, after)


def _convolve_fwd(maps, x, w, geometry):
    wanted = () if x.perturbed else None  # the image itself is no function of the parameters
    x, w = x.value, w.value
    return convolve(maps, x, w, geometry), (x, w, wanted)


def _convolve_bwd(maps, geometry, saved, dy):
    x, w, wanted = saved
    if isinstance(dy, SymbolicZero):
        return None, None
    dx = None if wanted is None else transposed(maps, dy, w, geometry, x.shape[1:-1])
    # `after` an unwanted gradient, the compiler would have to compute it.
    return dx, weight_gradient(maps, x, dy, w, geometry, after=dy if dx is None else dx)


def _transposed_fwd(maps, y, w, geometry, spatial):
    wanted = () if y.perturbed else None
    y, w = y.value, w.value
    return transposed(maps, y, w, geometry, spatial), (y, w, wanted)


def _transposed_bwd(maps, geometry, spatial, saved, dx):
    del spatial
    y, w, wanted = saved
    if isinstance(dx, SymbolicZero):
        return None, None
    dy = None if wanted is None else convolve(maps, dx, w, geometry)
    return dy, weight_gradient(maps, dx, y, w, geometry, after=dx if dy is None else dy)


def _weight_gradient_fwd(maps, x, y, after, kernel, geometry):
    return _weight_gradient(maps, x, y, after, kernel, geometry), (x, y)


def _weight_gradient_bwd(maps, kernel, geometry, saved, dw):
    del kernel
    x, y = saved
    w = dw.astype(x.dtype)
    dx = transposed(maps, y, w, geometry, x.shape[1:-1])
    return dx, convolve(maps, x, w, geometry), None


_convolve.defvjp(_convolve_fwd, _convolve_bwd, symbolic_zeros=True)
_transposed.defvjp(_transposed_fwd, _transposed_bwd, symbolic_zeros=True)
_weight_gradient.defvjp(_weight_gradient_fwd, _weight_gradient_bwd)
