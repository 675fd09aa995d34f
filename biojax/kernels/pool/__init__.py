"""Max and average pooling in one to three spatial dimensions."""

import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.kernels.axes import per_axis
from biojax.kernels.conv.geometry import Pads, conv_pads, out_size
from biojax.kernels.dispatch import platform, select
from biojax.kernels.pool import separable, tiles, xla
from biojax.typing import Array, IntOrTuple, Padding

__all__ = ["avg_pool", "max_pool"]

_MAX_POOL = {"xla": xla.max_pool, "tiles": tiles.max_pool, "separable": separable.max_pool}
_AVG_POOL = {"xla": xla.avg_pool, "tiles": tiles.avg_pool, "separable": separable.avg_pool}

# Every window that sees a pixel is an operation of its own for the compiler.
_LONGEST = 32


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

    The gradient goes to the first of several equal maxima, in the order of z, y, x. A window with
    NaN gives NaN, and its gradient to the first of them ("xla": to any of its pixels).

    Args:
      x: images, (b, *spatial, c) with one to three spatial axes.
      window: size in pixels; one for all axes or one each.
      strides: step between windows; the window's own size if None.
      padding: as in `conv`.
      implementation: "xla", "tiles" (small windows side by side, none of them padded), "separable"
        (one axis at a time), or None to choose. All but "xla" differentiate in reverse only.

    Returns:
      (b, *out, c), of x's dtype.

    Raises:
      ShapeError: x is not of one to three spatial axes, or is boolean or complex; an option is not
        one per axis; the window does not fit the image, or one would see no pixel at all.
      ConfigError: there is no implementation of that name.
      UnsupportedError: the named implementation cannot do this.

    >>> max_pool(jnp.arange(6.0).reshape(1, 6, 1), 2)[0, :, 0]
    Array([1., 3., 5.], dtype=float32)
    """
    geometry = _check("max_pool", x, window, strides, padding)
    run = select("max_pool", _MAX_POOL, implementation, lambda: _choose(x, *geometry))
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

    Flax and PyTorch count the zeros of the padding by default, which darkens the edges. A window
    with NaN gives NaN, and the windows next to it do not.

    Args:
      x: images, (b, *spatial, c) with one to three spatial axes.
      window: size in pixels; one for all axes or one each.
      strides: step between windows; the window's own size if None.
      padding: as in `conv`.
      implementation: "xla", "tiles" (small windows side by side, none of them padded), "separable"
        (one axis at a time), or None to choose. All but "xla" differentiate in reverse only.

    Returns:
      (b, *out, c), of x's dtype; summed in at least float32.

    Raises:
      ShapeError: x is not of one to three spatial axes, or is boolean or complex; an option is not
        one per axis; the window does not fit the image, or one would see no pixel at all.
      ConfigError: there is no implementation of that name.
      UnsupportedError: the named implementation cannot do this.

    >>> avg_pool(jnp.arange(3.0).reshape(1, 3, 1), 2, padding="SAME")[0, :, 0]
    Array([0.5, 2. ], dtype=float32)
    """
    geometry = _check("avg_pool", x, window, strides, padding)
    run = select("avg_pool", _AVG_POOL, implementation, lambda: _choose(x, *geometry))
    return run(x, *geometry)


def _choose(
    x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads
) -> tuple[str, str]:
    """The implementation, and why. The rows for the CPU rest on times of float32 on two cores."""
    if platform() != "cpu":
        return "xla", f"the platform's own windows: not measured on {platform()}"
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return "xla", "integers have no gradient"
    if tiles.fits(x.shape[1:-1], window, strides, pads):
        return "tiles", "windows side by side: the gradient is a broadcast, on CPU"
    if max(-(-k // s) for k, s in zip(window, strides, strict=True)) <= _LONGEST:
        return "separable", "one axis at a time, on CPU"
    return "xla", f"more than {_LONGEST} windows see a pixel along an axis"


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
