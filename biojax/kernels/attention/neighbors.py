"""Who sees whom in neighbourhood attention: along each axis alone, as tables of integers."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax import lax

from biojax.errors import ShapeError
from biojax.typing import Array

__all__ = ["Axis", "Part", "neighbors", "part_of", "with_halo"]


class Axis(NamedTuple):
    """A spatial axis.

    Args:
      size: voxels, of all parts together.
      kernel_size: keys that a query sees.
      dilation: voxels from one of these to the next.
      stride: queries in a row, of one residue class, that share a window.
      is_causal: whether keys after the query are hidden.
      name: of the axis of the mesh over which this one is spread, or None.
      parts: into which it is spread.
    """

    size: int
    kernel_size: int
    dilation: int = 1
    stride: int = 1
    is_causal: bool = False
    name: str | None = None
    parts: int = 1


class Part(NamedTuple):
    """What each of the parts of an axis needs, tables in terms of the part and its halo.

    Args:
      before, after: keys of the halo on either side.
      first: (parts, queries), the first key that each query sees.
      counts: (parts, queries), how many keys it sees.
    """

    before: int
    after: int
    first: np.ndarray
    counts: np.ndarray


def neighbors(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """The first key that each query sees, and how many: i sees first[i] + j dilation, j < count[i].

    A query sees keys of its own residue class modulo the dilation only. There, of length L, the
    query at place p has a leader, the one in the middle of its group of `stride` queries, and

        first = clip(leader - kernel_size // 2, 0, L - kernel_size),   count = kernel_size.

    So windows are shifted inside at the edges, and one of even size has its larger half before the
    query. Causal windows end at the query and begin where that of the last of its group does:

        leader = last of the group,   first = max(leader - kernel_size + 1, 0),
        count = p - first + 1.

    Both are of shape (size,).

    >>> neighbors(Axis(6, 3))
    (array([0, 0, 1, 2, 3, 3]), array([3, 3, 3, 3, 3, 3]))
    >>> neighbors(Axis(6, 3, is_causal=True))
    (array([0, 0, 0, 1, 2, 3]), array([1, 2, 3, 3, 3, 3]))
    """
    size, kernel_size, dilation, stride, is_causal, *_ = axis
    place, own = np.divmod(np.arange(size), dilation)
    length = -(-(size - own) // dilation)
    ahead = stride - 1 if is_causal else stride // 2
    leader = np.minimum(place // stride * stride + ahead, length - 1)
    if is_causal:
        first = np.maximum(leader - kernel_size + 1, 0)
        count = place - first + 1
    else:
        first = np.clip(leader - kernel_size // 2, 0, length - kernel_size)
        count = np.full(size, kernel_size)
    return own + dilation * first, count


def part_of(where: str, axis: Axis) -> Part:
    """The tables of `neighbors`, cut into the parts of the axis.

    A halo before a part is a multiple of the dilation, so that classes are the same in all parts.

    Raises:
      ShapeError: parts are smaller than their halo, or the dilation does not divide them.
    """
    first, count = (table.reshape(axis.parts, -1) for table in neighbors(axis))
    size = first.shape[1]
    begin = size * np.arange(axis.parts)[:, None]
    last = first + (count - 1) * axis.dilation
    before = math.ceil((begin - first).max() / axis.dilation) * axis.dilation
    after = int((last - begin).max()) + 1 - size
    if axis.parts > 1 and (max(before, after) > size or size % axis.dilation):
        raise ShapeError(
            where,
            f"parts of {size} voxels on each of {axis.parts} devices for kernel_size="
            f"{axis.kernel_size} and dilation={axis.dilation}",
            f"at least {max(before, after)} voxels on each, a multiple of the dilation",
            "Spread the axis over fewer devices",
        )
    return Part(before, after, first - begin + before, count)


def with_halo(x: Array, axes: Sequence[Axis], parts: Sequence[Part]) -> Array:
    """A device's part of (b, *spatial, n, k) between what it sees of its neighbours'.

    Beyond the image there are zeros, which no query sees.
    """
    for i, (axis, part) in enumerate(zip(axes, parts, strict=True)):
        if axis.name is None:
            continue
        n, onwards = x.shape[i + 1], list(itertools.pairwise(range(axis.parts)))
        pieces = [x]
        if part.before:
            end = lax.slice_in_dim(x, n - part.before, n, axis=i + 1)
            pieces = [lax.ppermute(end, axis.name, onwards), *pieces]
        if part.after:
            begin = lax.slice_in_dim(x, 0, part.after, axis=i + 1)
            pieces = [*pieces, lax.ppermute(begin, axis.name, [pair[::-1] for pair in onwards])]
        x = lax.concatenate(pieces, i + 1)
    return x
