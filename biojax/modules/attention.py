"""Attention layers over tokens (b, t, c)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError, ShapeError, nearest_divisor
from biojax.kernels import attention, rotary
from biojax.modules.heads import head_size
from biojax.modules.mlp import MLP
from biojax.modules.norm import make_norm
from biojax.modules.residual import add_branch
from biojax.typing import Array, Dtype, Precision

__all__ = ["MultiHeadAttention", "TransformerBlock"]


class MultiHeadAttention(nn.Module):
    """Attention in several heads: `biojax.kernels.attention` between matrices.

    y = W_proj attention(W_query x, W_key z, W_value z)

    with z the context, or x itself where there is none.

    Args:
      num_heads: n; must divide the features of x.
      qkv_bias: whether queries, keys and values have a bias.
      key_bias: whether keys have one too. It adds the same to all scores of a query, so that
        without qk_norm and angles it changes nothing.
      qk_norm: layer norms of each head's queries and keys, over its k channels.
      norm: a layer norm of what the heads found, over all their channels, before W_proj.
      num_key_heads: heads of keys and values, each of which serves as many heads of queries; must
        divide num_heads, and is num_heads if None.
      is_causal: token i sees tokens 0 to i only.
      dropout_rate: of the output, while training.
      attention_dropout_rate: of the attention weights, while training.
      epsilon: of the norms.
      precision: of all products.
      implementation: see `biojax.kernels.attention`.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ShapeError: x or the context is not (b, t, c).
      ConfigError: the heads do not divide the features, or those of keys the heads; or angles are
        given with a context.

    Sources: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.2; qk_norm:
    Dehghani et al., "Scaling vision transformers to 22 billion parameters", ICML 2023, section 2;
    norm: Wang et al., "Magneto: a foundation transformer", ICML 2023, section 2; num_key_heads:
    Ainslie et al., "GQA", EMNLP 2023, section 2.2.
    """

    num_heads: int
    qkv_bias: bool = True
    key_bias: bool = True
    qk_norm: bool = False
    norm: bool = False
    num_key_heads: int | None = None
    is_causal: bool = False
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    epsilon: float = 1e-6
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        *,
        bias: Array | None = None,
        mask: Array | None = None,
        key_lengths: Array | None = None,
        angles: Array | None = None,
        train: bool = False,
    ) -> Array:
        """(b, t, c) to (b, t, c), looking at x itself or at the context (b, s, any features).

        `bias`, `mask` and `key_lengths` are those of `biojax.kernels.attention`, the first two
        broadcastable to (b, n, t, s), the last the number of tokens that can be seen, (b,);
        `angles` turn queries and keys, see `biojax.kernels.rotary_angles`.
        """
        self._check(x, context, angles)
        kind: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = partial(nn.Dense, precision=self.precision, **kind)
        norm = partial(make_norm, "layer", epsilon=self.epsilon, **kind)
        z = x if context is None else context
        k = head_size("MultiHeadAttention", self.num_heads, x.shape[-1])

        def heads(of: Array, name: str, number: int, use_bias: bool) -> Array:
            y = dense(number * k, use_bias=use_bias, name=name)(of)
            return y.reshape(*of.shape[:2], number, k)

        key_heads = self.num_key_heads or self.num_heads
        query = heads(x, "query", self.num_heads, self.qkv_bias)
        key = heads(z, "key", key_heads, self.qkv_bias and self.key_bias)
        value = heads(z, "value", key_heads, self.qkv_bias)
        if self.qk_norm:
            query = norm(layer_name="query_norm")(query)
            key = norm(layer_name="key_norm")(key)
        if angles is not None:
            query, key = rotary(query, angles), rotary(key, angles)
        drops = train and self.attention_dropout_rate > 0
        y = attention(
            query,
            key,
            value,
            bias,
            mask,
            is_causal=self.is_causal,
            key_lengths=key_lengths,
            dropout_rate=self.attention_dropout_rate,
            dropout_key=self.make_rng("dropout") if drops else None,
            precision=self.precision,
            implementation=self.implementation,
        ).reshape(x.shape)
        if self.norm:
            y = norm()(y)
        y = dense(x.shape[-1], name="proj")(y)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(y)

    def _check(self, x: Array, context: Array | None, angles: Array | None) -> None:
        for tokens in (x,) if context is None else (x, context):
            if tokens.ndim != 3:
                raise ShapeError(
                    "MultiHeadAttention",
                    f"tokens of shape {tokens.shape}",
                    "(b, t, c)",
                    "Make the axes of an image one: x.reshape(b, -1, c)",
                )
        m = self.num_key_heads
        if m is not None and (m < 1 or self.num_heads % m):
            raise ConfigError(
                "MultiHeadAttention",
                f"num_key_heads={m} for {self.num_heads} heads",
                "a number of heads that divides that of the queries",
                "Change either",
                f"num_key_heads={nearest_divisor(m, self.num_heads)}",
            )
        if context is not None and angles is not None:
            raise ConfigError(
                "MultiHeadAttention",
                "angles for another context",
                "angles for attention of x to itself, where queries and keys are the same tokens",
                "Leave out angles or context",
            )


class TransformerBlock(nn.Module):
    """Pre-norm block of attention and a perceptron.

    x = x + scale1 attention(norm1(x))
    x = x + scale_cross cross_attention(norm_cross(x), context)      where there is a context
    x = x + scale2 mlp(norm2(x))

    Args:
      num_heads: n; must divide the features of the input.
      mlp_ratio: width of the hidden layer over that of the tokens.
      mlp: "gelu" or "swiglu", see `biojax.modules.MLP`.
      mlp_norm: whether the hidden layer is normalised.
      attention_norm: `norm` of `MultiHeadAttention`, which also has the five that follow.
      qkv_bias: whether queries, keys and values have a bias.
      key_bias: whether keys have a bias.
      qk_norm: whether queries and keys are normalised.
      num_key_heads: heads of keys and values; num_heads if None.
      is_causal: whether tokens see only those before them.
      layer_scale: what learned scales of the branches start from; None for no such scales.
      drop_path_rate: share of images whose branches are left out, while training.
      dropout_rate: of every branch and the hidden layer, while training.
      attention_dropout_rate: of the attention weights, while training.
      epsilon: of the norms.
      precision: of all products.
      implementation: see `biojax.kernels.attention`.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ConfigError: a mask for no context; or see `MultiHeadAttention` and `biojax.modules.MLP`.
      ShapeError: x or the context is not (b, t, c).

    Source: Xiong et al., "On layer normalization in the transformer architecture", ICML 2020,
    figure 1 (b).
    """

    num_heads: int
    mlp_ratio: float = 4.0
    mlp: str = "gelu"
    mlp_norm: bool = False
    attention_norm: bool = False
    qkv_bias: bool = True
    key_bias: bool = True
    qk_norm: bool = False
    num_key_heads: int | None = None
    is_causal: bool = False
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    epsilon: float = 1e-6
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        *,
        context_mask: Array | None = None,
        bias: Array | None = None,
        mask: Array | None = None,
        key_lengths: Array | None = None,
        angles: Array | None = None,
        train: bool = False,
    ) -> Array:
        """(b, t, c) to (b, t, c).

        `bias`, `mask`, `key_lengths` and `angles` are of the attention to x itself, `context_mask`,
        broadcastable to (b, n, t, s), of that to the context (b, s, any features): True where a
        token is seen.
        """
        if context is None and context_mask is not None:
            raise ConfigError(
                "TransformerBlock",
                "context_mask without a context",
                "a context, tokens (b, s, c) that the mask is for",
                "Give the context, or name the mask of x itself mask",
            )
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        add = partial(
            add_branch,
            train=train,
            epsilon=self.epsilon,
            layer_scale=self.layer_scale,
            drop_path_rate=self.drop_path_rate,
            **kind,
        )
        seen = {"bias": bias, "mask": mask, "key_lengths": key_lengths, "angles": angles}
        attention = self._attention("attention", is_causal=self.is_causal)
        x = add(x, partial(attention, train=train, **seen), "1")
        if context is not None:
            attention = self._attention("cross_attention")
            x = add(
                x, partial(attention, context=context, mask=context_mask, train=train), "_cross"
            )
        mlp = MLP(
            int(x.shape[-1] * self.mlp_ratio),
            self.mlp,
            self.mlp_norm,
            self.dropout_rate,
            self.epsilon,
            self.precision,
            name="mlp",
            **kind,
        )
        return checkpoint_name(add(x, partial(mlp, train=train), "2"), "block")

    def _attention(self, name: str, is_causal: bool = False) -> MultiHeadAttention:
        fields = ("qkv_bias", "key_bias", "qk_norm", "num_key_heads", "dropout_rate")
        shared = (
            *fields,
            "attention_dropout_rate",
            "epsilon",
            "precision",
            "implementation",
            "dtype",
            "param_dtype",
        )
        options = {field: getattr(self, field) for field in shared}
        options |= {"norm": self.attention_norm, "is_causal": is_causal}
        return MultiHeadAttention(self.num_heads, name=name, **options)
