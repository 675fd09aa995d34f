"""The contract of `linear_attention`: every weight, one head after the other."""

import jax.numpy as jnp

from biojax.typing import Array

__all__ = ["linear_attention"]


def linear_attention(query, key, value, seen, feature_map, is_causal, chunk, precision) -> Array:
    """Weighted means of the values, the weights products of features.

    Arguments as in the package, `seen` (b, s): the keys that count.
    """
    b, t, n, _ = query.shape
    s, group = key.shape[1], n // key.shape[2]
    heads = []
    for i in range(b):
        for j in range(n):
            q, k = feature_map(query[i, :, j]), feature_map(key[i, :, j // group])
            weights = jnp.where(seen[i], jnp.matmul(q, k.T, precision=precision), 0.0)
            if is_causal:
                weights *= jnp.tri(t, s, dtype=weights.dtype)
            total = weights.sum(axis=1, keepdims=True)
            weights /= jnp.where(total == 0, 1.0, total)
            heads.append(jnp.matmul(weights, value[i, :, j // group], precision=precision))
    return jnp.stack(heads).reshape(b, n, t, -1).transpose(0, 2, 1, 3)
