"""Recurrent layers over sequences (b, t, c)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from biojax import kernels
from biojax.errors import ConfigError, nearest
from biojax.typing import Array, Dtype

__all__ = ["GRU", "LSTM", "RNN", "BiRNN", "make_recurrent"]


class RNN(nn.Module):
    """`biojax.kernels.rnn` with parameters `w_x`, `w_h`, `bias`.

    Args:
      features: size of the state f.
      activation: "tanh" or "relu".
      reverse: run from the last step to the first.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    activation: str = "tanh"
    reverse: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, h0: Array | None = None) -> tuple[Array, Array]:
        """(b, t, c) to every state (b, t, f) and the last in the order run (b, f)."""
        x, w_x, w_h, bias, h0 = _parameters(self, 1, x, h0)
        return kernels.rnn(x, w_x, w_h, bias, h0, activation=self.activation, reverse=self.reverse)


class LSTM(nn.Module):
    """`biojax.kernels.lstm` with parameters `w_x`, `w_h`, `bias`; gates in the order i, f, g, o.

    Args:
      features: size of the state f.
      forget_bias: what the forget gate's bias starts from; 1 keeps memory at first.
      reverse: run from the last step to the first.
      dtype: of the computation.
      param_dtype: of the parameters.

    Source of the forget bias: Jozefowicz et al., "An empirical exploration of recurrent network
    architectures", ICML 2015.
    """

    features: int
    forget_bias: float = 1.0
    reverse: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, h0: Array | None = None) -> tuple[Array, Array]:
        """(b, t, c) to every state (b, t, f) and the last in the order run (b, f)."""
        f = self.features

        def bias_init(key, shape, dtype):
            return jnp.zeros(shape, dtype).at[f : 2 * f].set(self.forget_bias)

        x, w_x, w_h, bias, h0 = _parameters(self, 4, x, h0, bias_init)
        h, (h_last, _) = kernels.lstm(x, w_x, w_h, bias, h0, reverse=self.reverse)
        return h, h_last


class GRU(nn.Module):
    """`biojax.kernels.gru` with parameters `w_x`, `w_h`, `bias`, `bias_n`; gates r, z, n.

    Args:
      features: size of the state f.
      reset: "after" or "before" the product with the state's weights.
      reverse: run from the last step to the first.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    reset: str = "after"
    reverse: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, h0: Array | None = None) -> tuple[Array, Array]:
        """(b, t, c) to every state (b, t, f) and the last in the order run (b, f)."""
        bias_n = self.param(
            "bias_n", nn.initializers.zeros_init(), (self.features,), self.param_dtype
        )
        x, w_x, w_h, bias, h0 = _parameters(self, 3, x, h0)
        return kernels.gru(
            x,
            w_x,
            w_h,
            bias,
            h0,
            bias_n=bias_n.astype(x.dtype),
            reset=self.reset,
            reverse=self.reverse,
        )


class BiRNN(nn.Module):
    """Two recurrent layers of any kind, the second run backwards; states are put side by side.

    Args:
      forward: a recurrent layer.
      backward: another of the same kind with reverse=True.

    Source: Schuster and Paliwal, "Bidirectional recurrent neural networks", IEEE Transactions
    on Signal Processing 45, 1997.
    """

    forward: nn.Module
    backward: nn.Module

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(b, t, c) to every state (b, t, 2 f) and the two last states (b, 2 f)."""
        h, h_last = self.forward(x)
        g, g_last = self.backward(x)
        return jnp.concatenate([h, g], axis=-1), jnp.concatenate([h_last, g_last], axis=-1)


CELLS: dict[str, Callable[..., nn.Module]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


def make_recurrent(
    cell: str,
    features: int,
    *,
    bidirectional: bool = False,
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
    name: str | None = None,
) -> nn.Module:
    """A recurrent layer by its cell's name.

    Args:
      cell: "rnn", "lstm" or "gru".
      features: size of the state in each direction.
      bidirectional: run in both directions.
      dtype: of the computation.
      param_dtype: of the parameters.
      name: of the layer inside of its parent.

    Raises:
      ConfigError: no cell of that name.
    """
    if cell not in CELLS:
        raise ConfigError(
            "make_recurrent",
            f"cell={cell!r}",
            f"one of {', '.join(map(repr, CELLS))}",
            "Name one of these",
            nearest(cell, CELLS),
        )
    kind = {"features": features, "dtype": dtype, "param_dtype": param_dtype}
    if not bidirectional:
        return CELLS[cell](name=name, **kind)
    # Made without a parent, so that the pair and not the caller owns them.
    forward = CELLS[cell](parent=None, **kind)
    backward = CELLS[cell](parent=None, reverse=True, **kind)
    return BiRNN(forward, backward, name=name)


def _parameters(
    module: RNN | LSTM | GRU,
    gates: int,
    x: Array,
    h0: Array | None,
    bias_init: Callable | None = None,
) -> tuple[Array, Array, Array, Array, Array | None]:
    """The inputs and weights in one dtype; the state's weights start orthogonal, gate by gate."""
    f, dtype = module.features, module.param_dtype

    def orthogonal(key, shape, dtype):
        make = nn.initializers.orthogonal()
        keys = jax.random.split(key, gates)
        return jnp.concatenate([make(k, (f, f), dtype) for k in keys], axis=1)

    bias_init = bias_init or nn.initializers.zeros_init()
    w_x = module.param("w_x", nn.initializers.lecun_normal(), (x.shape[-1], gates * f), dtype)
    w_h = module.param("w_h", orthogonal, (f, gates * f), dtype)
    bias = module.param("bias", bias_init, (gates * f,), dtype)
    x, w_x, w_h, bias, h0 = promote_dtype(x, w_x, w_h, bias, h0, dtype=module.dtype)
    return x, w_x, w_h, bias, h0
