"""Attention within windows, one group of windows after the other.

The scores of a group stay in cache, and only their log-sum-exp outlives it: gradients compute the
scores anew. So nothing of the size (voxels, w) is ever whole.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.attention.windows import (
    Settings,
    as_image,
    as_windows,
    exponentials,
    logits,
    sides,
)
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import varying
from biojax.typing import Array

__all__ = ["attention", "group_of"]

# What the scores of a group may take: in cache with two more arrays like them.
SCORE_BYTES = 10 * 2**20


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


def _forward(query, key, value, bias, settings: Settings):
    b, *spatial = query.shape[:-2]
    # What is bfloat16 before a loop, XLA on CPU widens whole at every step of it.
    wide = accumulator(query.dtype)
    windows = [as_windows(x.astype(wide), settings) for x in (query, key, value)]

    def of_group(parts):
        q, k, v, side = parts
        weights, total, peak = exponentials(logits(q, k, bias, side, settings))
        y = jnp.matmul(weights, v, precision=settings.precision) / total
        return y, (peak + jnp.log(total))[..., 0]

    groups = _groups(*windows, sides(b, tuple(spatial), settings))
    y, lse = _joined(lax.map(of_group, groups), len(windows[0]))
    y = as_image(y.astype(query.dtype), tuple(spatial), settings)
    return y, (*windows, bias, y, lse)


def _backward(settings: Settings, saved, dy: Array):
    """With p the weights: dv = p^T dy, dz = p (dy v^T - <dy, y>), dq = dz k, dk = dz^T q."""
    query, key, value, bias, y, lse = saved
    b, *spatial = dy.shape[:-2]
    matmul = partial(jnp.matmul, precision=settings.precision)
    dys, ys = (as_windows(x.astype(query.dtype), settings) for x in (dy, y))

    def of_group(total, parts):
        q, k, v, side, lse, dy, mean = parts
        weights = jnp.exp(logits(q, k, bias, None, settings) - lse[..., None])
        if side is not None:  # after the exponential, which the compiler then writes in vectors
            weights = jnp.where(side[..., :, None] == side[..., None, :], weights, 0)
        dz = weights * (matmul(dy, v.mT) - mean[..., None])
        if bias is not None:  # a sum over the first axis would not use vectors
            ones = jnp.ones((1, len(dz)), dz.dtype)
            total += matmul(ones, dz.reshape(len(dz), -1)).reshape(total.shape)
        dq, dk = settings.scale * matmul(dz, k), settings.scale * matmul(dz.mT, q)
        return total, (dq, dk, matmul(weights.mT, dy))

    side = sides(b, tuple(spatial), settings)
    parts = _groups(query, key, value, side, lse, dys, jnp.sum(dys * ys, axis=-1))
    start = None if bias is None else varying(jnp.zeros(bias.shape, query.dtype), dy)
    dbias, gradients = lax.scan(of_group, start, parts)
    dqkv = (
        as_image(x.astype(dy.dtype), tuple(spatial), settings)
        for x in _joined(gradients, len(query))
    )
    return *dqkv, jax.tree.map(lambda d, of: d.astype(of.dtype), dbias, bias)


_attention.defvjp(_forward, _backward)


def _groups(query: Array, *others: Array | None) -> list[Array | None]:
    """(m, ...) to (groups, g, ...), the last group filled with zeros."""
    m, n, w, _ = query.shape
    g = group_of(m, n, w, query.dtype.itemsize)

    def grouped(x: Array | None) -> Array | None:
        if x is None:
            return None
        x = jnp.pad(x, [(0, -m % g), *[(0, 0)] * (x.ndim - 1)])
        return x.reshape(-1, g, *x.shape[1:])

    return [grouped(x) for x in (query, *others)]


def _joined(groups: tuple[Array, ...], m: int) -> tuple[Array, ...]:
    """The inverse of `_groups`."""
    return tuple(x.reshape(-1, *x.shape[2:])[:m] for x in groups)
