"""The contract of `attention`: one head after the other."""

import jax.numpy as jnp
from jax import lax

from biojax.kernels.attention.scores import dropout_weights
from biojax.typing import Array

__all__ = ["attention"]


def attention(
    query, key, value, bias, mask, query_lengths, key_lengths, dropout_key, options
) -> tuple[Array, Array]:
    """Weighted means of the values, the weights a softmax of the scaled products.

    Arguments as in the package, the random key as its data, and `Options`.
    """
    b, t, n, _ = query.shape
    s, group = key.shape[1], n // key.shape[2]
    bias = jnp.broadcast_to(0.0 if bias is None else bias, (b, n, t, s))
    mask = jnp.broadcast_to(True if mask is None else mask, (b, n, t, s))
    rows, columns = jnp.arange(t)[:, None], jnp.arange(s)[None, :]
    heads, sums = [], []
    for i in range(b):
        for j in range(n):
            q, k, v = query[i, :, j], key[i, :, j // group], value[i, :, j // group]
            logits = options.scale * jnp.matmul(q, k.T, precision=options.precision)
            if options.soft_cap is not None:
                logits = options.soft_cap * jnp.tanh(logits / options.soft_cap)
            logits += bias[i, j]
            seen = mask[i, j] & (logits != -jnp.inf)
            if options.is_causal:
                seen &= columns <= rows
            if query_lengths is not None:
                seen &= rows < query_lengths[i]
            if key_lengths is not None:
                seen &= columns < key_lengths[i]
            # The largest is taken off so that no exponential overflows.
            peak = jnp.max(
                lax.stop_gradient(logits), axis=1, keepdims=True, where=seen, initial=-1e30
            )
            weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits - peak, 0.0)), 0.0)
            total = weights.sum(axis=1, keepdims=True)
            some = jnp.where(total > 0, total, 1.0)
            weights = weights / some
            if dropout_key is not None:
                numbers = (i * n + j) * t + jnp.arange(t)
                weights *= dropout_weights(dropout_key, numbers, 0, s, options.dropout_rate)
            heads.append(jnp.matmul(weights, v, precision=options.precision))
            sums.append(jnp.where(total > 0, peak + jnp.log(some), -jnp.inf)[:, 0])
    y = jnp.stack(heads).reshape(b, n, t, -1).swapaxes(1, 2)
    return y, jnp.stack(sums).reshape(b, n, t).swapaxes(1, 2)
