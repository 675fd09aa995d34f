"""Overlapping windows that cover a volume: where each starts, in raster order."""

import math
from collections.abc import Sequence

import numpy as np

from biojax.errors import ConfigError, ShapeError

__all__ = ["boxes"]


def boxes(shape: Sequence[int], window: Sequence[int], overlap: float = 0.5) -> np.ndarray:
    """Start corners of the fewest windows that cover `shape`, evenly spread.

    Along an axis of length l, with windows of length w, neighbours share at least
    ceil(overlap * w) voxels, so they step by at most s = max(1, w - ceil(overlap * w)), and

        n = 1 + ceil((l - w) / s),      start_i = floor(i (l - w) / (n - 1)),      i < n.

    The first window starts at 0 and the last ends at l. No window leaves the shape, save where
    w > l: there the one start is 0, and the caller pads the far end to the window.

    Args:
      shape: lengths of the spatial axes, any number of them.
      window: length of the window along each.
      overlap: the least fraction of a window that neighbours share, in [0, 1). Windows step by
        whole voxels and by at least one, which bounds what can be shared.

    Returns:
      (n, len(shape)) integers, the last axis fastest.

    Raises:
      ShapeError: the ranks differ, or a length is below 1.
      ConfigError: `overlap` lies outside [0, 1).

    >>> boxes((4, 10), (4, 4), overlap=0.25)
    array([[0, 0], [0, 3], [0, 6]])
    """
    shape, window = tuple(shape), tuple(window)
    if len(shape) != len(window) or not shape:
        raise ShapeError(
            "boxes",
            f"shape {shape} and window {window}",
            "one window length for each axis",
            "Leave batch and channel axes out of both",
        )
    if min(shape + window) < 1:
        raise ShapeError(
            "boxes",
            f"shape {shape} and window {window}",
            "lengths of 1 or more",
            "Give a window of whole voxels and a volume that is not empty",
        )
    if not 0 <= overlap < 1:
        raise ConfigError(
            "boxes",
            f"overlap={overlap}",
            "a fraction in [0, 1)",
            "Give the share of a window, such as 0.5, not voxels or percent",
        )
    starts = [_starts(*lengths, overlap) for lengths in zip(shape, window, strict=True)]
    return np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(shape))


def _starts(length: int, window: int, overlap: float) -> np.ndarray:
    room = max(length - window, 0)
    # Rounding first keeps 0.07 * 100 = 7.000000000000001 from asking for an eighth voxel.
    step = max(1, window - math.ceil(round(overlap * window, 6)))
    steps = -(-room // step)
    return np.arange(steps + 1) * room // max(steps, 1)
