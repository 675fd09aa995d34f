"""Attention along one axis of an image."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.errors import ShapeError
from biojax.kernels.attention.checks import as_array, scaled
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
    bias, mask = (
        None if given is None else as_array(where, name, given)
        for name, given in (("bias", bias), ("mask", mask))
    )
    axis = _checked(where, query, key, value, bias, mask, axis)
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


def _checked(where: str, query, key, value, bias, mask, axis: int) -> int:
    """The axis, counted from the front, if everything fits."""
    rank = query.ndim - 3
    if not (1 <= rank <= 3 and query.ndim == key.ndim == value.ndim):
        raise ShapeError(
            where,
            f"query {query.shape}, key {key.shape}, value {value.shape}",
            "query (b, *spatial, n, k), key (b, *spatial, m, k), value (b, *spatial, m, v), with "
            "one to three spatial axes",
            "Heads come before their channels: x.reshape(b, *spatial, n, k)",
        )
    if not 1 <= (axis % query.ndim if -query.ndim <= axis < query.ndim else 0) <= rank:
        raise ShapeError(
            where,
            f"axis={axis} of an image of shape {query.shape}",
            f"an axis of space, 1 to {rank}",
            "Batch, heads and channels are no axes to attend along",
            f"axis={min(max(axis, 1), rank)}",
        )
    axis %= query.ndim
    sizes = [x.shape[1:axis] + x.shape[axis + 1 : -2] for x in (query, key, value)]
    if sizes.count(sizes[0]) < 3 or 0 in (*query.shape, *key.shape, *value.shape):
        raise ShapeError(
            where,
            f"query {query.shape}, key {key.shape}, value {value.shape} and axis={axis}",
            "images of one size, but for the axis, and none empty",
            "Attend along an axis that all lines have in common",
        )
    for name, array in (("bias", bias), ("mask", mask)):
        if array is not None and array.ndim > 3:
            raise ShapeError(
                where,
                f"{name} of shape {array.shape}",
                f"a shape that broadcasts to (n, t, s) = "
                f"{(query.shape[-2], query.shape[axis], key.shape[axis])}",
                f"Use one {name} for all lines",
            )
    return axis
