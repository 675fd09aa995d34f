"""Recurrent cells run along a sequence: tanh, long short-term memory, gated unit."""

from collections.abc import Callable

import jax.numpy as jnp

from biojax.errors import ConfigError, ShapeError, nearest
from biojax.kernels.dispatch import select
from biojax.kernels.scan import sequential_cells
from biojax.kernels.scan.cell_steps import ACTIVATIONS
from biojax.kernels.scan.checks import check_chunk, check_one_dtype, initial_state
from biojax.typing import Array, Precision

__all__ = ["gru", "lstm", "rnn"]


def rnn(
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    h0: Array | None = None,
    *,
    activation: str = "tanh",
    lengths: Array | None = None,
    reverse: bool = False,
    chunk: int | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Elman's recurrent network.

    h_t = tanh(x_t W_x + h_{t-1} W_h + bias)

    Args:
      x: sequences, (b, t, c).
      w_x: (c, f). w_h: (f, f). bias: (f,).
      h0: (b, f); zeros if None.
      activation: "tanh" or "relu".
      lengths: (b,), how many steps of each sequence count, from the first on; all if None.
      reverse: run from the last step to the first; with lengths, from the last that counts.
      chunk: for gradients keep only the state before each so many steps, and compute those in
        between anew; None keeps all.
      precision: passed to every product, as in `jax.lax`.
      implementation: "sequential", or None to choose.

    Returns:
      h: every state, (b, t, f), of x's dtype; zeros where no step counts. h_last: the last one in
      the order run, (b, f).

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: an unknown activation.

    The state is held in at least float32. For the gradient states and gates are
    kept, with chunk those of one chunk at a time.
    Source: Elman, "Finding structure in time", Cognitive Science 14, 1990.
    """
    features = _check_cell("rnn", 1, x, w_x, w_h, bias, lengths, chunk)
    h0 = initial_state("rnn", "h0", h0, (x.shape[0], features), x.dtype)
    if activation not in ACTIVATIONS:
        raise _unknown("rnn", "activation", activation, ACTIVATIONS)
    run = _cell("rnn", sequential_cells.rnn, implementation)
    return run(x, w_x, w_h, bias, h0, lengths, activation, reverse, chunk, precision)


def lstm(
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    h0: Array | None = None,
    c0: Array | None = None,
    *,
    lengths: Array | None = None,
    reverse: bool = False,
    chunk: int | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Long short-term memory.

    i, f, g, o = split(x_t W_x + h_{t-1} W_h + bias)
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(c_t)

    The gates lie in the order i, f, g, o along the last axis of the weights, as in PyTorch.
    PyTorch's two biases add up to this one.

    Args:
      x: sequences, (b, t, c).
      w_x: (c, 4 f). w_h: (f, 4 f). bias: (4 f,).
      h0: (b, f). c0: (b, f). Zeros if None.
      lengths: (b,), how many steps of each sequence count, from the first on; all if None.
      reverse: run from the last step to the first; with lengths, from the last that counts.
      chunk: for gradients keep only the states before each so many steps, and compute those in
        between anew; None keeps all.
      precision: passed to every product, as in `jax.lax`.
      implementation: "sequential", or None to choose.

    Returns:
      h: every state, (b, t, f), of x's dtype; zeros where no step counts. (h_last, c_last): the
      last states in the order run, (b, f) each.

    Raises:
      ShapeError: the arrays do not fit together.

    The state is held in at least float32. For the gradient states and gates are
    kept, with chunk those of one chunk at a time.
    Source: Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12, 2000.
    """
    features = _check_cell("lstm", 4, x, w_x, w_h, bias, lengths, chunk)
    h0 = initial_state("lstm", "h0", h0, (x.shape[0], features), x.dtype)
    c0 = initial_state("lstm", "c0", c0, (x.shape[0], features), x.dtype)
    run = _cell("lstm", sequential_cells.lstm, implementation)
    return run(x, w_x, w_h, bias, h0, c0, lengths, reverse, chunk, precision)


def gru(
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    h0: Array | None = None,
    *,
    bias_n: Array | None = None,
    reset: str = "after",
    lengths: Array | None = None,
    reverse: bool = False,
    chunk: int | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Gated recurrent unit.

    r, z   = sigmoid(split(x_t W_x + h_{t-1} W_h + bias))       the first two thirds
    n      = tanh(x_t W_xn + bias_xn + r * (h_{t-1} W_hn + bias_n))     reset="after"
    n      = tanh(x_t W_xn + bias_xn + (r * h_{t-1}) W_hn + bias_n)     reset="before"
    h_t    = (1 - z) * n + z * h_{t-1}

    The gates lie in the order r, z, n along the last axis of the weights, as in PyTorch, which
    resets after the product, as cuDNN does; the paper resets before it.

    Args:
      x: sequences, (b, t, c).
      w_x: (c, 3 f). w_h: (f, 3 f). bias: (3 f,).
      h0: (b, f); zeros if None.
      bias_n: (f,), the candidate's bias on the side of the state; zeros if None.
      reset: "after" or "before" the product with the state's weights.
      lengths: (b,), how many steps of each sequence count, from the first on; all if None.
      reverse: run from the last step to the first; with lengths, from the last that counts.
      chunk: for gradients keep only the state before each so many steps, and compute those in
        between anew; None keeps all.
      precision: passed to every product, as in `jax.lax`.
      implementation: "sequential", or None to choose.

    Returns:
      h: every state, (b, t, f), of x's dtype; zeros where no step counts. h_last: the last one in
      the order run, (b, f).

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: an unknown reset.

    The state is held in at least float32. For the gradient states and gates are
    kept, with chunk those of one chunk at a time.
    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014,
    section 2.3.
    """
    features = _check_cell("gru", 3, x, w_x, w_h, bias, lengths, chunk)
    h0 = initial_state("gru", "h0", h0, (x.shape[0], features), x.dtype)
    bias_n = initial_state("gru", "bias_n", bias_n, (features,), x.dtype)
    if reset not in ("after", "before"):
        raise _unknown("gru", "reset", reset, ("after", "before"))
    run = _cell("gru", sequential_cells.gru, implementation)
    return run(x, w_x, w_h, bias, bias_n, h0, lengths, reset, reverse, chunk, precision)


def _cell(where: str, function: Callable, implementation: str | None) -> Callable:
    return select(
        where, {"sequential": function}, implementation, lambda: ("sequential", "the only one")
    )


def _check_cell(
    where: str,
    gates: int,
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    lengths: Array | None,
    chunk: int | None,
) -> int:
    """The number of features, once the shapes are known to fit."""
    features = w_h.shape[0] if w_h.ndim == 2 else 0
    wide = gates * features
    fits = x.ndim == 3 and x.shape[1] > 0 and w_x.shape == (x.shape[-1], wide)
    if not (fits and features and w_h.shape == (features, wide) and bias.shape == (wide,)):
        g = f"{gates} * f" if gates > 1 else "f"
        raise ShapeError(
            where,
            f"x {x.shape}, w_x {w_x.shape}, w_h {w_h.shape}, bias {bias.shape}",
            f"x (b, t, c), w_x (c, {g}), w_h (f, {g}), bias ({g},)",
            "Make the shapes agree",
        )
    check_one_dtype(where, x=x, w_x=w_x, w_h=w_h, bias=bias)
    if lengths is not None and not (
        lengths.shape == x.shape[:1] and jnp.issubdtype(lengths.dtype, jnp.integer)
    ):
        raise ShapeError(
            where,
            f"lengths of {lengths.dtype} and shape {lengths.shape}",
            f"integers of shape {x.shape[:1]}, one for each sequence",
            "Count the steps of each, or leave lengths out",
        )
    if chunk is not None:
        check_chunk(where, chunk)
    return features


def _unknown(where: str, name: str, value: str, choices) -> ConfigError:
    listed = ", ".join(map(repr, choices))
    return ConfigError(
        where, f"{name}={value!r}", f"one of {listed}", "Name one of these", nearest(value, choices)
    )
