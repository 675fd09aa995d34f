"""Images as windows and back, and the scores within windows.

Windows are (m, n, w, k): m of them, n heads, w voxels in raster order. The grid of windows begins
at `shift` along each axis, and goes on at the other end of the image.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from biojax.kernels.dispatch import accumulator
from biojax.typing import Array, Precision

__all__ = ["Settings", "as_image", "as_windows", "logits", "matmul", "sides"]


class Settings(NamedTuple):
    """What every implementation is told, written out for each spatial axis."""

    window: tuple[int, ...]
    shift: tuple[int, ...]
    scale: float
    precision: Precision


def as_windows(x: Array, settings: Settings) -> Array:
    """(b, *spatial, n, k) to (m, n, w, k), m of all images."""
    window, shift, *_ = settings
    b, *spatial, n, k = x.shape
    rank = len(window)
    if any(shift):
        x = jnp.roll(x, [-s for s in shift], range(1, rank + 1))
    split = [part for size, w in zip(spatial, window, strict=True) for part in (size // w, w)]
    outer, inner = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    x = x.reshape(b, *split, n, k).transpose(0, *outer, 2 * rank + 1, *inner, 2 * rank + 2)
    return x.reshape(-1, n, math.prod(window), k)


def as_image(windows: Array, spatial: tuple[int, ...], settings: Settings) -> Array:
    """(m, n, w, k) to (b, *spatial, n, k)."""
    window, shift, *_ = settings
    _, n, _, k = windows.shape
    rank, counts = len(window), [size // w for size, w in zip(spatial, window, strict=True)]
    pairs = [axis for d in range(rank) for axis in (1 + d, rank + 2 + d)]
    x = windows.reshape(-1, *counts, n, *window, k)
    x = x.transpose(0, *pairs, rank + 1, 2 * rank + 2).reshape(-1, *spatial, n, k)
    return jnp.roll(x, shift, range(1, rank + 1)) if any(shift) else x


def sides(b: int, spatial: tuple[int, ...], settings: Settings) -> Array | None:
    """A number for every voxel that says along which axes its window goes on at the other end.

    Two voxels of a window see each other where theirs are the same. (m, 1, w), or None where
    nothing is shifted.
    """
    if not any(settings.shift):
        return None
    labels = jnp.zeros(spatial, jnp.float32)
    for axis, s in enumerate(settings.shift):
        labels += jnp.where(lax.broadcasted_iota(jnp.int32, spatial, axis) < s, 2.0**axis, 0.0)
    images = jnp.broadcast_to(labels[None, ..., None, None], (b, *spatial, 1, 1))
    return as_windows(images, settings)[..., 0]


def logits(
    query: Array, key: Array, bias: Array | None, side: Array | None, settings: Settings
) -> Array:
    """(m, n, w, k) twice to (m, n, w, w); minus infinity between voxels of different sides."""
    z = settings.scale * matmul(query, key.mT, settings)
    z = z if bias is None else z + bias.astype(z.dtype)
    if side is not None:
        z = jnp.where(side[..., :, None] == side[..., None, :], z, -jnp.inf)
    return z


def matmul(a: Array, b: Array, settings: Settings) -> Array:
    """Products of matrices, summed up in float32 at least."""
    wide = accumulator(a.dtype)
    return jnp.matmul(a, b, precision=settings.precision, preferred_element_type=wide)
