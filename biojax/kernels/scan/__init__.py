"""Recurrences along a sequence: linear, tanh, gated."""

from collections.abc import Callable

import jax.numpy as jnp

from biojax.errors import ConfigError, ShapeError, nearest
from biojax.kernels.dispatch import accumulator, platform, select
from biojax.kernels.scan import associative, sequential
from biojax.typing import Array

__all__ = ["gru", "linear_scan", "lstm", "rnn"]


def linear_scan(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    axis: int = 1,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """First-order linear recurrence along one axis.

    h_t = a_t * h_{t-1} + b_t,   h_{-1} = h0

    Args:
      a: decay, broadcastable to b.
      b: input, (..., t, ...) with t at `axis`; float or complex.
      h0: state before the first step, b's shape without `axis`; zeros if None.
      axis: the axis of time.
      reverse: run from the last step to the first.
      implementation: "sequential", "associative", or None to choose.

    Returns:
      h: every state, shape and dtype of b. h_last: the last state in the order run.

    Raises:
      ShapeError: a does not broadcast to b, or h0 has the wrong shape or too wide a dtype.

    The carry is held in at least float32. Time and memory are linear in t.
    Source: Martin and Cundy, "Parallelizing linear recurrent neural nets over sequence length",
    ICLR 2018, section 2.

    >>> h, h_last = linear_scan(jnp.full((1, 3, 1), 0.5), jnp.ones((1, 3, 1)))
    >>> h[0, :, 0]
    Array([1.  , 1.5 , 1.75], dtype=float32)
    """
    where = "linear_scan"
    if not -b.ndim <= axis < b.ndim or b.shape[axis] == 0:
        raise ShapeError(
            where,
            f"b of shape {b.shape} and axis={axis}",
            "an axis of b with at least one step",
            "Name the axis of time with axis=",
        )
    axis %= b.ndim
    state = b.shape[:axis] + b.shape[axis + 1 :]
    try:
        a = jnp.broadcast_to(a, b.shape)
    except ValueError:
        raise ShapeError(
            where,
            f"a of shape {jnp.shape(a)} and b of shape {b.shape}",
            "a that broadcasts to b",
            "Put axes of length 1 where a does not vary",
        ) from None
    h0 = _initial(where, "h0", h0, state, b.dtype)
    if not jnp.issubdtype(b.dtype, jnp.inexact) or jnp.result_type(a, b) != b.dtype:
        raise ShapeError(
            where,
            f"a of {a.dtype} and b of {b.dtype}",
            "float or complex b, and a of no wider type",
            f"Convert b: b.astype({jnp.result_type(a, b, jnp.float32)})",
        )

    def rule() -> tuple[str, str]:
        if platform() == "cpu":
            return "sequential", "on CPU one pass over memory is the least work"
        return "associative", f"log(t) parallel steps on {platform()}"

    implementations = {
        "sequential": sequential.linear_scan,
        "associative": associative.linear_scan,
    }
    run = select(where, implementations, implementation, rule)
    h, h_last = run(jnp.moveaxis(a, axis, 0), jnp.moveaxis(b, axis, 0), h0, reverse)
    return jnp.moveaxis(h, 0, axis), h_last


def rnn(
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    h0: Array | None = None,
    *,
    activation: str = "tanh",
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Elman's recurrent network.

    h_t = tanh(x_t W_x + h_{t-1} W_h + bias)

    Args:
      x: sequences, (b, t, c).
      w_x: (c, f). w_h: (f, f). bias: (f,).
      h0: (b, f); zeros if None.
      activation: "tanh" or "relu".
      reverse: run from the last step to the first.
      implementation: "sequential", or None to choose.

    Returns:
      h: every state, (b, t, f), of x's dtype. h_last: the last one in the order run, (b, f).

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: an unknown activation.

    The carry is held in at least float32.
    Source: Elman, "Finding structure in time", Cognitive Science 14, 1990.
    """
    features = _check_cell("rnn", 1, x, w_x, w_h, bias)
    h0 = _initial("rnn", "h0", h0, (x.shape[0], features), x.dtype)
    if activation not in sequential.ACTIVATIONS:
        raise _unknown("rnn", "activation", activation, sequential.ACTIVATIONS)
    run = _cell("rnn", sequential.rnn, implementation)
    return run(x, w_x, w_h, bias, h0, activation, reverse)


def lstm(
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    h0: Array | None = None,
    c0: Array | None = None,
    *,
    reverse: bool = False,
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
      reverse: run from the last step to the first.
      implementation: "sequential", or None to choose.

    Returns:
      h: every state, (b, t, f), of x's dtype. (h_last, c_last): the last states in the order
      run, (b, f) each.

    Raises:
      ShapeError: the arrays do not fit together.

    The carry is held in at least float32.
    Source: Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12, 2000.
    """
    features = _check_cell("lstm", 4, x, w_x, w_h, bias)
    h0 = _initial("lstm", "h0", h0, (x.shape[0], features), x.dtype)
    c0 = _initial("lstm", "c0", c0, (x.shape[0], features), x.dtype)
    run = _cell("lstm", sequential.lstm, implementation)
    return run(x, w_x, w_h, bias, h0, c0, reverse)


def gru(
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    h0: Array | None = None,
    *,
    bias_n: Array | None = None,
    reset: str = "after",
    reverse: bool = False,
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
      reverse: run from the last step to the first.
      implementation: "sequential", or None to choose.

    Returns:
      h: every state, (b, t, f), of x's dtype. h_last: the last one in the order run, (b, f).

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: an unknown reset.

    The carry is held in at least float32.
    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014,
    section 2.3.
    """
    features = _check_cell("gru", 3, x, w_x, w_h, bias)
    h0 = _initial("gru", "h0", h0, (x.shape[0], features), x.dtype)
    bias_n = _initial("gru", "bias_n", bias_n, (features,), x.dtype)
    if reset not in ("after", "before"):
        raise _unknown("gru", "reset", reset, ("after", "before"))
    run = _cell("gru", sequential.gru, implementation)
    return run(x, w_x, w_h, bias, bias_n, h0, reset, reverse)


def _cell(where: str, function: Callable, implementation: str | None) -> Callable:
    return select(
        where, {"sequential": function}, implementation, lambda: ("sequential", "the only one")
    )


def _initial(where: str, name: str, value: Array | None, shape: tuple[int, ...], dtype) -> Array:
    if value is None:
        return jnp.zeros(shape, dtype)
    wide = accumulator(dtype)
    if value.shape != shape or jnp.promote_types(value.dtype, wide) != wide:
        raise ShapeError(
            where,
            f"{name} of {value.dtype} and shape {value.shape}",
            f"shape {shape}, and no dtype wider than {wide}",
            f"Leave {name} out for zeros, or convert it",
        )
    return value


def _check_cell(where: str, gates: int, x: Array, w_x: Array, w_h: Array, bias: Array) -> int:
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
    if not x.dtype == w_x.dtype == w_h.dtype == bias.dtype or not jnp.issubdtype(
        x.dtype, jnp.floating
    ):
        raise ShapeError(
            where,
            f"x of {x.dtype}, w_x of {w_x.dtype}, w_h of {w_h.dtype}, bias of {bias.dtype}",
            "one floating dtype for all",
            "Convert them with astype",
        )
    return features


def _unknown(where: str, name: str, value: str, choices) -> ConfigError:
    listed = ", ".join(map(repr, choices))
    return ConfigError(
        where, f"{name}={value!r}", f"one of {listed}", "Name one of these", nearest(value, choices)
    )
