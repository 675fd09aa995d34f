"""Attention within windows, one group of windows after the other.

The scores of a group stay in cache, and only their log-sum-exp outlives it: gradients compute the
scores anew. So nothing of the size (voxels, w) is ever whole.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.attention.scores import are_small, exp, exponentials
from biojax.kernels.attention.windows import (
    Settings,
    as_image,
    as_windows,
    logits,
    matmul,
    sides,
)
from biojax.kernels.dispatch import accumulator, platform
from biojax.kernels.meshes import varying
from biojax.typing import Array, Dtype

__all__ = ["attention", "group_of"]

# What the scores of a group may take: in cache with two more arrays like them.
SCORE_BYTES = 10 * 2**20
# What a bias adds at the least where it hides nothing; a tenth of the penalty between sides.
LEAST = -1e29


def attention(query, key, value, bias, settings: Settings) -> Array:
    """Arguments as in the package, the bias for whole windows."""
    given = [x for x in (query, key, value, bias) if x is not None]
    q, k, v, *rest = (varying(x, *given) for x in given)
    return _attention(q, k, v, rest[0] if rest else None, settings)


def group_of(m: int, n: int, w: int, itemsize: int) -> int:
    """How many of m windows are computed at once."""
    fits = max(1, SCORE_BYTES // (n * w * w * itemsize))
    return -(-m // -(-m // fits))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(query, key, value, bias, settings: Settings) -> Array:
    return _forward(query, key, value, bias, settings)[0]


@partial(jax.jit, static_argnums=4)  # outside of jit, too, compiled once
def _forward(query, key, value, bias, settings: Settings):
    b, *spatial = query.shape[:-2]
    kind = _kind(query.dtype)
    query = settings.scale * query.astype(accumulator(query.dtype))
    q, k, v = (as_windows(x.astype(kind), settings) for x in (query, key, value))
    settings = settings._replace(scale=1.0)
    small = are_small(q, k, bias, 1.0)
    q, k = _by_side(q, k, sides(b, tuple(spatial), settings), settings)

    def of_group(small: bool, parts: tuple) -> tuple[Array, Array]:
        q, k, v = parts
        z = logits(q, k, _floored(bias), None, settings)
        if small:
            weights, peak = exp(z), 0.0
            total = weights.sum(axis=-1, keepdims=True)
            none = total == 0
        else:
            weights, total, peak = exponentials(jnp.where(z < 5 * LEAST, -jnp.inf, z))
            none = peak < 5 * LEAST
        y = matmul(weights.astype(kind), v, settings) / jnp.where(none, 1, total)
        # A query that sees nothing weighs nothing: exp(logit - infinity).
        return y, jnp.where(none, jnp.inf, peak + jnp.log(total))[..., 0]

    ways = (partial(lax.map, partial(of_group, way)) for way in (True, False))
    y, lse = _joined(lax.cond(small, *ways, _groups(q, k, v)), len(q))
    y = as_image(y.astype(value.dtype), tuple(spatial), settings)
    return y, (q, k, v, bias, y, lse)


@partial(jax.jit, static_argnums=0)
def _backward(settings: Settings, saved, dy: Array):
    """With p the weights: dv = p^T dy, dz = p (dy v^T - <dy, y>), dq = dz k, dk = dz^T q.

    The query that is saved has its scale already.
    """
    query, key, value, bias, y, lse = saved
    _, *spatial = dy.shape[:-2]
    size = key.shape[-1] - (2 ** len(spatial) if any(settings.shift) else 0)  # without its side
    kind, wide, by = query.dtype, lse.dtype, settings.scale
    settings = settings._replace(scale=1.0)
    dys, ys = (as_windows(x.astype(kind), settings) for x in (dy, y))

    def of_group(total, parts):
        q, k, v, lse, dy, mean = parts
        weights = exp(logits(q, k, _floored(bias), None, settings) - lse[..., None])
        dz = weights * (matmul(dy, v.mT, settings) - mean[..., None])
        if bias is not None:  # a sum over the first axis would not use vectors
            ones = jnp.ones((1, len(dz)), dz.dtype)
            total += matmul(ones, dz.reshape(len(dz), -1), settings).reshape(total.shape)
        q, k, dz = q[..., :size], k[..., :size], dz.astype(kind)
        dq, dk = by * matmul(dz, k, settings), matmul(dz.mT, q, settings)
        return total, (dq, dk, matmul(weights.astype(kind).mT, dy, settings))

    # Windows that fill the last group weigh nothing either.
    m, n, w, _ = query.shape
    filled = -m % group_of(m, n, w, lse.dtype.itemsize)
    lse = jnp.pad(lse, ((0, filled), (0, 0), (0, 0)), constant_values=jnp.inf)
    mean = jnp.sum(dys.astype(wide) * ys.astype(wide), axis=-1)
    parts = _groups(query, key, value, lse, dys, mean)
    start = None if bias is None else varying(jnp.zeros(bias.shape, wide), dy)
    dbias, gradients = lax.scan(of_group, start, parts)
    dqkv = (
        as_image(x.astype(dy.dtype), tuple(spatial), settings)
        for x in _joined(gradients, len(query))
    )
    return *dqkv, jax.tree.map(lambda d, of: d.astype(of.dtype), dbias, bias)


_attention.defvjp(_forward, _backward)


def _kind(dtype: Dtype) -> Dtype:
    """What factors are converted to.

    On a CPU XLA would widen 16 bits whole at every step of a loop; and float16 has no penalty.
    """
    narrow = platform() != "cpu" and jnp.finfo(dtype).maxexp > 100
    return dtype if narrow else accumulator(dtype)


def _floored(bias: Array | None) -> Array | None:
    """A bias whose numbers are above any penalty, but for minus infinity."""
    if bias is None:
        return None
    bias = bias.astype(accumulator(bias.dtype))
    return jnp.where(bias == -jnp.inf, bias, jnp.maximum(bias, LEAST))


def _by_side(
    query: Array, key: Array, side: Array | None, settings: Settings
) -> tuple[Array, Array]:
    """With a number more for each side: a query has a one at its own, a key a penalty elsewhere.

    So products across sides are lower by that, and the mask costs no pass over the scores.
    """
    if side is None:
        return query, key
    own = side[..., None] == jnp.arange(2.0 ** len(settings.window))
    ones, penalties = (jnp.where(own, *values) for values in ((1.0, 0.0), (0.0, 10 * LEAST)))

    def extended(x: Array, more: Array) -> Array:
        more = jnp.broadcast_to(more, (*x.shape[:-1], more.shape[-1]))
        return jnp.concatenate([x, more.astype(x.dtype)], axis=-1)

    return extended(query, ones), extended(key, penalties)


def _groups(query: Array, *others: Array | None) -> list[Array | None]:
    """(m, ...) to (groups, g, ...), the last group filled with zeros."""
    m, n, w, _ = query.shape
    g = group_of(m, n, w, accumulator(query.dtype).itemsize)

    def grouped(x: Array | None) -> Array | None:
        if x is None:
            return None
        x = jnp.pad(x, [(0, -len(x) % g), *[(0, 0)] * (x.ndim - 1)])
        return x.reshape(-1, g, *x.shape[1:])

    return [grouped(x) for x in (query, *others)]


def _joined(groups: tuple[Array, ...], m: int) -> tuple[Array, ...]:
    """The inverse of `_groups`."""
    return tuple(x.reshape(-1, *x.shape[2:])[:m] for x in groups)
