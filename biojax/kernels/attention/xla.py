"""Attention as two matrix products around a softmax, with every score in memory."""

import jax.numpy as jnp
from jax import lax

from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["attention"]


def attention(query, key, value, bias, mask, scale, is_causal, precision) -> Array:
    """Arguments as in the package, `scale` a number."""
    b, t, n, k = query.shape
    s, m = key.shape[1:3]
    wide = accumulator(query.dtype)
    grouped = query.reshape(b, t, m, n // m, k)
    logits = scale * jnp.einsum(
        "btmgk,bsmk->bmgts", grouped, key, precision=precision, preferred_element_type=wide
    ).reshape(b, n, t, s)
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    if is_causal:
        logits = jnp.where(jnp.tri(t, s, dtype=bool), logits, -jnp.inf)
    weights = _softmax(logits).astype(value.dtype).reshape(b, m, n // m, t, s)
    y = jnp.einsum(
        "bmgts,bsmv->btmgv", weights, value, precision=precision, preferred_element_type=wide
    )
    return y.reshape(b, t, n, -1).astype(query.dtype)


def _softmax(logits: Array) -> Array:
    """Softmax over the last axis; a row of minus infinities gives zeros, not NaN.

    The result does not depend on the peak, so no gradient flows through it; that of a maximum is
    0 / 0 where the compiler computes the logits anew, and none is equal to the peak any more.
    """
    peak = jnp.max(lax.stop_gradient(logits), axis=-1, keepdims=True)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    seen = logits != -jnp.inf
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits - peak, 0.0)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)
