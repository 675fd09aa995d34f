"""3-D convolution as a sum of 2-D convolutions over the kernel's depth.

XLA has a fast 2-D convolution on CPU and a slow 3-D one. Planes are folded into the batch, so one
2-D convolution for each depth i of the kernel does a block: y[z] = sum_i conv2d(x[z + i], w[i]).
With few channels the depths are stacked as channels instead, and one 2-D convolution is enough.

The gradient of a plane's kernel (kh, kw, c, f) is one matrix product of the image, unfolded along
the width (kw * c columns), with the outputs' gradient, unfolded along the height (kh * f columns):
less to copy than unfolding one of them along both. If the image has few channels, that is unfolded
along both, and the outputs' gradient stays as it is.
"""

import math

import jax.numpy as jnp
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv import blocked, pointwise, xla
from biojax.kernels.conv.blocked import Method
from biojax.kernels.conv.geometry import Geometry, out_size, pad
from biojax.typing import Array

__all__ = ["METHOD", "conv", "few_rows", "plane_conv", "plane_gradient"]

# Stacking wins up to here, float32 on two CPU cores, forward and backward (32^3, 3x3x3).
FEW_CHANNELS = 16
# A 2-D convolution keeps both cores busy from either of these on (outputs; columns * outputs).
MANY_FEATURES = 128
WIDE = 16384
# From fewer of both on blocks are deep and flat: many planes side by side, float32, two CPU cores
# (64^3, 32 and 64 channels: 1.3 to 1.6 times as fast as tall ones).
ROWS = 2


def _forward(window: Array, w: Array, geometry: Geometry) -> Array:
    b, (kd, kh, kw, c, f) = window.shape[0], w.shape
    if max(kd, kh, kw) == 1:  # a product; XLA does not see that a convolution is one
        return pointwise.METHOD.forward(window, w, geometry)
    planes = _planes(window, kd, geometry)
    if kd > 1 and c <= FEW_CHANNELS:
        kernel = jnp.moveaxis(w, 0, 2).reshape(kh, kw, kd * c, f)
        y = plane_conv(jnp.concatenate(planes, axis=-1), kernel, geometry)
    else:
        parts = [plane_conv(plane, w[i], geometry) for i, plane in enumerate(planes)]
        y = sum(parts[1:], start=parts[0])
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
    """(n, h, w, c) and (kh, kw, c, f) to (n, *out, f); the geometry's last two axes count.

    XLA shares a convolution among cores by the columns and channels of its output. Few of both
    leave all but one core idle; then planes are put side by side, with zeros in between.
    """
    plane = geometry._replace(
        strides=geometry.strides[1:], pads=geometry.pads[1:], dilation=geometry.dilation[1:]
    )
    (n, h, width, c), (stride, (before, after)) = x.shape, (plane.strides[1], plane.pads[1])
    extent = (w.shape[1] - 1) * plane.dilation[1] + 1
    out = out_size(width, (before, after), extent, stride)
    if n == 1 or _is_wide(w.shape[-1], out):
        return xla.accumulated(x, w, plane)
    pitch = stride * max(out, -(-(width + before + after) // stride))
    pads = [(0, 0, 0), (0, 0, 0), (before, pitch - before - width, 0), (0, 0, 0)]
    row = lax.pad(x, jnp.zeros((), x.dtype), pads).swapaxes(0, 1).reshape(1, h, n * pitch, c)
    row = xla.accumulated(row, w, plane._replace(pads=(plane.pads[0], (0, extent - 1))))
    y = row.reshape(row.shape[1], n, pitch // stride, -1)[:, :, :out]
    return y.swapaxes(0, 1)


def _is_wide(features: int, columns: int) -> bool:
    return features >= MANY_FEATURES or columns * features >= WIDE


def plane_gradient(x: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    """The gradient (kh, kw, c, f) of `sum(plane_conv(x, w, geometry) * dy)` in w.

    With a stride, every stride-th row of the image meets its own rows of the kernel.
    """
    (kh, kw), (_, height, width, f), c = kernel, dy.shape, x.shape[-1]
    (_, sh, sw), (_, dh, dw) = geometry.strides, geometry.dilation
    x = pad(x, geometry.pads[1:])
    columns = [
        lax.slice_in_dim(x, j * dw, j * dw + (width - 1) * sw + 1, sw, axis=2) for j in range(kw)
    ]
    unfolded = jnp.concatenate(columns, axis=-1)
    if kw * c <= f:  # then the image is less to copy for each row of the kernel too
        last = (height - 1) * sh + 1
        rows = [lax.slice_in_dim(unfolded, i * dh, i * dh + last, sh, axis=1) for i in range(kh)]
        product = jnp.einsum(
            "nhwa,nhwf->af",
            jnp.concatenate(rows, axis=-1),
            dy,
            precision=geometry.precision,
            preferred_element_type=x.dtype,
        )
        return product.reshape(kh, kw, c, f)
    gradient = [jnp.zeros(())] * kh
    for phase in range(sh):
        taps = [i for i in range(kh) if i * dh % sh == phase]
        if not taps:
            continue
        shifts = [i * dh // sh for i in taps]
        first, span = shifts[0], shifts[-1] - shifts[0]
        rows = unfolded[:, phase + first * sh :: sh][:, : height + span]
        tall = [jnp.pad(dy, ((0, 0), (s - first, shifts[-1] - s), (0, 0), (0, 0))) for s in shifts]
        # The first operand is transposed in memory: dy's, which serves every depth of the kernel.
        product = jnp.einsum(
            "nhwb,nhwa->ba",
            jnp.concatenate(tall, axis=-1),
            rows,
            precision=geometry.precision,
            preferred_element_type=x.dtype,
        )
        for i, part in zip(taps, jnp.split(product, len(taps)), strict=True):
            gradient[i] = part.reshape(f, kw, c)
    return jnp.moveaxis(jnp.stack(gradient), 1, -1)


def _scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
    kd, _, _, c, f = kernel
    return 0 if kd == 1 and _is_wide(f, columns) else kd * c + 3 * f


def _gradient_scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
    kd, kh, kw, c, f = kernel
    return kd * math.prod(strides[1:]) * c + kw * strides[1] * c + kh * f


def few_rows(kernel: tuple[int, ...], columns: int) -> int | None:
    """The most rows of a block whose planes are put side by side; None for any."""
    *_, c, f = kernel
    return None if c <= FEW_CHANNELS or _is_wide(f, columns) else ROWS


METHOD = Method(lambda w: w, _forward, _gradient, _scratch, _gradient_scratch, rows=few_rows)


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any strides, dilation and padding; one group."""
    if geometry.groups != 1:
        raise UnsupportedError(
            "conv",
            f"implementation='planes' for {geometry.groups} groups",
            "one group",
            "Use implementation='xla', or None to choose",
        )
    return blocked.conv(METHOD, x, w, geometry)
