"""Biases of attention that depend on where one voxel of a window lies from another."""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.kernels.axes import per_axis
from biojax.kernels.resize import resize
from biojax.typing import Array, IntOrTuple

__all__ = ["relative_bias", "resize_relative_table"]


def relative_bias(table: Array, window_size: Sequence[int]) -> Array:
    """The bias of every pair of voxels in a window, by the offset of one from the other.

    bias[n, i, j] = table[o(i - j), n],
    o(d) = ((d_z + w_z - 1) * (2 w_y - 1) + d_y + w_y - 1) * (2 w_x - 1) + d_x + w_x - 1

    for voxels i and j in raster order, z slowest, and in the same way along fewer or more axes.

    Args:
      table: ((2 w_z - 1) * (2 w_y - 1) * (2 w_x - 1), n), one number for each offset and head.
      window_size: of each axis.

    Returns:
      (n, w, w), w the voxels of a window; of table's dtype.

    Raises:
      ShapeError: the table is for other windows.

    Made of slices, so that gradients scatter nothing.
    Source: Liu et al., "Swin Transformer", ICCV 2021, section 3.2.

    >>> relative_bias(jnp.array([[-1.0], [0.0], [1.0]]), [2])[0]
    Array([[ 0., -1.],
           [ 1.,  0.]], dtype=float32)
    """
    window = _window_of(table, "relative_bias", window_size)
    x = table.reshape(*(2 * w - 1 for w in window), table.shape[1])
    for w in window:  # the first axis, d, becomes the last two, i and j
        x = jnp.flip(x, 0)
        x = jnp.stack([x[w - 1 - i : 2 * w - 1 - i] for i in range(w)])
        x = jnp.moveaxis(x, (0, 1), (-2, -1))
    rank, voxels = len(window), math.prod(window)
    x = x.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2))
    return x.reshape(-1, voxels, voxels)


def resize_relative_table(table: Array, window_size: Sequence[int], to: Sequence[int]) -> Array:
    """The table for windows of another size, read between its offsets by linear interpolation.

    Offset d of this table is d (2 w' - 1) / (2 w - 1) of the other, as in `biojax.kernels.resize`;
    the outermost are repeated where nothing lies beyond them.

    Args:
      table: as of `relative_bias`.
      window_size: of each of one to three axes, of this table.
      to: of the same axes, of the table asked for.

    Returns:
      ((2 w'_z - 1) * (2 w'_y - 1) * (2 w'_x - 1), n), of table's dtype.

    Raises:
      ShapeError: the table is for other windows.

    >>> resize_relative_table(jnp.array([[0.0], [3.0], [6.0]]), [2], [3])[:, 0]
    Array([0. , 1.2, 3. , 4.8, 6. ], dtype=float32)
    """
    where = "resize_relative_table"
    window = _window_of(table, where, window_size)
    size = tuple(2 * w - 1 for w in per_axis(where, "to", to, len(window)))
    grid = table.reshape(1, *(2 * w - 1 for w in window), table.shape[1])
    return resize(grid, size).reshape(-1, table.shape[1])


def _window_of(table: Array, where: str, window_size: IntOrTuple) -> tuple[int, ...]:
    rank = len(window_size) if isinstance(window_size, Sequence) else 1
    window = per_axis(where, "window_size", window_size, rank)
    rows = math.prod(2 * w - 1 for w in window)
    if table.ndim != 2 or table.shape[0] != rows:
        raise ShapeError(
            where,
            f"table of shape {table.shape} for windows of {window}",
            f"({rows}, n), one row for each offset",
            "Give the window that the table was made for, and then resize_relative_table",
        )
    return window
