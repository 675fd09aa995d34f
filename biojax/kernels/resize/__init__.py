"""Resampling to another size in one to three spatial dimensions."""

import jax.numpy as jnp

from biojax.errors import ConfigError, ShapeError, nearest
from biojax.kernels.axes import per_axis
from biojax.kernels.dispatch import platform, select
from biojax.kernels.resize import gather, matmul
from biojax.kernels.resize.weights import METHODS
from biojax.typing import Array, IntOrTuple

__all__ = ["resize"]

_RESIZE = {"gather": gather.resize, "matmul": matmul.resize}


def resize(
    x: Array, size: IntOrTuple, *, method: str = "linear", implementation: str | None = None
) -> Array:
    """Images sampled on a grid of another size, which spans the same field of view.

    y[b, o, c] = x[b, at(o), c],   at(o) = (o + 1/2) * n / m - 1/2   along an axis of n to m pixels

    so that pixels are areas and `at` their centres. "linear" weights the two pixels around `at`
    along each axis, and repeats the border outside of it; "nearest" takes the nearer one, and of
    two as near the later. Nothing is smoothed before an image is made smaller.

    The same as `jax.image.resize(antialias=False)`, as PyTorch's `interpolate` with modes "linear",
    "bilinear" and "trilinear" (align_corners=False), and as its mode "nearest-exact" (not
    "nearest", which is off by half a pixel).

    Args:
      x: images, (b, *spatial, c) with one to three spatial axes.
      size: pixels of each spatial axis of the result; one for all axes or one each.
      method: "linear" or "nearest".
      implementation: "gather" (pixels and weights by tables; differentiates in reverse only),
        "matmul" (a dense matrix for each axis, which spreads NaN and infinities), or None to
        choose.

    Returns:
      (b, *size, c), of x's dtype; summed in at least float32.

    Raises:
      ShapeError: x has no or too many spatial axes or no pixel, or is not floating where method is
        "linear"; size is not one positive integer per axis.
      ConfigError: there is no method or no implementation of that name.
      UnsupportedError: the named implementation cannot do this.

    >>> resize(jnp.array([0.0, 4.0]).reshape(1, 2, 1), 4)[0, :, 0]
    Array([0., 1., 3., 4.], dtype=float32)
    """
    size = _check(x, size, method)
    run = select("resize", _RESIZE, implementation, lambda: _choose(x))
    return run(x, size, method)


def _choose(x: Array) -> tuple[str, str]:
    if platform() == "tpu" and matmul.fits(x):
        return "matmul", "products are cheaper than gathers on tpu"
    return "gather", "no more pixels read than have weight"


def _check(x: Array, size: IntOrTuple, method: str) -> tuple[int, ...]:
    rank = x.ndim - 2
    if not 1 <= rank <= 3 or 0 in x.shape[1:-1]:
        raise ShapeError(
            "resize",
            f"x of shape {x.shape}",
            "(b, *spatial, c) with one to three spatial axes, none of them empty",
            "Add a batch axis in front or a channel axis at the end",
        )
    if method not in METHODS:
        raise ConfigError(
            "resize",
            f"method={method!r}",
            f"one of {', '.join(map(repr, METHODS))}",
            "Choose one of these",
            nearest(str(method), METHODS),
        )
    if method == "linear" and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ShapeError(
            "resize",
            f"x of {x.dtype} and method='linear'",
            "a floating dtype, since the mean of two labels is another label",
            "Take the nearest pixel, or convert x: x.astype(jnp.float32)",
            "method='nearest'",
        )
    return per_axis("resize", "size", size, rank)
