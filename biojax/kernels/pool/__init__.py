"""Max and average pooling in one to three spatial dimensions."""

import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.kernels.conv.geometry import Pads, conv_pads, out_size, per_axis
from biojax.kernels.dispatch import select
from biojax.kernels.pool import xla
from biojax.typing import Array, IntOrTuple, Padding

__all__ = ["avg_pool", "max_pool"]


def max_pool(
    x: Array,
    window: IntOrTuple,
    *,
    strides: IntOrTuple | None = None,
    padding: Padding = "VALID",
    implementation: str | None = None,
) -> Array:
    """The largest value under each window.

    y[b, o, c] = max over k of  x[b, o * stride + k - before, c],  outside of x ignored

    Args:
      x: images, (b, *spatial, c) with one to three spatial axes.
      window: size in pixels; one for all axes or one each.
      strides: step between windows; the window's own size if None.
      padding: as in `conv`.
      implementation: "xla", or None to choose.

    Returns:
      (b, *out, c), of x's dtype.

    Raises:
      ShapeError: the window does not fit the image, or a window would see no pixel at all; x is
        boolean or complex.

    >>> max_pool(jnp.arange(6.0).reshape(1, 6, 1), 2)[0, :, 0]
    Array([1., 3., 5.], dtype=float32)
    """
    geometry = _check("max_pool", x, window, strides, padding)
    run = select("max_pool", {"xla": xla.max_pool}, implementation, _only)
    return run(x, *geometry)


def avg_pool(
    x: Array,
    window: IntOrTuple,
    *,
    strides: IntOrTuple | None = None,
    padding: Padding = "VALID",
    implementation: str | None = None,
) -> Array:
    """The mean of the pixels under each window; padding does not count.

    y[b, o, c] = mean over those k inside of x of  x[b, o * stride + k - before, c]

    Flax and PyTorch count the zeros of the padding by default, which darkens the edges.

    Args:
      x: images, (b, *spatial, c) with one to three spatial axes.
      window: size in pixels; one for all axes or one each.
      strides: step between windows; the window's own size if None.
      padding: as in `conv`.
      implementation: "xla", or None to choose.

    Returns:
      (b, *out, c), of x's dtype; summed in at least float32.

    Raises:
      ShapeError: the window does not fit the image, or a window would see no pixel at all; x is
        boolean or complex.

    >>> avg_pool(jnp.arange(3.0).reshape(1, 3, 1), 2, padding="SAME")[0, :, 0]
    Array([0.5, 2. ], dtype=float32)
    """
    geometry = _check("avg_pool", x, window, strides, padding)
    run = select("avg_pool", {"xla": xla.avg_pool}, implementation, _only)
    return run(x, *geometry)


def _only() -> tuple[str, str]:
    return "xla", "the only one"


def _check(
    where: str, x: Array, window: IntOrTuple, strides: IntOrTuple | None, padding: Padding
) -> tuple[tuple[int, ...], tuple[int, ...], Pads]:
    rank = x.ndim - 2
    if not 1 <= rank <= 3:
        raise ShapeError(
            where,
            f"x of shape {x.shape}",
            "(b, *spatial, c) with one to three spatial axes",
            "Add a batch axis in front or a channel axis at the end",
        )
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise ShapeError(
            where,
            f"x of {x.dtype}",
            "a floating or integer dtype",
            "Convert it: x.astype(jnp.float32)",
        )
    window = per_axis(where, "window", window, rank)
    strides = window if strides is None else per_axis(where, "strides", strides, rank)
    pads = conv_pads(where, padding, x.shape[1:-1], window, strides)
    sizes = [out_size(*each) for each in zip(x.shape[1:-1], pads, window, strides, strict=True)]
    empty = any(max(p) >= k for p, k in zip(pads, window, strict=True))
    if min(sizes) < 1 or empty:
        raise ShapeError(
            where,
            f"an image of {x.shape[1:-1]}, a window of {window} and padding {pads}",
            "a window inside of the padded image, and padding narrower than the window",
            "Use a smaller window, or padding='SAME'",
        )
    return window, strides, pads
