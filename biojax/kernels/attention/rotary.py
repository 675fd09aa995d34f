"""Rotary positions: queries and keys are turned by where they are on a grid."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.attention.checks import check_arrays, for_each_axis
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["rotary", "rotary_angles"]


def rotary_angles(
    grid: int | Sequence[int], head_size: int, *, base: float = 10_000.0, num_prefix: int = 0
) -> Array:
    """The angles by which `rotary` turns the heads at each place of a grid.

    angles[p, a * m + i] = p_a / base^(i / m),   m = head_size // (2 * axes),   0 <= i < m

    with p_a the place along axis a, counted from 0: each axis has an equal share of the head's
    pairs of channels, and within it frequencies from 1 down to nearly 1 / base. In one dimension
    these are the angles of RoFormer, in two and more its axial form.

    Args:
      grid: tokens along each axis; an integer for a sequence.
      head_size: k, at least two channels for each axis. Where twice the axes do not divide it, the
        channels that are left over at the end are not turned.
      base: the longest wave is nearly 2 pi * base tokens long. 10,000 for Su et al. and in Primus;
        Heo et al. take 100 for images.
      num_prefix: tokens before those of the grid, such as a class token, which are not turned:
        their angles are 0.

    Returns:
      (num_prefix + t, axes * m), float32, in radians; t places in raster order, the last axis
      fastest.

    Raises:
      ShapeError: no axis, or one that is empty or no whole number.
      ConfigError: a head of fewer than two channels for each axis.

    Sources: Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021,
    section 3.4.2; Heo et al., "Rotary position embedding for vision transformer", ECCV 2024,
    section 3; in three dimensions as in Wald et al., "Primus: enforcing attention usage for 3D
    medical image segmentation", 2025.

    >>> rotary_angles((2, 2), 4)
    Array([[0., 0.], [0., 1.], [1., 0.], [1., 1.]], dtype=float32)
    """
    grid = for_each_axis(grid, 1)
    if not grid or not all(isinstance(n, int | np.integer) and n >= 1 for n in grid):
        raise ShapeError(
            "rotary_angles",
            f"grid={grid}",
            "at least one axis, each with at least one token",
            "Give the number of tokens along each axis",
        )
    m = head_size // (2 * len(grid))
    if m < 1:
        raise ConfigError(
            "rotary_angles",
            f"head_size={head_size} for {len(grid)} axes",
            "at least two channels for each axis",
            "Take fewer heads, or more features",
            f"head_size={2 * len(grid)}",
        )
    waves = base ** -(jnp.arange(m, dtype=jnp.float32) / m)
    places = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in grid), indexing="ij")
    angles = jnp.concatenate([p.reshape(-1, 1) * waves for p in places], axis=1)
    return jnp.pad(angles, ((num_prefix, 0), (0, 0)))


def rotary(x: Array, angles: Array) -> Array:
    """Turns pairs of neighbouring channels, so that products tell how far apart two tokens are.

    y[2 i]     = x[2 i] cos(angle_i) - x[2 i + 1] sin(angle_i)
    y[2 i + 1] = x[2 i] sin(angle_i) + x[2 i + 1] cos(angle_i)

    for every token and head. The product of a query and a key, both turned, depends on the
    difference of their angles alone.

    Args:
      x: queries or keys, (b, t, n, k).
      angles: (t, m) or (b, t, m) with 2 m <= k, in radians; channels from 2 m on stay.

    Returns:
      (b, t, n, k), of x's dtype; computed in at least float32.

    Raises:
      ShapeError: x is not of tokens and heads; the angles are not those of x's tokens, or more
        than its pairs of channels.

    Source: Su et al., "RoFormer", 2021, equation 34.

    >>> x = jnp.array([1.0, 0.0, 5.0]).reshape(1, 1, 1, 3)
    >>> rotary(x, jnp.array([[jnp.pi / 2]])).round(3).ravel()
    Array([-0.,  1.,  5.], dtype=float32)
    """
    check_arrays("rotary", x=x, angles=angles)
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ShapeError(
            "rotary",
            f"x of {x.dtype} and shape {x.shape}",
            "floating numbers of shape (b, t, n, k)",
            "Make one axis, t, of those of space: x.reshape(b, t, n, k)",
        )
    b, t, n, k = x.shape
    if angles.shape[:-1] not in ((t,), (b, t)) or 2 * angles.shape[-1] > k:
        raise ShapeError(
            "rotary",
            f"angles {angles.shape} for heads {x.shape}",
            f"angles ({t}, m) or ({b}, {t}, m) with m up to {k // 2}",
            "Make them by rotary_angles for this grid, head size and number of prefix tokens",
        )
    m, wide = angles.shape[-1], accumulator(x.dtype)
    angles = angles.astype(wide)[..., None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    pairs = x[..., : 2 * m].astype(wide).reshape(b, t, n, m, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    turned = turned.reshape(b, t, n, 2 * m).astype(x.dtype)
    return turned if 2 * m == k else jnp.concatenate([turned, x[..., 2 * m :]], axis=-1)
