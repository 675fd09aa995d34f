"""Neighbourhood attention tile by tile: a few queries against the box of keys that they see.

Along each axis the windows of a tile's queries lie in one interval of keys, so those of the tile
lie in a box, which is sliced out and multiplied with the queries whole; what a query does not see
of it is masked. Voxels are sorted by residue class first where keys are dilated. What is in memory
beside volumes are the scores of one step: some tiles that follow each other along the last axis.

The gradient computes the weights again from the log of their sum, as in Dao et al.,
"FlashAttention", NeurIPS 2022, section 3.1, and adds what a step finds for keys to their volumes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.attention.neighborhood_tiles import Plan, plan_of
from biojax.kernels.attention.neighbors import Axis
from biojax.kernels.dispatch import accumulator, platform
from biojax.kernels.meshes import varying
from biojax.typing import Array, Dtype, Precision

__all__ = ["neighborhood_attention"]


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
    plan = plan_of(axes, query.shape[0] * query.shape[-2])
    k, v = (_by_head(x, plan) for x in (key, value))
    kind, dot = _products(query.dtype, precision)

    def step(args: tuple[_Place, Array]) -> tuple[Array, Array]:
        place, q = args
        k_box, v_box = (_boxes(x, place.first, plan).astype(kind) for x in (k, v))
        logits = scale * dot("bngmk,bngsk->bngms", q.astype(kind), k_box)
        logits += _hidden(place, plan, logits.dtype)
        peak = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - peak)
        total = weights.sum(axis=-1, keepdims=True)
        y = dot("bngms,bngsv->bngmv", weights.astype(kind), v_box) / total
        return y.astype(value.dtype), peak + jnp.log(total)

    y, lse = lax.map(step, (_places(plan, axes), _tiled(query, plan)))
    y = _untiled(y, plan, query.shape[:-1])
    return y, (query, key, value, y, lse)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(axes, scale, precision, saved, dy):
    query, key, value, y, lse = saved
    plan = plan_of(axes, query.shape[0] * query.shape[-2])
    k, v = (_by_head(x, plan) for x in (key, value))
    kind, dot = _products(query.dtype, precision)
    wide = lse.dtype
    along = jnp.sum(dy.astype(wide) * y.astype(wide), axis=-1, keepdims=True)

    def step(sums: tuple[Array, ...], args: tuple):
        place, q, dy, lse, along = args
        k_box, v_box = (_boxes(x, place.first, plan).astype(kind) for x in (k, v))
        q, dy = q.astype(kind), dy.astype(kind)
        logits = scale * dot("bngmk,bngsk->bngms", q, k_box)
        weights = jnp.exp(logits + _hidden(place, plan, wide) - lse)
        d_weights = dot("bngmv,bngsv->bngms", dy, v_box)
        d_logits = (scale * weights * (d_weights - along)).astype(kind)
        dq = dot("bngms,bngsk->bngmk", d_logits, k_box)
        dk, dv = sums
        dk = _added(dk, dot("bngmk,bngms->bngks", q, d_logits), place.first, plan)
        dv = _added(dv, dot("bngmv,bngms->bngvs", dy, weights.astype(kind)), place.first, plan)
        return (dk, dv), dq.astype(query.dtype)

    tiles = (
        _places(plan, axes),
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


def _products(dtype: Dtype, precision: Precision) -> tuple[Dtype, Callable]:
    """What factors are converted to, and the products: of the arrays' own dtype but on a CPU."""
    wide = accumulator(dtype)
    kind = wide if platform() == "cpu" else dtype
    return kind, partial(jnp.einsum, precision=precision, preferred_element_type=wide)


class _Place(NamedTuple):
    """Where the steps are, a list of three axes each: tables of `Cut`, (steps, tiles, ...)."""

    first: list[Array]
    begin: list[Array]
    end: list[Array]


def _places(plan: Plan, axes: Sequence[Axis]) -> _Place:
    """Those of all steps of this device.

    Looked up before the loop: else XLA finds the numbers of tiles anew, by division, for every
    element that it cuts out.
    """
    place = _Place([], [], [])
    for i, (axis, cut) in enumerate(zip(axes, plan.cuts, strict=True)):
        rank = 0 if axis.name is None else lax.axis_index(axis.name)
        others = [j for j in range(3) if j != i]
        for tables, table in zip(place, (cut.first, cut.begin, cut.end), strict=True):
            own = jnp.asarray(table)[rank]
            own = own.reshape(plan.steps[i], -1, *own.shape[1:])
            every = (*plan.steps, *own.shape[1:])
            own = jnp.broadcast_to(jnp.expand_dims(own, others), every)
            tables.append(own.reshape(-1, *every[3:]))
    return place


def _hidden(place: _Place, plan: Plan, dtype: Dtype) -> Array:
    """Minus infinity for keys of its box that a query of a step does not see, (group, m, s).

    Added to logits, which takes XLA on a CPU less time than to choose between two for each.
    """
    seen = []
    for begin, end, cut in zip(place.begin, place.end, plan.cuts, strict=True):
        k = jnp.arange(cut.box)
        seen.append((begin[..., None] <= k) & (k < end[..., None]))
    z, y, x = seen
    every = z[:, :, None, None, :, None, None] & y[:, None, :, None, None, :, None]
    every = every & x[:, None, None, :, None, None, :]
    every = every.reshape(plan.group, math.prod(every.shape[1:4]), -1)
    return jnp.where(every, 0.0, -jnp.inf).astype(dtype)


def _boxes(x: Array, starts: Sequence[Array], plan: Plan) -> Array:
    """The boxes of keys of a step, (b, n, group, s, k), out of (b, n, *spatial, k)."""
    b, n, *_, k = x.shape
    sizes = b, n, *(cut.box for cut in plan.cuts), k
    boxes = [lax.dynamic_slice(x, _corner(starts, g), sizes) for g in range(plan.group)]
    return jnp.stack(boxes, axis=2).reshape(b, n, plan.group, -1, k)


def _added(x: Array, boxes: Array, starts: Sequence[Array], plan: Plan) -> Array:
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


def _by_head(x: Array, plan: Plan) -> Array:
    """(b, *spatial, n, k) to (b, n, *spatial, k), along each axis class after class."""
    for axis, cut in enumerate(plan.cuts, 1):
        x = _chosen(x, cut.keys, axis)
    return jnp.moveaxis(x, -2, 1)


def _as_before(x: Array, plan: Plan) -> Array:
    """The inverse of `_by_head`."""
    x = jnp.moveaxis(x, 1, -2)
    for axis, cut in enumerate(plan.cuts, 1):
        x = _chosen(x, np.argsort(cut.keys), axis)
    return x


def _tiled(x: Array, plan: Plan) -> Array:
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


def _untiled(x: Array, plan: Plan, shape: tuple[int, ...]) -> Array:
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
