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
from biojax.kernels.conv.blocks import varying
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["attention", "group_of"]

# What the scores of a group may take: in cache with two more arrays like them.
SCORE_BYTES = 10 * 2**20


def attention(query, key, value, bias, settings: Settings) -> Array:
    """Arguments as in the package, the bias for whole windows."""
    b, *spatial = query.shape[:-2]
    given = [x for x in (query, key, value, bias) if x is not None]
    # What is bfloat16 before a loop, XLA on CPU widens whole at every step of it.
    wide = accumulator(query.dtype)
    if bias is not None:
        bias = varying(bias, *given).astype(wide)
    parts = (varying(x, *given).astype(wide) for x in (query, key, value))
    side = sides(b, tuple(spatial), settings)
    y = _within(*(as_windows(x, settings) for x in parts), bias, side, settings)
    return as_image(y.astype(query.dtype), tuple(spatial), settings)


def group_of(m: int, n: int, w: int, itemsize: int) -> int:
    """How many of m windows are computed at once."""
    fits = max(1, SCORE_BYTES // (n * w * w * itemsize))
    return -(-m // -(-m // fits))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _within(query, key, value, bias, side, settings: Settings) -> Array:
    """(m, n, w, k) to the same; bias (n, w, w), side (m, 1, w)."""
    return _forward(query, key, value, bias, side, settings)[0]


def _forward(query, key, value, bias, side, settings: Settings):
    def of_group(parts):
        q, k, v, side = parts
        weights, total, peak = exponentials(logits(q, k, bias, side, settings))
        y = jnp.matmul(weights, v, precision=settings.precision) / total
        return y, (peak + jnp.log(total))[..., 0]

    y, lse = _joined(lax.map(of_group, _groups(query, key, value, side)), len(query))
    return y, (query, key, value, bias, side, y, lse)


def _backward(settings: Settings, saved, dy: Array):
    """With p the weights: dv = p^T dy, dz = p (dy v^T - <dy, y>), dq = dz k, dk = dz^T q."""
    query, key, value, bias, side, y, lse = saved
    matmul = partial(jnp.matmul, precision=settings.precision)

    def of_group(total, parts):
        q, k, v, side, lse, dy, mean = parts
        weights = jnp.exp(logits(q, k, bias, side, settings) - lse[..., None])
        dz = weights * (matmul(dy, v.mT) - mean[..., None])
        if bias is not None:  # a sum over the first axis would not use vectors
            ones = jnp.ones((1, len(dz)), dz.dtype)
            total += matmul(ones, dz.reshape(len(dz), -1)).reshape(total.shape)
        dq, dk = settings.scale * matmul(dz, k), settings.scale * matmul(dz.mT, q)
        return total, (dq, dk, matmul(weights.mT, dy))

    parts = _groups(query, key, value, side, lse, dy, jnp.sum(dy * y, axis=-1))
    start = None if bias is None else varying(jnp.zeros_like(bias), dy)
    dbias, gradients = lax.scan(of_group, start, parts)
    dside = None if side is None else jnp.zeros_like(side)
    return *_joined(gradients, len(query)), dbias, dside


_within.defvjp(_forward, _backward)


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
