"""Attention along one axis of an image."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.errors import ShapeError
from biojax.kernels.attention.checks import (
    as_array,
    check_arrays,
    check_dtypes,
    check_scores,
    scaled,
)
from biojax.kernels.attention.full import attention
from biojax.kernels.dispatch import of_arrays
from biojax.kernels.meshes import left_to_compiler
from biojax.typing import Array, ArrayLike, Precision

__all__ = ["axial_attention"]

# Scores up to which all lines are computed at once, and of each step if there are more.
SCORES = 2**22
_OPTIONS = ("scale", "is_causal", "precision", "implementation")


def axial_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    axis: int,
    scale: float | Array | None = None,
    is_causal: bool = False,
    precision: Precision = None,
    implementation: str | None = None,
) -> Array:
    """Attention in which each voxel sees those of its line along one axis.

    y[.., i, ..] = attention(query[.., i, ..], key[.., :, ..], value[.., :, ..])

    One after the other along all axes, every voxel reaches every other.

    Args:
      query: images, (b, *spatial, n, k) with one to three spatial axes.
      key: (b, *spatial, m, k), m dividing n; query's size but along the axis, where it is s.
      value: (b, *spatial, m, v), of key's size.
      bias: added to the scaled products, broadcastable to (n, t, s), t the query's size along the
        axis: the same for all lines.
      mask: boolean, broadcastable to (n, t, s); True where a query may look.
      axis: of the arrays, from 1 on: 1 is the first of the spatial ones.
      scale: 1 / sqrt(k) if None; an array of no axes is multiplied into query.
      is_causal: query i of a line sees its keys 0 to i only.
      precision: passed to both products, as in `jax.lax`.
      implementation: of `attention`.

    Returns:
      (b, *spatial, n, v), of query's size and dtype.

    Raises:
      ShapeError: the arrays do not fit together, or the axis is none of space.
      ConfigError: an unknown implementation.

    Time is proportional to the voxels times s; memory to the voxels: lines are computed in groups.
    Source: Ho et al., "Axial attention in multidimensional transformers", 2019, section 3.1.

    >>> q = k = jnp.zeros((1, 2, 2, 1, 1))
    >>> v = jnp.arange(4.0).reshape(1, 2, 2, 1, 1)
    >>> axial_attention(q, k, v, axis=2).reshape(2, 2)
    Array([[0.5, 0.5],
           [2.5, 2.5]], dtype=float32)
    """
    where = "axial_attention"
    axis = _checked_axis(where, query, key, value, axis)
    scores = query.shape[-2], query.shape[axis], key.shape[axis]
    bias = _as_scores(where, "bias", bias, scores)
    mask = _as_scores(where, "mask", mask, scores)
    query, scale = scaled(where, query, scale)
    options = {
        "scale": scale,
        "is_causal": is_causal,
        "precision": precision,
        "implementation": implementation,
    }
    (b, *sizes, n, _), s = query.shape, key.shape[axis]
    count = math.prod(sizes) // query.shape[axis]
    groups = min(count, math.ceil(b * n * math.prod(sizes) * s / SCORES))
    attend = partial(_attend, **options) if groups == 1 else partial(_in_groups, groups, **options)

    def of_images(query, key, value, bias, mask) -> Array:
        y = attend(tuple(_lines(x, axis) for x in (query, key, value)), bias, mask)
        others = [size for i, size in enumerate(sizes, 1) if i != axis]
        return jnp.moveaxis(y.reshape(b, *others, *y.shape[2:]), -3, axis)

    alone, arrays = of_arrays(of_images, (query, key, value, bias, mask), {})
    return left_to_compiler(alone, *arrays)


Lines = tuple[Array, Array, Array]


def _attend(lines: Lines, bias: Array | None, mask: Array | None, **options) -> Array:
    """Attention of each line (b, lines, t, n, k)."""
    b, count, *_ = lines[0].shape
    query, key, value = (x.reshape(-1, *x.shape[2:]) for x in lines)
    y = attention(query, key, value, bias, mask, **options)
    return y.reshape(b, count, *y.shape[1:])


@partial(jax.jit, static_argnums=0, static_argnames=_OPTIONS)
def _in_groups(groups: int, lines: Lines, bias: Array | None, mask: Array | None, **options):
    """The same, some lines after the others; the scores of a group are not kept for gradients.

    Lines of zeros fill the last group.
    """
    attend = jax.checkpoint(lambda lines: _attend(lines, bias, mask, **options))
    count = lines[0].shape[1]
    size = -(-count // groups)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -count % size), *[(0, 0)] * 3])
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    y = jnp.moveaxis(lax.map(attend, tuple(map(split, lines))), 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :count]


def _lines(x: Array, axis: int) -> Array:
    """(b, *spatial, n, k) to its lines along an axis, (b, lines, t, n, k)."""
    x = jnp.moveaxis(x, axis, -3)
    return x.reshape(x.shape[0], -1, *x.shape[-3:])


def _checked_axis(where: str, query: Array, key: Array, value: Array, axis: int) -> int:
    """The axis, counted from the front, if everything fits."""
    check_arrays(where, query=query, key=key, value=value)
    rank = query.ndim - 3
    got = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if not (
        1 <= rank <= 3
        and query.ndim == key.ndim == value.ndim
        and query.shape[-1] == key.shape[-1]
        and key.shape[-2] == value.shape[-2]
        and min(*query.shape, *key.shape, *value.shape) > 0
        and query.shape[-2] % key.shape[-2] == 0
    ):
        raise ShapeError(
            where,
            got,
            "query (b, *spatial, n, k), key (b, *spatial, m, k), value (b, *spatial, m, v), n a "
            "multiple of m, with one to three spatial axes, none of them empty",
            "Heads come before their channels: x.reshape(b, *spatial, n, k)",
        )
    check_dtypes(where, query, key, value)
    if not 1 <= (axis % query.ndim if -query.ndim <= axis < query.ndim else 0) <= rank:
        raise ShapeError(
            where,
            f"axis={axis} of an image of shape {query.shape}",
            f"an axis of space, 1 to {rank}",
            "Batch, heads and channels are no axes to attend along",
            f"axis={min(max(axis, 1), rank)}",
        )
    axis %= query.ndim
    of_query, of_key = (x.shape[:axis] + x.shape[axis + 1 : -2] for x in (query, key))
    if of_query != of_key or key.shape[:-2] != value.shape[:-2]:
        raise ShapeError(
            where,
            f"{got} and axis={axis}",
            "images of one size, but for query's along the axis",
            "Attend along an axis that all lines have in common",
        )
    return axis


def _as_scores(
    where: str, name: str, given: ArrayLike | None, scores: tuple[int, ...]
) -> Array | None:
    """A bias or a mask, so called by the caller, if it fits scores (n, t, s)."""
    if given is None:
        return None
    array = as_array(where, name, given)
    check_scores(where, name, array, "(n, t, s)", scores)
    return array
