"""The orders in which voxels are visited, by name.

| order | walks |
| --- | --- |
| "zyx", or these letters in another order | in raster order, the slowest axis first |
| "snake", "morton", "hilbert" | along a curve |
| "hilbert:xyz" | along the curve of the volume with its axes in that order, the slowest first |
| "-" and one of these | the same path backwards |

The letters of an image are "yx", of a sequence "x". As `hilbert` chooses its axes by their lengths,
letters matter to it only where lengths are equal.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from biojax.errors import ConfigError, ShapeError, nearest
from biojax.kernels.scan import curves

__all__ = [
    "THREE_PLANES",
    "TRI_ORIENTATED",
    "Order",
    "cross_scan_orders",
    "parse",
    "permutation",
    "raster_orders",
]

_AXES = "zyx"
_CURVES = {"snake": curves.snake, "morton": curves.morton, "hilbert": curves.hilbert}

# Forward, backward, and along z at each pixel of a slice. Source: Xing et al., "SegMamba", MICCAI
# 2024, the tri-orientated Mamba of section 2.1; its code tells slices apart by their number for
# volumes of 128^3 voxels.
TRI_ORIENTATED = ("zyx", "-zyx", "yxz")

# One axial slice after the other, one coronal, one sagittal. Source: Xing et al., "SegMamba-V2",
# IEEE Transactions on Medical Imaging, 2025: the tri-orientated block.
THREE_PLANES = ("zyx", "yzx", "xyz")


class Order(NamedTuple):
    """An order, taken apart.

    Args:
      curve: the name of a curve, or "raster".
      axes: the spatial axes, counted from 0, slowest first.
      backward: whether the path is walked backwards.
    """

    curve: str
    axes: tuple[int, ...]
    backward: bool


def raster_orders(spatial_dims: int) -> tuple[str, ...]:
    """Every raster order, and then every one backwards: 2, 4 or 12 of them.

    Raises:
      ShapeError: spatial_dims is not 1, 2 or 3.

    >>> raster_orders(2)
    ('yx', 'xy', '-yx', '-xy')
    """
    letters = _letters("raster_orders", spatial_dims)
    return _both_ways("".join(named) for named in itertools.permutations(letters))


def cross_scan_orders(spatial_dims: int) -> tuple[str, ...]:
    """Raster orders with each axis once in each place, and then backwards: 2, 4 or 6 of them.

    In 2-D these are the four of VMamba's cross-scan, in its order; in 3-D their analogue, in which
    each axis is once the fastest one, forward and backward.

    Raises:
      ShapeError: spatial_dims is not 1, 2 or 3.

    Source: Liu et al., "VMamba: visual state space model", NeurIPS 2024, the 2D
    selective scan.

    >>> cross_scan_orders(3)
    ('zyx', 'yxz', 'xzy', '-zyx', '-yxz', '-xzy')
    """
    letters = _letters("cross_scan_orders", spatial_dims)
    return _both_ways(letters[i:] + letters[:i] for i in range(spatial_dims))


def permutation(order: str, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """An order as a permutation of the voxels of a box, and its inverse.

    Args:
      order: the name of an order.
      shape: size of each of one to three spatial axes.

    Returns:
      indices: the flat index, in C order, of the voxel visited at each step, (t,), of int32 where
        that holds it. inverse: the step at which each voxel is visited, (t,). The last two are kept
        for the next call, and so cannot be written to.

    Raises:
      ShapeError: shape is not one to three positive integers.
      ConfigError: no order of that name for as many axes.

    >>> indices, inverse = permutation("-xy", (2, 3))
    >>> indices
    array([5, 2, 4, 1, 3, 0], dtype=int32)
    >>> indices[inverse]
    array([0, 1, 2, 3, 4, 5], dtype=int32)
    """
    sizes = curves.checked("permutation", shape)
    return permuted(parse("permutation", order, len(sizes)), sizes)


@functools.lru_cache(maxsize=1)  # 8 bytes for each voxel, of which there may be 10^8
def permuted(order: Order, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`permutation` of what is known to be right."""
    indices = np.arange(math.prod(shape)).reshape(shape).transpose(order.axes).ravel()
    if order.curve != "raster":
        indices = indices[_CURVES[order.curve]([shape[axis] for axis in order.axes])]
    if order.backward:
        indices = indices[::-1]
    inverse = np.empty_like(indices)
    inverse[indices] = np.arange(indices.size)
    return curves.read_only(indices), curves.read_only(inverse)


def parse(where: str, order: str, spatial_dims: int) -> Order:
    """The order of that name; `where` is the function that was asked for it.

    Raises:
      ShapeError: spatial_dims is not 1, 2 or 3.
      ConfigError: no order of that name for as many axes.

    >>> parse("traverse", "-hilbert:xyz", 3)
    Order(curve='hilbert', axes=(2, 1, 0), backward=True)
    """
    letters = _letters(where, spatial_dims)
    known = _known(letters)
    if not isinstance(order, str) or order not in known:
        raise ConfigError(
            where,
            f"order={order!r} for {spatial_dims} spatial axes",
            f"{letters!r} in any order, slowest first, or {', '.join(map(repr, _CURVES))}, "
            f"which may be followed by ':{letters}' in any order; a leading '-' walks backwards",
            "Name one of these",
            nearest(str(order), known),
        )
    return known[order]


def _letters(where: str, spatial_dims: int) -> str:
    if spatial_dims not in (1, 2, 3):
        raise ShapeError(
            where, f"{spatial_dims} spatial axes", "1, 2 or 3", "Name the axes x, yx or zyx"
        )
    return _AXES[-spatial_dims:]


@functools.cache
def _known(letters: str) -> Mapping[str, Order]:
    """Every name that there is: they are few."""
    paths = {curve: (curve, tuple(range(len(letters)))) for curve in _CURVES}
    for named in map("".join, itertools.permutations(letters)):
        axes = tuple(map(letters.index, named))
        paths[named] = ("raster", axes)
        paths |= {f"{curve}:{named}": (curve, axes) for curve in _CURVES}
    forward = {name: Order(curve, axes, False) for name, (curve, axes) in paths.items()}
    return forward | {f"-{name}": order._replace(backward=True) for name, order in forward.items()}


def _both_ways(orders: Iterable[str]) -> tuple[str, ...]:
    forward = tuple(orders)
    return forward + tuple(f"-{order}" for order in forward)
