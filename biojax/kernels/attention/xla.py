"""Attention as two matrix products around a softmax, with every score in memory."""

import jax.numpy as jnp

from biojax.kernels.attention.scores import dropout_weights, exponentials, visible
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["attention"]


def attention(
    query, key, value, bias, mask, query_lengths, key_lengths, dropout_key, options
) -> tuple[Array, Array]:
    """The arrays of `Inputs`, then `Options`; to y (b, t, n, v) and the log-sum-exp (b, t, n)."""
    b, t, n, k = query.shape
    s, m = key.shape[1:3]
    wide = accumulator(query.dtype)
    # Heads before tokens: on a CPU XLA has no other products of 16 bits in batches.
    grouped = query.reshape(b, t, m, n // m, k).transpose(0, 2, 3, 1, 4).reshape(b, m, -1, k)
    products = jnp.matmul(
        grouped,
        key.transpose(0, 2, 3, 1),
        precision=options.precision,
        preferred_element_type=wide,
    )
    logits = options.scale * products.reshape(b, n, t, s)
    if options.soft_cap is not None:
        logits = options.soft_cap * jnp.tanh(logits / options.soft_cap)
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    ends = [None if x is None else x.reshape(b, 1, 1, 1) for x in (query_lengths, key_lengths)]
    seen = visible(jnp.arange(t)[:, None], jnp.arange(s), options.is_causal, *ends)
    if seen is not None:
        logits = jnp.where(seen, logits, -jnp.inf)
    weights, total, peak = exponentials(logits)
    weights /= total
    sees_none = jnp.all(logits == -jnp.inf, axis=-1, keepdims=True)
    lse = jnp.where(sees_none, -jnp.inf, peak + jnp.log(total))[..., 0]
    if dropout_key is not None:
        kept = dropout_weights(dropout_key, jnp.arange(b * n * t), 0, s, options.dropout_rate)
        weights *= kept.reshape(weights.shape)
    y = jnp.matmul(
        weights.astype(value.dtype).reshape(b, m, -1, s),
        value.swapaxes(1, 2),
        precision=options.precision,
        preferred_element_type=wide,
    )
    y = y.reshape(b, n, t, -1).swapaxes(1, 2).astype(query.dtype)
    return y, lse.swapaxes(1, 2)
