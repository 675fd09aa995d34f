"""From a set of tokens (b, t, c) to a few vectors, or to one."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.modules.attention import MultiHeadAttention
from biojax.modules.mlp import MLP
from biojax.modules.norm import make_norm
from biojax.typing import Array, Dtype, Precision

__all__ = ["AttentionPool", "GatedAttentionPool"]


class AttentionPool(nn.Module):
    """Learned queries look at all tokens.

    h = attention(queries, x),   y = h + mlp(norm(h))

    Args:
      num_heads: n; must divide the features of x.
      num_queries: q, vectors that are made of the tokens.
      mlp_ratio: width of the perceptron's hidden layer over the features.
      qkv_bias: whether queries, keys and values have a bias.
      epsilon: of the norm.
      precision: of all products.
      implementation: see `biojax.kernels.attention`.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ConfigError: the heads do not divide the features.
      ShapeError: x is not (b, t, c), or a mask of another shape than its tokens.

    Sources: Lee et al., "Set transformer", ICML 2019, section 3.2; with the norm where Zhai et al.,
    "Scaling vision transformers", CVPR 2022, section 3.3, have it in their code.
    """

    num_heads: int
    num_queries: int = 1
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    epsilon: float = 1e-6
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """(b, t, c) to (b, q, c); `mask`, (b, t), is True for tokens that count."""
        _check("AttentionPool", x, mask)
        b, _, c = x.shape
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"precision": self.precision, **kind}
        init = nn.initializers.truncated_normal(c**-0.5)
        queries = self.param("queries", init, (self.num_queries, c), self.param_dtype)
        queries = jnp.broadcast_to(queries.astype(x.dtype), (b, self.num_queries, c))
        h = MultiHeadAttention(
            self.num_heads,
            self.qkv_bias,
            implementation=self.implementation,
            name="attention",
            **options,
        )(queries, x, mask=None if mask is None else mask[:, None, None, :])
        y = make_norm("layer", epsilon=self.epsilon, **kind)(h)
        return h + MLP(int(c * self.mlp_ratio), name="mlp", **options)(y)


class GatedAttentionPool(nn.Module):
    """The mean of the tokens, weighted by what each of them is.

    a[t] = softmax over t of  w . (tanh(V x[t]) * sigmoid(U x[t])),   y = sum over t of a[t] x[t]

    with a bias after V and U. The weights a, (b, t), float32 at least, are among the
    intermediates as "weights": they say which instances of a bag decided.

    Args:
      hidden_features: rows of V and U.
      precision: of the products.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ShapeError: x is not (b, t, c), or a mask of another shape than its tokens.

    Source: Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018,
    equations 7 and 9; biases as in the authors' code, without that of w, which changes nothing.
    """

    hidden_features: int = 128
    precision: Precision = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """(b, t, c) to (b, c); `mask`, (b, t), is True for tokens that count. Of none, zeros."""
        _check("GatedAttentionPool", x, mask)
        kind: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = partial(nn.Dense, precision=self.precision, **kind)
        hidden = jnp.tanh(dense(self.hidden_features, name="hidden")(x))
        gate = nn.sigmoid(dense(self.hidden_features, name="gate")(x))
        scores = dense(1, use_bias=False, name="score")(hidden * gate)[..., 0]
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        weights = jax.nn.softmax(scores, where=mask)
        self.sow("intermediates", "weights", weights)
        return jnp.sum(weights[..., None] * x, axis=1).astype(hidden.dtype)


def _check(where: str, x: Array, mask: Array | None) -> None:
    if x.ndim != 3:
        raise ShapeError(
            where,
            f"tokens of shape {x.shape}",
            "(b, t, c)",
            "Make the axes of an image one: x.reshape(b, -1, c)",
        )
    if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != jnp.bool_):
        raise ShapeError(
            where,
            f"a mask {mask.shape} of {mask.dtype} for tokens {x.shape}",
            f"{x.shape[:2]}, boolean",
            "Give True for each token that counts and False for padding",
        )
