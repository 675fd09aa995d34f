"""Neighbourhood attention tile by tile: a few queries against the box of keys that they see.

Along each axis the windows of a tile's queries lie in one interval of keys, so those of the tile
lie in a box, which is sliced out and multiplied with the queries whole; what a query does not see
of it is masked. Voxels are sorted by residue class first where keys are dilated. What is in memory
beside volumes are the scores of one step: some tiles that follow each other along the last axis.

The gradient computes the weights again from the log of their sum, as in Dao et al.,
"FlashAttention", NeurIPS 2022, section 3.1, and adds what a step finds for keys to their volumes.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.attention.neighbors import Axis, part_of
from biojax.kernels.conv.blocks import varying
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array, Precision

__all__ = ["neighborhood_attention"]

# Scores of a step: in cache, on the CPUs of today, and long to compute beside what a step costs.
SCORES = 2**20
# Tiles that go together at most: each is sliced out by an operation of its own.
GROUP = 8
# What a step costs beside its scores, and what a key of a box does, in scores (measured on a CPU).
STEP, KEY = 2**14, 16
# Queries of a tile along an axis.
_TILES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class _Cut(NamedTuple):
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


class _Plan(NamedTuple):
    """The cuts of the three axes, and how many tiles along the last one a step takes."""

    cuts: tuple[_Cut, _Cut, _Cut]
    group: int

    @property
    def steps(self) -> tuple[int, int, int]:
        """Along each axis."""
        z, y, x = (len(cut.queries) for cut in self.cuts)
        return z, y, x // self.group


@partial(jax.jit, static_argnames=["axes", "scale", "precision"])
def neighborhood_attention(query, key, value, axes, scale, precision) -> Array:
    """Arguments as in the package, `scale` a number, keys and values with their halo."""
    missing = 3 - len(axes)
    axes = (*[Axis(1, 1)] * missing, *axes)
    q, k, v = (jnp.expand_dims(x, tuple(range(1, 1 + missing))) for x in (query, key, value))
    y: Array = _attend(axes, scale, precision, q, k, v)
    return y.reshape(*query.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(
    axes: tuple[Axis, ...],
    scale: float,
    precision: Precision,
    query: Array,
    key: Array,
    value: Array,
) -> Array:
    return _forward(axes, scale, precision, query, key, value)[0]


@partial(jax.jit, static_argnums=(0, 1, 2))  # gradients outside of jit compile once
def _forward(axes, scale, precision, query, key, value):
    plan = _plan(axes, query.shape[0] * query.shape[-2])
    wide = accumulator(query.dtype)
    k, v = (_by_head(x, plan) for x in (key, value))
    dot = partial(jnp.einsum, precision=precision)

    def step(args: tuple[Array, Array]) -> tuple[Array, Array]:
        i, q = args
        starts, seen = _place(plan, axes, i)
        k_box, v_box = (_boxes(x, starts, plan).astype(wide) for x in (k, v))
        logits = dot("bngmk,bngsk->bngms", scale * q.astype(wide), k_box)
        logits = jnp.where(seen, logits, -jnp.inf)
        peak = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - peak)
        total = weights.sum(axis=-1, keepdims=True)
        y = dot("bngms,bngsv->bngmv", weights, v_box) / total
        return y.astype(value.dtype), peak + jnp.log(total)

    steps = math.prod(plan.steps)
    y, lse = lax.map(step, (jnp.arange(steps), _tiled(query, plan)))
    y = _untiled(y, plan, query.shape[:-1])
    return y, (query, key, value, y, lse)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(axes, scale, precision, saved, dy):
    query, key, value, y, lse = saved
    plan = _plan(axes, query.shape[0] * query.shape[-2])
    wide = accumulator(query.dtype)
    k, v = (_by_head(x, plan) for x in (key, value))
    dot = partial(jnp.einsum, precision=precision)
    along = jnp.sum(dy.astype(wide) * y.astype(wide), axis=-1, keepdims=True)

    def step(sums: tuple[Array, ...], args: tuple[Array, ...]):
        i, q, dy, lse, along = args
        starts, seen = _place(plan, axes, i)
        k_box, v_box = (_boxes(x, starts, plan).astype(wide) for x in (k, v))
        q, dy = scale * q.astype(wide), dy.astype(wide)
        logits = dot("bngmk,bngsk->bngms", q, k_box)
        weights = jnp.exp(jnp.where(seen, logits, -jnp.inf) - lse)
        d_logits = weights * (dot("bngmv,bngsv->bngms", dy, v_box) - along)
        dq = scale * dot("bngms,bngsk->bngmk", d_logits, k_box)
        dk, dv = sums
        dk = _added(dk, dot("bngmk,bngms->bngks", q, d_logits), starts, plan)
        dv = _added(dv, dot("bngmv,bngms->bngvs", dy, weights), starts, plan)
        return (dk, dv), dq.astype(query.dtype)

    tiles = (
        jnp.arange(math.prod(plan.steps)),
        _tiled(query, plan),
        _tiled(dy, plan),
        lse,
        _tiled(along, plan),
    )
    sums = tuple(varying(jnp.zeros(x.shape, wide), query, k, v, dy) for x in (k, v))
    sums, dq = lax.scan(step, sums, tiles)
    dk, dv = (_as_before(x, plan).astype(key.dtype) for x in sums)
    return _untiled(dq, plan, query.shape[:-1]), dk, dv


_attend.defvjp(_forward, _backward)


def _place(plan: _Plan, axes: Sequence[Axis], i: Array) -> tuple[list[Array], Array]:
    """Where the boxes of step i begin along each axis, and what its queries see, (group, m, s)."""
    starts, seen = [], []
    steps = jnp.unravel_index(i, plan.steps)
    for axis, cut, j, tiles in zip(axes, plan.cuts, steps, (1, 1, plan.group), strict=True):
        rank = 0 if axis.name is None else lax.axis_index(axis.name)
        first, begin, end = (
            lax.dynamic_slice_in_dim(jnp.asarray(table)[rank], j * tiles, tiles)
            for table in (cut.first, cut.begin, cut.end)
        )
        k = jnp.arange(cut.box)
        starts.append(first)
        seen.append((begin[..., None] <= k) & (k < end[..., None]))
    z, y, x = seen
    every = z[:, :, None, None, :, None, None] & y[:, None, :, None, None, :, None]
    every = every & x[:, None, None, :, None, None, :]
    return starts, every.reshape(plan.group, math.prod(every.shape[1:4]), -1)


def _boxes(x: Array, starts: Sequence[Array], plan: _Plan) -> Array:
    """The boxes of keys of a step, (b, n, group, s, k), out of (b, n, *spatial, k)."""
    b, n, *_, k = x.shape
    sizes = b, n, *(cut.box for cut in plan.cuts), k
    boxes = [lax.dynamic_slice(x, _corner(starts, g), sizes) for g in range(plan.group)]
    return jnp.stack(boxes, axis=2).reshape(b, n, plan.group, -1, k)


def _added(x: Array, boxes: Array, starts: Sequence[Array], plan: _Plan) -> Array:
    """Boxes (b, n, group, k, s) added to x where they lie."""
    b, n, _, k, _ = boxes.shape
    sizes = [cut.box for cut in plan.cuts]
    boxes = jnp.moveaxis(boxes.reshape(b, n, plan.group, k, *sizes), 3, -1)
    for g in range(plan.group):
        at = _corner(starts, g)
        before = lax.dynamic_slice(x, at, (b, n, *sizes, k))
        x = lax.dynamic_update_slice(x, before + boxes[:, :, g], at)
    return x


def _corner(starts: Sequence[Array], g: int) -> list[Array]:
    """Where box g of a step begins in (b, n, *spatial, k); of one integer type, as XLA wants it."""
    z, y, x = starts
    none = jnp.zeros_like(z[0])
    return [none, none, z[0], y[0], x[g], none]


def _by_head(x: Array, plan: _Plan) -> Array:
    """(b, *spatial, n, k) to (b, n, *spatial, k), along each axis class after class."""
    for axis, cut in enumerate(plan.cuts, 1):
        x = _chosen(x, cut.keys, axis)
    return jnp.moveaxis(x, -2, 1)


def _as_before(x: Array, plan: _Plan) -> Array:
    """The inverse of `_by_head`."""
    x = jnp.moveaxis(x, 1, -2)
    for axis, cut in enumerate(plan.cuts, 1):
        x = _chosen(x, np.argsort(cut.keys), axis)
    return x


def _tiled(x: Array, plan: _Plan) -> Array:
    """(b, *spatial, n, k) to the queries of each step, (steps, b, n, group, m, k)."""
    b, *_, n, k = x.shape
    split = []
    for axis, cut in enumerate(plan.cuts, 1):
        x = _chosen(x, cut.queries.ravel(), axis)
        split += cut.queries.shape
    z, i, y, j, xs, m = split
    x = x.reshape(b, z, i, y, j, xs // plan.group, plan.group, m, n, k)
    x = x.transpose(1, 3, 5, 0, 8, 6, 2, 4, 7, 9)
    return x.reshape(math.prod(plan.steps), b, n, plan.group, i * j * m, k)


def _untiled(x: Array, plan: _Plan, shape: tuple[int, ...]) -> Array:
    """The inverse of `_tiled`, of that shape before the last axis."""
    b, *sizes, n = shape
    (z, i), (y, j), (xs, m) = (cut.queries.shape for cut in plan.cuts)
    x = x.reshape(z, y, xs // plan.group, b, n, plan.group, i, j, m, -1)
    x = x.transpose(3, 0, 6, 1, 7, 2, 5, 8, 4, 9).reshape(b, z * i, y * j, xs * m, n, -1)
    for axis, (cut, size) in enumerate(zip(plan.cuts, sizes, strict=True), 1):
        x = _chosen(x, np.argsort(cut.queries, axis=None, kind="stable")[:size], axis)
    return x


def _chosen(x: Array, index: np.ndarray, axis: int) -> Array:
    """What x has at these places of an axis, zeros where they lie beyond it."""
    n = x.shape[axis]
    kept = min(n, len(index))
    if np.array_equal(index[:kept], np.arange(kept)) and np.all(index[kept:] >= n):
        widths = [(0, 0, 0)] * x.ndim
        widths[axis] = (0, len(index) - n, 0)
        return lax.pad(x, np.zeros((), x.dtype), widths)
    return jnp.take(x, jnp.asarray(index), axis=axis, mode="fill", fill_value=0)


@lru_cache(maxsize=256)
def _plan(axes: tuple[Axis, ...], rows: int) -> _Plan:
    """The tiles that cost least, where a batch has so many heads together."""
    choices = [[_cut(axis, tile) for tile in _TILES if tile <= axis.size] for axis in axes]

    def sizes(cuts: Sequence[_Cut]) -> tuple[int, int, int]:
        """Tiles along the last axis that go together, queries of a tile, keys of a box."""
        m, s = math.prod(cut.queries.shape[1] for cut in cuts), math.prod(cut.box for cut in cuts)
        tiles = len(cuts[-1].queries)
        most = max(1, min(tiles, GROUP, SCORES // (rows * m * s)))
        return math.ceil(tiles / math.ceil(tiles / most)), m, s

    def cost(cuts: Sequence[_Cut]) -> float:
        group, m, s = sizes(cuts)
        tiles = math.prod(len(cut.queries) for cut in cuts)
        too_many = max(1, rows * m * s / SCORES)
        return tiles * rows * s * (m + KEY) * too_many + STEP * math.ceil(tiles / group)

    z, y, x = min(itertools.product(*choices), key=cost)
    group, *_ = sizes((z, y, x))
    return _Plan((z, y, _cut(axes[-1], x.queries.shape[1], group)), group)


@lru_cache(maxsize=1024)
def _cut(axis: Axis, tile: int, group: int = 1) -> _Cut:
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
    return _Cut(queries, keys, box, first, begin, end)
