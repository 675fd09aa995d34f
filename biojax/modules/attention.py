"""Attention layers over tokens (b, t, c)."""

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ConfigError, nearest_divisor
from biojax.kernels import attention
from biojax.modules.norm import make_norm
from biojax.typing import Array, Dtype

__all__ = ["MultiHeadAttention", "TransformerBlock"]


class MultiHeadAttention(nn.Module):
    """Self-attention in several heads: `biojax.kernels.attention` between two matrices.

    Args:
      num_heads: n; must divide the features of the input.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ConfigError: the heads do not divide the features.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.2.
    """

    num_heads: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """(b, t, c) to (b, t, c); mask as in `biojax.kernels.attention`."""
        b, t, c = x.shape
        if self.num_heads < 1 or c % self.num_heads:
            raise ConfigError(
                "MultiHeadAttention",
                f"num_heads={self.num_heads} for {c} features",
                "a number of heads that divides the features",
                "Change either",
                f"num_heads={nearest_divisor(self.num_heads, c)}",
            )
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        qkv = nn.Dense(3 * c, name="qkv", **kind)(x)
        query, key, value = jnp.moveaxis(qkv.reshape(b, t, 3, self.num_heads, -1), 2, 0)
        y = attention(query, key, value, mask=mask)
        return nn.Dense(c, name="proj", **kind)(y.reshape(b, t, c))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
      num_heads: n; must divide the features of the input.
      mlp_ratio: width of the hidden layer over that of the tokens.
      dropout_rate: of both branches, while training.
      dtype: of the computation.
      param_dtype: of the parameters.

    Source: Xiong et al., "On layer normalization in the transformer architecture", ICML 2020,
    figure 1 (b).
    """

    num_heads: int
    mlp_ratio: float = 4.0
    dropout_rate: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, train: bool = False) -> Array:
        """(b, t, c) to (b, t, c)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        drop = nn.Dropout(self.dropout_rate, deterministic=not train)
        y = make_norm("layer", layer_name="norm1", **kind)(x)
        x = x + drop(MultiHeadAttention(self.num_heads, name="attention", **kind)(y, mask))
        y = make_norm("layer", layer_name="norm2", **kind)(x)
        y = nn.Dense(int(x.shape[-1] * self.mlp_ratio), name="mlp1", **kind)(y)
        y = nn.Dense(x.shape[-1], name="mlp2", **kind)(nn.gelu(y))
        return x + drop(y)
