"""The two-layer perceptron of transformer blocks."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ConfigError, nearest
from biojax.modules.norm import make_norm
from biojax.typing import Array, Dtype, Precision

__all__ = ["MLP"]

ACTIVATIONS = ("gelu", "swiglu")


class MLP(nn.Module):
    """Each token by itself: to a wider layer and back.

    gelu:    y = W_project norm(gelu(W_expand x))
    swiglu:  y = W_project norm(silu(W_gate x) * W_expand x)

    with a bias after every matrix, and no norm unless asked for. GELU is exact, x Phi(x).

    Args:
      hidden_features: width of the hidden layer.
      activation: "gelu" or "swiglu".
      norm: whether the hidden layer is normalised, as in EVA-02.
      dropout_rate: of the hidden layer and of the output, while training.
      epsilon: of the norm.
      precision: of the products.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ConfigError: no activation of that name.

    Sources: Hendrycks and Gimpel, "Gaussian error linear units", 2016; Shazeer, "GLU variants
    improve transformer", 2020, equation 6; the norm: Fang et al., "EVA-02", 2023, section 2.1.
    """

    hidden_features: int
    activation: str = "gelu"
    norm: bool = False
    dropout_rate: float = 0.0
    epsilon: float = 1e-6
    precision: Precision = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(..., c) to the same."""
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                "MLP",
                f"activation={self.activation!r}",
                f"one of {', '.join(map(repr, ACTIVATIONS))}",
                "Name one of these",
                nearest(self.activation, ACTIVATIONS),
            )
        kind: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = partial(nn.Dense, precision=self.precision, **kind)
        drop = nn.Dropout(self.dropout_rate, deterministic=not train)
        y = dense(self.hidden_features, name="expand")(x)
        if self.activation == "gelu":
            y = nn.gelu(y, approximate=False)
        else:
            y = nn.silu(dense(self.hidden_features, name="gate")(x)) * y
        y = drop(y)
        if self.norm:
            y = make_norm("layer", epsilon=self.epsilon, **kind)(y)
        return drop(dense(x.shape[-1], name="project")(y))
