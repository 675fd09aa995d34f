"""Paths that visit every voxel of a box once, in time and memory linear in the voxels.

A path lists flat indices in C order, as `np.ravel_multi_index` counts, in the order visited. The
last one is kept for the next call with the same shape, and so cannot be written to.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from biojax.errors import ShapeError

__all__ = ["checked", "hilbert", "morton", "read_only", "snake"]

# Sizes along the three axes of a box that is being cut, the axis that it is walked along first.
_Sizes = tuple[int, int, int]


def snake(shape: Sequence[int]) -> np.ndarray:
    """Raster order that turns around at the end of every row and of every slice.

    Successive voxels share a face.

    Args:
      shape: size of each of one to three axes, slowest first.

    Returns:
      The flat index of each voxel in the order visited, (t,), of int32 where that holds it.

    Raises:
      ShapeError: shape is not one to three positive integers.

    >>> snake((3, 3))
    array([0, 1, 2, 5, 4, 3, 6, 7, 8], dtype=int32)
    """
    return _kept(_snake, checked("snake", shape))


def morton(shape: Sequence[int]) -> np.ndarray:
    """Morton's order: by the bits of a voxel's coordinates, interleaved.

    The lowest bit is that of the last axis, the next one that of the axis before, and so on. Only
    the voxels that exist are counted, so that any size will do.

    Args:
      shape: size of each of one to three axes, slowest first.

    Returns:
      The flat index of each voxel in the order visited, (t,), of int32 where that holds it.

    Raises:
      ShapeError: shape is not one to three positive integers.

    Source: Morton, "A computer oriented geodetic data base and a new technique in file sequencing",
    IBM, 1966.

    >>> morton((2, 4))
    array([0, 1, 4, 5, 2, 3, 6, 7], dtype=int32)
    """
    return _kept(_morton, checked("morton", shape))


def hilbert(shape: Sequence[int]) -> np.ndarray:
    """Hilbert's curve, for any size. Successive voxels share a face; no step is ever diagonal.

    It runs from the first voxel to the far end of one axis: of the longest of those of even length
    or, if all are odd, of the longest (of several, the last). A box of a x b x c voxels that is
    walked so, from a corner to the other end of a, is cut into boxes that are walked in turn, each
    along the axis named, and entered next to where the one before was left:

    | cut into | along | when |
    | --- | --- | --- |
    | two halves of a | a, a | a is more than 3/2 of b and of c |
    | three, with the whole of c | b, a, b backwards | c is less than 3/4 of b, or a is odd |
    | five | b, c, a, c backwards, b backwards | otherwise |

    Colour the voxels black and white like a chessboard. Each step changes the colour, so that a
    path from a corner to the other end of a needs a even, or a, b and c odd. Therefore b is cut
    after an even number of voxels, and so is an a cut in two; in a cut into five with b and c odd,
    a is cut after an odd number. Then every part is again of that kind, down to rows. Cubes and
    squares whose sides are a power of two are cut into octants and quadrants, as Hilbert's are.

    Args:
      shape: size of each of one to three axes.

    Returns:
      The flat index of each voxel in the order visited, (t,), of int32 where that holds it.

    Raises:
      ShapeError: shape is not one to three positive integers.

    Sources: Hilbert, "Ueber die stetige Abbildung einer Linie auf ein Flächenstück",
    Mathematische Annalen 38, 1891. Rectangles of any size: Zhang, Kamata and Ueshige, "A
    pseudo-Hilbert scan algorithm for arbitrarily-sized rectangle region", IWICPAS 2006; boxes:
    Červený, "Gilbert", https://github.com/jakubcerveny/gilbert, 2018, with diagonal steps where
    lengths are odd. The condition for the cuts is derived here.

    >>> hilbert((4, 4))
    array([ 0,  1,  5,  4,  8, 12, 13,  9, 10, 14, 15, 11,  7,  6,  2,  3], dtype=int32)
    >>> hilbert((3, 3))
    array([0, 3, 6, 7, 8, 5, 4, 1, 2], dtype=int32)
    """
    return _kept(_hilbert, checked("hilbert", shape))


def checked(where: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes of a box; `where` is the function that was given them."""
    sizes = tuple(np.ravel(shape).tolist())
    if not 1 <= len(sizes) <= 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ShapeError(
            where,
            f"shape={shape}",
            "one to three positive integers",
            "Give the size of each spatial axis",
        )
    return sizes


@functools.lru_cache(maxsize=1)  # 4 bytes for each voxel, of which there may be 10^8
def _kept(curve: Callable[[tuple[int, ...]], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return read_only(curve(shape))


def read_only(path: np.ndarray) -> np.ndarray:
    """A copy that cannot be written to, of int32 where that holds its indices."""
    path = path.astype(np.int32 if path.size <= np.iinfo(np.int32).max else np.int64)
    path.flags.writeable = False
    return path


def _snake(shape: tuple[int, ...]) -> np.ndarray:
    path = np.zeros(1, int)
    for n in reversed(shape):
        rows = np.arange(n)[:, None] * path.size + path
        rows[1::2] = rows[1::2, ::-1]
        path = rows.ravel()
    return path


def _morton(shape: tuple[int, ...]) -> np.ndarray:
    """Voxels are written where their codes say in a table of fewer than 2^d times their number."""
    bits = [(n - 1).bit_length() for n in shape]
    lowest_first = [
        (bit, axis)
        for bit in range(max(bits))
        for axis in reversed(range(len(shape)))
        if bit < bits[axis]
    ]
    codes = [np.zeros(n, int) for n in shape]
    for place, (bit, axis) in enumerate(lowest_first):
        codes[axis] |= (np.arange(shape[axis]) >> bit & 1) << place
    code = functools.reduce(np.add.outer, codes).ravel()
    voxels = np.full(1 << len(lowest_first), -1)
    voxels[code] = np.arange(code.size)
    return voxels[voxels >= 0]


def _hilbert(shape: tuple[int, ...]) -> np.ndarray:
    sizes = np.array((*shape, 1, 1)[:3])
    first = max(range(len(shape)), key=lambda axis: (shape[axis] % 2 == 0, shape[axis], axis))
    a, b, c = np.roll(sizes, -first).tolist()
    path = np.roll(_walk((a, b, c), {}), first, axis=0)
    return np.asarray(np.ravel_multi_index(tuple(path), tuple(sizes.tolist())))


class _Part(NamedTuple):
    """A box inside of another one.

    Args:
      start: the voxel where it is entered, a corner.
      extent: its sizes along a, b, c, negative where it lies before that corner.
      along: the axis that it is walked along: 0, 1, 2 for a, b, c.
    """

    start: _Sizes
    extent: _Sizes
    along: int


def _walk(sizes: _Sizes, known: dict[_Sizes, np.ndarray]) -> np.ndarray:
    """The coordinates (3, t) from one corner to the other end of the first axis.

    Parts of the same size are walked once, which makes it linear: sizes halve, and there are few.
    """
    a, b, c = sizes
    if sizes not in known:
        if b == c == 1:
            known[sizes] = np.stack([np.arange(a, dtype=np.int32), *np.zeros((2, a), np.int32)])
        elif _is_turned(a, b, c):
            known[sizes] = _walk((a, c, b), known)[[0, 2, 1]]
        else:
            parts = [_placed(part, known) for part in _cut(a, b, c)]
            known[sizes] = np.concatenate(parts, axis=1)
    return known[sizes]


def _placed(part: _Part, known: dict[_Sizes, np.ndarray]) -> np.ndarray:
    a, b, c = np.roll(np.abs(part.extent), -part.along).tolist()
    path = np.roll(_walk((a, b, c), known), part.along, axis=0)
    start, sign = np.array([part.start, np.sign(part.extent)], np.int32)[..., None]
    return start + sign * path


def _is_flat(a: int, b: int, c: int) -> bool:
    """Whether to leave the shorter of b and c whole."""
    return a % 2 == 1 or 3 * max(b, c) > 4 * min(b, c)


def _is_turned(a: int, b: int, c: int) -> bool:
    """Whether c is to play the part of b: of the longer one or, cut into five, of an odd one."""
    if not _is_flat(a, b, c) and b % 2 != c % 2:
        return b % 2 == 0
    return c > b


def _cut(a: int, b: int, c: int) -> list[_Part]:
    if 2 * a > 3 * max(b, c):
        a1 = _even_half(a)
        return [_Part((0, 0, 0), (a1, b, c), 0), _Part((a1, 0, 0), (a - a1, b, c), 0)]
    a1, b1, c1 = a // 2, _even_half(b), c // 2
    if _is_flat(a, b, c):
        return [
            _Part((0, 0, 0), (a1, b1, c), 1),
            _Part((0, b1, 0), (a, b - b1, c), 0),
            _Part((a - 1, b1 - 1, 0), (a1 - a, -b1, c), 1),
        ]
    if b % 2 == c % 2 == 1:
        a1 = (a1 - 1) | 1  # odd
    return [
        _Part((0, 0, 0), (a1, b1, c1), 1),
        _Part((0, b1, 0), (a1, b - b1, c), 2),
        _Part((0, b1 - 1, c - 1), (a, -b1, c1 - c), 0),
        _Part((a - 1, b1, c - 1), (a1 - a, b - b1, -c), 2),
        _Part((a - 1, b1 - 1, 0), (a1 - a, -b1, c1), 1),
    ]


def _even_half(n: int) -> int:
    """Half of n as an even number from 2 to n - 1; 1 for n = 2, a box of 2 x 2 x 2 or less."""
    return (n + 1) // 4 * 2 or 1
