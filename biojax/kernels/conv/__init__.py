"""Convolution and transposed convolution in one to three spatial dimensions."""

from collections.abc import Sequence

import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.kernels.axes import per_axis
from biojax.kernels.conv import (
    depthwise,
    fft,
    grouped,
    matmul,
    patches,
    phases,
    planes,
    pointwise,
    winograd,
    xla,
)
from biojax.kernels.conv.choose import choose_conv, choose_conv_transpose
from biojax.kernels.conv.geometry import (
    Geometry,
    Pads,
    conv_pads,
    dilated,
    out_size,
    transpose_pads,
)
from biojax.kernels.dispatch import platform, select
from biojax.typing import Array, IntOrTuple, Padding, Precision

__all__ = ["conv", "conv_transpose"]

_CONV = {
    "xla": xla.conv,
    "planes": planes.conv,
    "winograd": winograd.conv,
    "patches": patches.conv,
    "depthwise": depthwise.conv,
    "grouped": grouped.conv,
    "pointwise": pointwise.conv,
    "fft": fft.conv,
}
_CONV_TRANSPOSE = {
    "xla": xla.conv_transpose,
    "phases": phases.conv_transpose,
    "matmul": matmul.conv_transpose,
}


def conv(
    x: Array,
    w: Array,
    *,
    strides: IntOrTuple = 1,
    padding: Padding = "SAME",
    kernel_dilation: IntOrTuple = 1,
    feature_group_count: int = 1,
    precision: Precision = None,
    implementation: str | None = None,
) -> Array:
    """Convolution (in fact cross-correlation) of channels-last images.

    y[b, o, f] = sum over k, c of  x[b, o * stride + k * dilation - before, c] * w[k, c, f]

    with o and k running over every spatial axis, and x zero outside of its bounds. With g groups,
    the output channels f of group i see the input channels c of group i alone; g equal to the
    number of input channels is the depthwise convolution.

    Args:
      x: images, (b, *spatial, c) with one to three spatial axes.
      w: kernel, (*k, c // g, f).
      strides: step between outputs, in pixels; one for all axes or one each.
      padding: "SAME" (ceil(n / stride) outputs), "VALID" (no zeros), an integer, or a pair
        (before, after) for each axis.
      kernel_dilation: distance between the taps of the kernel, in pixels.
      feature_group_count: the number of groups g.
      precision: passed to every product, as in `jax.lax`.
      implementation: "xla", "planes" (2-D convolutions over the depth), "winograd" (the same
        with fewer products, for 3, 5 or 7 taps along the first axis), "patches" (one product, for
        few pixels), "depthwise", "grouped", "pointwise" (one tap), "fft" (hundreds of taps), or
        None to choose. All but "xla" are meant for the CPU; these, and "xla" in groups of several
        inputs or outputs, differentiate in reverse only.

    Returns:
      (b, *out, f), of x's dtype. Sums are held in at least float32. Where x holds Inf or NaN,
      "winograd", "grouped", "fft" and "depthwise" with 5, 7 or 9 taps along the depth spread them
      to outputs nearby, and in groups nearby, that do not see them.

    Raises:
      ShapeError: x and w differ in rank or dtype, are not floating, or are empty but for the batch;
        channels and groups do not match; the kernel is larger than the padded image; an option is
        not one per axis.
      ConfigError: there is no implementation of that name.
      UnsupportedError: the named implementation cannot do this.

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016,
    sections 2 and 5.

    >>> x = jnp.arange(4.0).reshape(1, 4, 1)
    >>> conv(x, jnp.ones((3, 1, 1)))[0, :, 0]
    Array([1., 3., 6., 5.], dtype=float32)
    """
    rank = _check("conv", x, w, feature_group_count)
    dilation = per_axis("conv", "kernel_dilation", kernel_dilation, rank)
    strides = per_axis("conv", "strides", strides, rank)
    extent = dilated(w.shape[:-2], dilation)
    pads = conv_pads("conv", padding, x.shape[1:-1], extent, strides)
    _check_size("conv", x.shape[1:-1], pads, extent, strides)

    geometry = Geometry(strides, pads, dilation, feature_group_count, precision)
    run = select("conv", _CONV, implementation, lambda: choose_conv(x, w, geometry, platform()))
    return run(x, w, geometry)


def conv_transpose(
    x: Array,
    w: Array,
    *,
    strides: IntOrTuple = 1,
    padding: Padding = "SAME",
    kernel_dilation: IntOrTuple = 1,
    feature_group_count: int = 1,
    precision: Precision = None,
    implementation: str | None = None,
) -> Array:
    """Transposed (fractionally strided) convolution of channels-last images.

    y = conv(z, w),   z[b, i * stride, c] = x[b, i, c]  and zero in between

    The kernel is not flipped, as in `jax.lax.conv_transpose` and `flax.linen.ConvTranspose`;
    PyTorch's kernel is this one reversed along its spatial axes.

    Args:
      x: images, (b, *spatial, c) with one to three spatial axes.
      w: kernel, (*k, c // g, f).
      strides: how many outputs for each input; one for all axes or one each.
      padding: "SAME" (n * stride outputs), "VALID" (n * stride + max(k - stride, 0)), an integer,
        or a pair for each axis: zeros around z.
      kernel_dilation: distance between the taps of the kernel, in output pixels.
      feature_group_count: the number of groups g, as in `conv`.
      precision: passed to every product, as in `jax.lax`.
      implementation: "xla", "phases" (no product with zeros), "matmul" (kernel equal to
        strides), or None to choose. "phases", and "xla" with strides or in groups of several
        channels, differentiate in reverse only.

    Returns:
      (b, *out, f), of x's dtype. Sums are held in at least float32.

    Raises:
      ShapeError: x, w and the options do not fit together.
      UnsupportedError: the named implementation cannot do this.

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016,
    section 4.

    >>> x = jnp.array([1.0, 2.0]).reshape(1, 2, 1)
    >>> conv_transpose(x, jnp.array([3.0, 5.0]).reshape(2, 1, 1), strides=2)[0, :, 0]
    Array([ 5.,  3., 10.,  6.], dtype=float32)
    """
    rank = _check("conv_transpose", x, w, feature_group_count)
    strides = per_axis("conv_transpose", "strides", strides, rank)
    dilation = per_axis("conv_transpose", "kernel_dilation", kernel_dilation, rank)
    extent = dilated(w.shape[:-2], dilation)
    pads = transpose_pads("conv_transpose", padding, extent, strides)
    spread = [(n - 1) * s + 1 for n, s in zip(x.shape[1:-1], strides, strict=True)]
    _check_size("conv_transpose", spread, pads, extent, (1,) * rank)
    geometry = Geometry(strides, pads, dilation, feature_group_count, precision)
    run = select(
        "conv_transpose",
        _CONV_TRANSPOSE,
        implementation,
        lambda: choose_conv_transpose(x, w, geometry, platform()),
    )
    return run(x, w, geometry)


def _check(where: str, x: Array, w: Array, groups: int) -> int:
    """The number of spatial axes, once x and w are known to fit."""
    rank = x.ndim - 2
    if not 1 <= rank <= 3 or w.ndim != x.ndim:
        raise ShapeError(
            where,
            f"x of shape {x.shape} and a kernel of shape {w.shape}",
            "x (b, *spatial, c) and a kernel (*k, c, f) with the same one to three spatial axes",
            "Add a batch axis in front or a channel axis at the end",
        )
    if 0 in (*x.shape[1:], *w.shape):
        raise ShapeError(
            where,
            f"x of shape {x.shape} and a kernel of shape {w.shape}",
            "nothing empty but the batch",
            "Look at what cut the image or made the kernel: an axis of it has length 0",
        )
    channels, per_group = x.shape[-1], w.shape[-2]
    if groups < 1 or per_group * groups != channels or w.shape[-1] % groups:
        fits = channels // per_group if per_group and channels % per_group == 0 else 0
        fits = 0 if groups == fits or w.shape[-1] % max(fits, 1) else fits
        each = f"{channels // groups}" if groups > 0 and channels % groups == 0 else "c // g"
        raise ShapeError(
            where,
            f"{channels} input channels and a kernel for {per_group} to {w.shape[-1]} "
            f"with feature_group_count={groups}",
            f"kernel shape (*k, {each}, f), f a multiple of the groups",
            "Change the kernel, or the number of groups",
            f"feature_group_count={fits}" if fits else None,
        )
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype != w.dtype:
        wide = jnp.result_type(x, w, jnp.bfloat16)
        raise ShapeError(
            where,
            f"x of {x.dtype} and a kernel of {w.dtype}",
            "the same floating dtype for both",
            f"Convert them: .astype({wide if jnp.issubdtype(wide, jnp.floating) else 'float32'})",
        )
    return rank


def _check_size(
    where: str,
    spatial: Sequence[int],
    pads: Pads,
    extent: Sequence[int],
    strides: Sequence[int],
) -> None:
    sizes = [out_size(*each) for each in zip(spatial, pads, extent, strides, strict=True)]
    kept = [n + min(low, 0) + min(high, 0) for n, (low, high) in zip(spatial, pads, strict=True)]
    if min(sizes) < 1 or min(kept) < 0:
        raise ShapeError(
            where,
            f"an image of {tuple(spatial)}, padding {pads} and a kernel that spans {extent}",
            "an image, padded or cropped, no smaller than the kernel",
            "Pad the image, or use padding='SAME'",
        )
