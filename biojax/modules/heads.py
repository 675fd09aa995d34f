"""What layers of attention in several heads have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn

from biojax.errors import ConfigError, nearest_divisor
from biojax.typing import Array

__all__ = ["head_size", "self_attention"]


def head_size(where: str, num_heads: int, features: int) -> int:
    """Channels of each head.

    Raises:
      ConfigError: the heads do not divide the features.

    >>> head_size("MultiHeadAttention", 3, 12)
    4
    """
    if num_heads < 1 or features % num_heads:
        raise ConfigError(
            where,
            f"num_heads={num_heads} for {features} features",
            "a number of heads that divides the features",
            "Change either",
            f"num_heads={nearest_divisor(num_heads, features)}",
        )
    return features // num_heads


def self_attention(layer: Any, attend: Callable[..., Array], x: Array, train: bool) -> Array:
    """Attention of x to itself between matrices, within the call of a layer.

    y = W_proj attend(W_query x, W_key x, W_value x)

    Args:
      layer: its fields are num_heads, qkv_bias, dropout_rate, precision, dtype and param_dtype.
      attend: of query, key and value, (b, *spatial, n, k), to heads of what they found.
      x: (b, *spatial, c).
      train: whether something is dropped of y.
    """
    c = x.shape[-1]
    k = head_size(type(layer).__name__, layer.num_heads, c)
    kind: dict[str, Any] = {"dtype": layer.dtype, "param_dtype": layer.param_dtype}
    dense = partial(nn.Dense, c, precision=layer.precision, **kind)
    query, key, value = (
        dense(use_bias=layer.qkv_bias, name=name)(x).reshape(*x.shape[:-1], layer.num_heads, k)
        for name in ("query", "key", "value")
    )
    y = attend(query, key, value)
    y = dense(name="proj")(y.reshape(*y.shape[:-2], c))
    return nn.Dropout(layer.dropout_rate, deterministic=not train)(y)
