"""Attention within windows of an image: what is asked, checked and chosen."""

import math
from collections.abc import Sequence

import numpy as np

from biojax.errors import ShapeError
from biojax.kernels.attention import window_blocked, window_xla
from biojax.kernels.attention.checks import (
    as_array,
    check_images,
    check_kind,
    for_each_axis,
    scaled,
)
from biojax.kernels.attention.windows import Settings
from biojax.kernels.axes import per_axis
from biojax.kernels.dispatch import accumulator, of_arrays, platform, select
from biojax.kernels.meshes import left_to_compiler
from biojax.typing import Array, ArrayLike, IntOrTuple, Precision

__all__ = ["window_attention"]

# Scores that are kept where all windows are computed at once: 1 GiB of float32.
SCORES = 2**28
_IMPLEMENTATIONS = {"xla": window_xla.attention, "blocked": window_blocked.attention}


def window_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: ArrayLike | None = None,
    *,
    window_size: IntOrTuple,
    shift: int | Sequence[int] = 0,
    scale: float | Array | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> Array:
    """Attention among the voxels of each window, windows side by side; exact.

    The image is rolled by -shift along each axis and cut into windows. In each of them

    p[n, i, j] = softmax over j of  scale * <query[i, n], key[j, n]> + bias[n, i, j]
    y[i, n]    = sum over j of  p[n, i, j] * value[j, n]

    for voxels i and j in raster order (z slowest), then all is rolled back. Where rolling brings
    opposite borders of the image into one window, voxels see those of their own border only.

    Args:
      query: (b, *spatial, n, k), with one to three spatial axes.
      key: (b, *spatial, n, k).
      value: (b, *spatial, n, v).
      bias: added to the scaled products, (n, w, w), w the voxels of a window; see `relative_bias`.
      window_size: one number for all spatial axes, or one each; must divide the image.
      shift: how far the grid of windows is moved, from 0 to window_size - 1; one for all or each.
      scale: 1 / sqrt(k) if None; an array of no axes is multiplied into query.
      precision: passed to every product, as in `jax.lax`.
      implementation: "xla" (all windows at once), "blocked" (groups of windows one after the
        other, whose scores are computed anew for gradients; differentiates in reverse only), or
        None to choose.

    Returns:
      (b, *spatial, n, v), of query's dtype.

    Raises:
      ShapeError: the arrays do not fit together, or the windows the image.

    The softmax is computed in at least float32. Beside copies of its arguments "blocked" takes
    memory for a few windows, "xla" for the scores of all, (b, *spatial, n, w).
    Source: Liu et al., "Swin Transformer", ICCV 2021, sections 3.2 and 3.3.

    >>> import jax.numpy as jnp
    >>> q = k = jnp.zeros((1, 4, 1, 1))
    >>> v = jnp.arange(4.0).reshape(1, 4, 1, 1)
    >>> window_attention(q, k, v, window_size=2)[0, :, 0, 0]
    Array([0.5, 0.5, 2.5, 2.5], dtype=float32)
    >>> window_attention(q, k, v, window_size=2, shift=1)[0, :, 0, 0]
    Array([0. , 1.5, 1.5, 3. ], dtype=float32)
    """
    check_images("window_attention", query, key, value)
    spatial = query.shape[1:-2]
    window, shifts = _check_windows(spatial, window_size, shift)
    if bias is not None:
        bias = _checked_bias(bias, (query.shape[-2], *(math.prod(window),) * 2))
    query, by = scaled("window_attention", query, scale)
    settings = Settings(window, shifts, by, precision)
    run = select(
        "window_attention", _IMPLEMENTATIONS, implementation, lambda: _choose(query, window)
    )
    alone, arrays = of_arrays(run, (query, key, value, bias, settings), {})
    return left_to_compiler(alone, *arrays)


def _choose(query: Array, window: tuple[int, ...]) -> tuple[str, str]:
    b, *spatial, n, _ = query.shape
    w = math.prod(window)
    m = b * math.prod(spatial) // w
    if platform() != "cpu":
        few = m * n * w * w <= SCORES
        return ("xla" if few else "blocked"), f"{m * n * w * w} scores on {platform()}"
    if window_blocked.group_of(m, n, w, accumulator(query.dtype).itemsize) == m:
        return "xla", "few windows, on CPU"
    return "blocked", "scores stay in cache on CPU"


def _checked_bias(given: ArrayLike, scores: tuple[int, ...]) -> Array:
    where = "window_attention"
    bias = as_array(where, "bias", given)
    if bias.shape != scores:
        raise ShapeError(
            where,
            f"bias of shape {bias.shape}",
            f"(n, w, w) = {scores}",
            "Make it for these windows: relative_bias(table, window_size)",
        )
    check_kind(where, "bias", bias)
    return bias


def _check_windows(
    spatial: tuple[int, ...], window_size: IntOrTuple, shift: int | Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift along each axis."""
    where = "window_attention"
    window = per_axis(where, "window_size", window_size, len(spatial))
    if any(n % w for n, w in zip(spatial, window, strict=True)):
        fits = tuple(-(-n // w) * w for n, w in zip(spatial, window, strict=True))
        raise ShapeError(
            where,
            f"an image of {spatial} with windows of {window}",
            "a size that the windows divide",
            "Pad or crop the image",
            f"{fits}",
        )
    shifts = for_each_axis(shift, len(spatial))
    if len(shifts) != len(window) or not all(
        isinstance(s, int | np.integer) and 0 <= s < w for s, w in zip(shifts, window, strict=True)
    ):
        raise ShapeError(
            where,
            f"shift={shift!r} for windows of {window}",
            "integers from 0 to below the window's size, one for all axes or one each",
            "Shift by half a window: window_size // 2",
        )
    return window, tuple(map(int, shifts))
