"""3-D convolution as a sum of 2-D convolutions over the kernel's depth.

XLA has a fast 2-D convolution on CPU and a slow 3-D one. Planes are folded into the batch, so one
2-D convolution for each depth i of the kernel does a block: y[z] = sum_i conv2d(x[z + i], w[i]).
With few channels the depths are stacked as channels instead, and one 2-D convolution is enough.

The gradient of a plane's kernel (kh, kw, c, f) is one matrix product of the image, unfolded along
the width (kw * c columns), with the outputs' gradient, unfolded along the height (kh * f columns):
less to copy than unfolding one of them along both.
"""

import jax.numpy as jnp
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv import xla
from biojax.kernels.conv.blocked import Method, convolve, lifted
from biojax.kernels.conv.geometry import Geometry
from biojax.typing import Array

__all__ = ["METHOD", "conv", "plane_conv", "plane_gradient"]

# Stacking wins up to here, float32 on two CPU cores, forward and backward (32^3, 3x3x3).
FEW_CHANNELS = 16


def _forward(window: Array, w: Array, geometry: Geometry) -> Array:
    b, (kd, kh, kw, c, f) = window.shape[0], w.shape
    planes = _planes(window, kd, geometry)
    if kd > 1 and c <= FEW_CHANNELS:
        kernel = jnp.moveaxis(w, 0, 2).reshape(kh, kw, kd * c, f)
        y = plane_conv(jnp.concatenate(planes, axis=-1), kernel, geometry)
    else:
        y = sum(plane_conv(plane, w[i], geometry) for i, plane in enumerate(planes))
    return y.reshape(b, -1, *y.shape[1:])


def _gradient(window: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    dy = dy.reshape(-1, *dy.shape[2:])
    planes = _planes(window, kernel[0], geometry)
    return jnp.stack([plane_gradient(plane, dy, kernel[1:3], geometry) for plane in planes])


def _planes(window: Array, depth: int, geometry: Geometry) -> list[Array]:
    """The planes that each depth of the kernel sees, folded into the batch."""
    stride, dilation = geometry.strides[0], geometry.dilation[0]
    outputs = (window.shape[1] - (depth - 1) * dilation - 1) // stride + 1
    planes = []
    for i in range(depth):
        end = i * dilation + (outputs - 1) * stride + 1
        taken = lax.slice_in_dim(window, i * dilation, end, stride, axis=1)
        planes.append(taken.reshape(-1, *taken.shape[2:]))
    return planes


def plane_conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """(n, h, w, c) and (kh, kw, c, f) to (n, *out, f); the geometry's last two axes count."""
    plane = geometry._replace(
        strides=geometry.strides[1:], pads=geometry.pads[1:], dilation=geometry.dilation[1:]
    )
    return xla.accumulated(x, w, plane)


def plane_gradient(x: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    """The gradient (kh, kw, c, f) of `sum(plane_conv(x, w, geometry) * dy)` in w."""
    (kh, kw), (n, height, width, f), c = kernel, dy.shape, x.shape[-1]
    (_, sh, sw), (_, dh, dw) = geometry.strides, geometry.dilation
    x = lax.pad(
        x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in geometry.pads[1:]), (0, 0, 0)]
    )
    wide = [
        lax.slice_in_dim(x, j * dw, j * dw + (width - 1) * sw + 1, sw, axis=2) for j in range(kw)
    ]
    if sh > 1:
        rows = [
            lax.slice_in_dim(part, i * dh, i * dh + (height - 1) * sh + 1, sh, axis=1)
            for i in range(kh)
            for part in wide
        ]
        product = _product(jnp.concatenate(rows, axis=-1), dy, geometry)
        return product.reshape(kh, kw, c, f)
    unfolded = lax.slice_in_dim(jnp.concatenate(wide, axis=-1), 0, height + (kh - 1) * dh, axis=1)
    span = (kh - 1) * dh
    tall = [jnp.pad(dy, ((0, 0), (i * dh, span - i * dh), (0, 0), (0, 0))) for i in range(kh)]
    product = _product(unfolded, jnp.concatenate(tall, axis=-1), geometry)
    return product.reshape(kw, c, kh, f).transpose(2, 0, 1, 3)


def _product(a: Array, b: Array, geometry: Geometry) -> Array:
    return jnp.einsum(
        "nhwa,nhwb->ab", a, b, precision=geometry.precision, preferred_element_type=a.dtype
    )


def _scratch(kernel: tuple[int, ...]) -> int:
    kd, kh, kw, c, f = kernel
    return kd * c + max(3 * f, kw * c + kh * f)


METHOD = Method(lambda w: w, _forward, _gradient, _scratch)


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any strides, dilation and padding; one group."""
    if geometry.groups != 1:
        raise UnsupportedError(
            "conv",
            f"implementation='planes' for {geometry.groups} groups",
            "one group",
            "Use implementation='matmul', or None to choose",
        )
    y = convolve(METHOD, *lifted(x, w, geometry))
    return y.reshape(y.shape[0], *y.shape[5 - x.ndim + 1 :])
