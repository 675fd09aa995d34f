"""How an image is cut into tiles of queries, each with the box of keys that they see."""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from biojax.kernels.attention.neighbors import Axis, part_of

__all__ = ["Cut", "Plan", "plan_of"]

# Scores of a step: in cache, on the CPUs of today, and long to compute beside what a step costs.
SCORES = 2**20
# Tiles that go together at most: each is sliced out by an operation of its own.
GROUP = 4
# What a step costs beside its scores, and what a key of a box does, in scores (measured on a CPU).
STEP, KEY = 2**13, 16
# Queries of a tile along an axis.
_TILES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Cut(NamedTuple):
    """An axis cut into tiles of queries, each with a box of keys.

    Args:
      queries: (tiles, tile), of which voxels; the number of all voxels where there is none.
      keys: all keys by residue class.
      box: keys of a box.
      first: (parts, tiles), the first key of each box, in that order.
      begin, end: (parts, tiles, tile), which keys of its box a query sees.
    """

    queries: np.ndarray
    keys: np.ndarray
    box: int
    first: np.ndarray
    begin: np.ndarray
    end: np.ndarray


class Plan(NamedTuple):
    """The cuts of the three axes, and how many tiles along the last one a step takes."""

    cuts: tuple[Cut, Cut, Cut]
    group: int

    @property
    def steps(self) -> tuple[int, int, int]:
        """Along each axis."""
        z, y, x = (len(cut.queries) for cut in self.cuts)
        return z, y, x // self.group


@lru_cache(maxsize=256)
def plan_of(axes: tuple[Axis, ...], rows: int) -> Plan:
    """The tiles that cost least, where a batch has so many heads together."""
    choices = [[_cut(axis, tile) for tile in _TILES if tile <= axis.size] for axis in axes]

    def sizes(cuts: Sequence[Cut]) -> tuple[int, int, int]:
        """Tiles along the last axis that go together, queries of a tile, keys of a box."""
        m, s = math.prod(cut.queries.shape[1] for cut in cuts), math.prod(cut.box for cut in cuts)
        tiles = len(cuts[-1].queries)
        most = max(1, min(tiles, GROUP, SCORES // (rows * m * s)))
        return math.ceil(tiles / math.ceil(tiles / most)), m, s

    def cost(cuts: Sequence[Cut]) -> float:
        group, m, s = sizes(cuts)
        tiles = math.prod(len(cut.queries) for cut in cuts)
        too_many = max(1, rows * m * s / SCORES)
        return tiles * rows * s * (m + KEY) * too_many + STEP * math.ceil(tiles / group)

    z, y, x = min(itertools.product(*choices), key=cost)
    group, *_ = sizes((z, y, x))
    return Plan((z, y, _cut(axes[-1], x.queries.shape[1], group)), group)


@lru_cache(maxsize=1024)
def _cut(axis: Axis, tile: int, group: int = 1) -> Cut:
    """Tiles of so many queries, their number a multiple of `group`."""
    before, after, first, counts = part_of("neighborhood_attention", axis)
    size = first.shape[1]
    keys = np.argsort(np.arange(before + size + after) % axis.dilation, kind="stable")
    classes = [np.arange(own, size, axis.dilation) for own in range(axis.dilation)]
    full = [np.pad(c, (0, -len(c) % tile), constant_values=size) for c in classes]
    queries = np.concatenate(full).reshape(-1, tile)
    queries = np.pad(queries, ((0, -len(queries) % group), (0, 0)), constant_values=size)
    # Where there is none the first of its tile is looked at, or of all, that no box be larger.
    some = np.where(queries < size, queries, queries[:, :1]) % size
    begin = np.argsort(keys)[first][:, some]
    end = begin + counts[:, some]
    low = begin.min(axis=-1, keepdims=True)
    box = int((end.max(axis=-1, keepdims=True) - low).max())
    low = np.minimum(low, len(keys) - box)
    first, begin, end = (x.astype(np.int32) for x in (low[..., 0], begin - low, end - low))
    return Cut(queries, keys, box, first, begin, end)
