"""Recurrent layers over sequences (b, t, c).

All are called alike: `h, h_last = layer(x)`, and `h, state = layer.run(x, *state)` from a whole
state to a whole state, so that in one direction a sequence may come in pieces. In ragged batches
`lengths`, (b,), says how many steps of each sequence count, from the first on; the others give
zeros.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from biojax import kernels
from biojax.errors import ConfigError, ShapeError, nearest
from biojax.typing import Array, Dtype

__all__ = ["GRU", "LSTM", "RNN", "BiRNN", "StackedRNN", "make_recurrent"]

State = tuple[Any, ...]  # arrays, or the states of a layer's parts


class RNN(nn.Module):
    """`biojax.kernels.rnn` with parameters `w_x`, `w_h`, `bias`.

    Args:
      features: size of the state f.
      activation: "tanh" or "relu".
      reverse: run from the last step to the first; with lengths, from the last that counts.
      chunk: steps whose states and gates are kept together for gradients; all if None.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    activation: str = "tanh"
    reverse: bool = False
    chunk: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(
        self, x: Array, h0: Array | None = None, *, lengths: Array | None = None
    ) -> tuple[Array, Array]:
        """(b, t, c) to every state (b, t, f) and the last in the order run (b, f)."""
        h, (h_last,) = self.run(x, h0, lengths=lengths)
        return h, h_last

    @nn.compact
    def run(
        self, x: Array, h0: Array | None = None, *, lengths: Array | None = None
    ) -> tuple[Array, tuple[Array]]:
        """The same from a whole state to a whole state: h, (h_last,)."""
        x, w_x, w_h, bias, h0 = _parameters(self, 1, x, (h0,))
        h, h_last = kernels.rnn(
            x,
            w_x,
            w_h,
            bias,
            h0,
            activation=self.activation,
            lengths=lengths,
            reverse=self.reverse,
            chunk=self.chunk,
        )
        return h, (h_last,)


class LSTM(nn.Module):
    """`biojax.kernels.lstm` with parameters `w_x`, `w_h`, `bias`; gates in the order i, f, g, o.

    Args:
      features: size of the state f.
      forget_bias: what the forget gate's bias starts from; 1 keeps memory at first.
      reverse: run from the last step to the first; with lengths, from the last that counts.
      chunk: steps whose states and gates are kept together for gradients; all if None.
      dtype: of the computation.
      param_dtype: of the parameters.

    Source of the forget bias: Jozefowicz et al., "An empirical exploration of recurrent network
    architectures", ICML 2015.
    """

    features: int
    forget_bias: float = 1.0
    reverse: bool = False
    chunk: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(
        self, x: Array, h0: Array | None = None, *, lengths: Array | None = None
    ) -> tuple[Array, Array]:
        """(b, t, c) to every state (b, t, f) and the last in the order run (b, f)."""
        h, (h_last, _) = self.run(x, h0, lengths=lengths)
        return h, h_last

    @nn.compact
    def run(
        self,
        x: Array,
        h0: Array | None = None,
        c0: Array | None = None,
        *,
        lengths: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """The same from a whole state to a whole state: h, (h_last, c_last)."""
        f = self.features

        def bias_init(key, shape, dtype):
            return jnp.zeros(shape, dtype).at[f : 2 * f].set(self.forget_bias)

        x, w_x, w_h, bias, h0, c0 = _parameters(self, 4, x, (h0, c0), bias_init)
        return kernels.lstm(
            x, w_x, w_h, bias, h0, c0, lengths=lengths, reverse=self.reverse, chunk=self.chunk
        )


class GRU(nn.Module):
    """`biojax.kernels.gru` with parameters `w_x`, `w_h`, `bias`, `bias_n`; gates r, z, n.

    Args:
      features: size of the state f.
      reset: "after" or "before" the product with the state's weights.
      reverse: run from the last step to the first; with lengths, from the last that counts.
      chunk: steps whose states and gates are kept together for gradients; all if None.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    reset: str = "after"
    reverse: bool = False
    chunk: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(
        self, x: Array, h0: Array | None = None, *, lengths: Array | None = None
    ) -> tuple[Array, Array]:
        """(b, t, c) to every state (b, t, f) and the last in the order run (b, f)."""
        h, (h_last,) = self.run(x, h0, lengths=lengths)
        return h, h_last

    @nn.compact
    def run(
        self, x: Array, h0: Array | None = None, *, lengths: Array | None = None
    ) -> tuple[Array, tuple[Array]]:
        """The same from a whole state to a whole state: h, (h_last,)."""
        bias_n = self.param(
            "bias_n", nn.initializers.zeros_init(), (self.features,), self.param_dtype
        )
        x, w_x, w_h, bias, h0 = _parameters(self, 3, x, (h0,))
        h, h_last = kernels.gru(
            x,
            w_x,
            w_h,
            bias,
            h0,
            bias_n=bias_n.astype(x.dtype),
            reset=self.reset,
            lengths=lengths,
            reverse=self.reverse,
            chunk=self.chunk,
        )
        return h, (h_last,)


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

    def __call__(self, x: Array, *, lengths: Array | None = None) -> tuple[Array, Array]:
        """(b, t, c) to every state (b, t, 2 f) and the two last states (b, 2 f)."""
        ragged = _ragged(lengths)
        h, h_last = self.forward(x, **ragged)
        g, g_last = self.backward(x, **ragged)
        return jnp.concatenate([h, g], axis=-1), jnp.concatenate([h_last, g_last], axis=-1)

    def run(
        self, x: Array, forward0: State = (), backward0: State = (), *, lengths: Array | None = None
    ) -> tuple[Array, tuple[State, State]]:
        """The same from whole states to whole states; the backward one begins at the last step."""
        ragged = _ragged(lengths)
        h, forward = self.forward.run(x, *forward0, **ragged)
        g, backward = self.backward.run(x, *backward0, **ragged)
        return jnp.concatenate([h, g], axis=-1), (forward, backward)


class StackedRNN(nn.Module):
    """Recurrent layers one on the other: the states of each are the steps of the next.

    Args:
      layers: recurrent layers, in one or in both directions, the first one's first.
      dropout_rate: between layers, while training.

    Raises:
      ConfigError: no layers.
      ShapeError: states for more or fewer layers.

    >>> from functools import partial
    >>> model = StackedRNN([RNN(4), LSTM(5)])
    >>> init = partial(model.init_with_output, method="run")
    >>> (h, states), _ = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 6, 3)))
    >>> h.shape, jax.tree.map(jnp.shape, states)
    ((2, 6, 5), (((2, 4),), ((2, 5), (2, 5))))
    """

    layers: Sequence[nn.Module]
    dropout_rate: float = 0.0

    def setup(self):
        if not self.layers:
            raise ConfigError("StackedRNN", "no layers", "one layer or more", "Give layers")
        self.drop = nn.Dropout(self.dropout_rate)

    def __call__(
        self, x: Array, *, lengths: Array | None = None, train: bool = False
    ) -> tuple[Array, Array]:
        """(b, t, c) to every state of the last layer (b, t, f) and the last one (b, f)."""
        return self.each(x, lengths=lengths, train=train)[-1]

    def each(
        self, x: Array, *, lengths: Array | None = None, train: bool = False
    ) -> list[tuple[Array, Array]]:
        """The same of every layer, from the first on."""
        results = []
        for i, layer in enumerate(self.layers):
            x = self.drop(x, deterministic=not train) if i else x
            x, last = layer(x, **_ragged(lengths))  # pyright: ignore[reportCallIssue]
            results.append((x, last))
        return results

    def run(
        self, x: Array, *states: State, lengths: Array | None = None, train: bool = False
    ) -> tuple[Array, tuple[State, ...]]:
        """The call from a whole state of each layer to another; from zeros without any."""
        if len(states) not in (0, len(self.layers)):
            raise ShapeError(
                "StackedRNN",
                f"{len(states)} states for {len(self.layers)} layers",
                "a state for each layer, or none at all",
                "Pass the states that run returned",
            )
        after = []
        for i, layer in enumerate(self.layers):
            x = self.drop(x, deterministic=not train) if i else x
            x, state = layer.run(x, *(states[i] if states else ()), **_ragged(lengths))
            after.append(state)
        return x, tuple(after)


CELLS: dict[str, Callable[..., nn.Module]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


def make_recurrent(
    cell: str,
    features: int,
    *,
    bidirectional: bool = False,
    chunk: int | None = None,
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
    name: str | None = None,
) -> nn.Module:
    """A recurrent layer by its cell's name.

    Args:
      cell: "rnn", "lstm" or "gru".
      features: size of the state in each direction.
      bidirectional: run in both directions.
      chunk: steps whose states and gates are kept together for gradients; all if None.
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
    kind = {"features": features, "chunk": chunk, "dtype": dtype, "param_dtype": param_dtype}
    if not bidirectional:
        return CELLS[cell](name=name, **kind)
    # Made without a parent, so that the pair and not the caller owns them.
    forward = CELLS[cell](parent=None, **kind)
    backward = CELLS[cell](parent=None, reverse=True, **kind)
    return BiRNN(forward, backward, name=name)


def _ragged(lengths: Array | None) -> dict[str, Array]:
    """Nothing without lengths, since layers over images know none."""
    return {} if lengths is None else {"lengths": lengths}


def _parameters(
    module: RNN | LSTM | GRU,
    gates: int,
    x: Array,
    state0: tuple[Array | None, ...],
    bias_init: Callable | None = None,
) -> list:
    """The input, w_x, w_h, bias and state in one dtype; w_h starts orthogonal, gate by gate."""
    f, dtype = module.features, module.param_dtype

    def orthogonal(key, shape, dtype):
        make = nn.initializers.orthogonal()
        keys = jax.random.split(key, gates)
        return jnp.concatenate([make(k, (f, f), dtype) for k in keys], axis=1)

    bias_init = bias_init or nn.initializers.zeros_init()
    w_x = module.param("w_x", nn.initializers.lecun_normal(), (x.shape[-1], gates * f), dtype)
    w_h = module.param("w_h", orthogonal, (f, gates * f), dtype)
    bias = module.param("bias", bias_init, (gates * f,), dtype)
    return promote_dtype(x, w_x, w_h, bias, *state0, dtype=module.dtype)
