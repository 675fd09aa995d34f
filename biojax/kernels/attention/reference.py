"""The contract of `attention`: one head after the other."""

import jax.numpy as jnp
from jax import lax

from biojax.typing import Array

__all__ = ["attention"]


def attention(query, key, value, bias, mask, scale, is_causal, precision) -> Array:
    """Weighted means of the values, the weights a softmax of the scaled products.

    Arguments as in the package, `scale` a number.
    """
    b, t, n, _ = query.shape
    s, group = key.shape[1], n // key.shape[2]
    bias = jnp.broadcast_to(0.0 if bias is None else bias, (b, n, t, s))
    mask = jnp.broadcast_to(True if mask is None else mask, (b, n, t, s))
    heads = []
    for i in range(b):
        for j in range(n):
            q, k, v = query[i, :, j], key[i, :, j // group], value[i, :, j // group]
            logits = scale * jnp.matmul(q, k.T, precision=precision) + bias[i, j]
            seen = mask[i, j] & (logits != -jnp.inf)
            if is_causal:
                seen &= jnp.arange(s)[None, :] <= jnp.arange(t)[:, None]
            # The largest is taken off so that no exponential overflows.
            peak = jnp.max(
                lax.stop_gradient(logits), axis=1, keepdims=True, where=seen, initial=-1e30
            )
            weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits - peak, 0.0)), 0.0)
            total = weights.sum(axis=1, keepdims=True)
            weights = weights / jnp.where(total > 0, total, 1.0)
            heads.append(jnp.matmul(weights, v, precision=precision))
    return jnp.stack(heads).reshape(b, n, t, -1).transpose(0, 2, 1, 3)
