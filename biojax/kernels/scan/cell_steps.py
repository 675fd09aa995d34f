"""One step of each cell, and its gradient by hand.

The gates are one hyperbolic tangent of all of them, since sigmoid(x) = (1 + tanh(x / 2)) / 2: on
CPU XLA makes vectors of that, where the parts of a sum with a sigmoid each take twice as long.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from biojax.kernels.scan.products import State, Weights, gradient, of_state, product
from biojax.typing import Array

__all__ = ["ACTIVATIONS", "GRU", "GRU_BEFORE", "LSTM", "RNN", "Cell"]


class Cell(NamedTuple):
    """How a cell steps, and how gradients go back through the step.

    Args:
      step: (p, state, weights) to the next state, whose first part is the output; p is
        x_t W_x + bias.
      gates: (p, states before, states after, weights) of all steps at once to what `pull` needs.
      pull: (gradient of the state after, gates, weights) to (`dpre`, gradient of the state
        before).
      gradients: (dpre, states before, gates, weights) of all steps at once to the gradients of p,
        w_h and bias_h.
    """

    step: Callable
    gates: Callable
    pull: Callable
    gradients: Callable


# The activation, and its slope from its own value.
ACTIVATIONS = {
    "tanh": (jnp.tanh, lambda h: 1 - h * h),
    "relu": (lambda x: jnp.maximum(x, 0), lambda h: (h > 0).astype(h.dtype)),
}


def _rnn(activation: str) -> Cell:
    function, slope = ACTIVATIONS[activation]

    def step(p: Array, state: State, weights: Weights) -> State:
        return (function(p + of_state(state[0], weights)),)

    def gates(p: Array, olds: State, news: State, weights: Weights) -> State:
        return news

    def pull(dstate: State, gates: State, weights: Weights) -> tuple[Array, State]:
        dpre = dstate[0] * slope(gates[0])
        return dpre, (product(dpre, weights.w_h.T),)

    return Cell(step, gates, pull, _same_on_both_sides)


def _lstm_gates(pre: Array) -> list[Array]:
    """i, f, g, o."""
    half = jnp.repeat(jnp.array([0.5, 0.5, 1, 0.5], pre.dtype), pre.shape[-1] // 4)
    i, f, g, o = jnp.split(jnp.tanh(pre * half), 4, axis=-1)
    return [_half(i), _half(f), g, _half(o)]


def _lstm_step(p: Array, state: State, weights: Weights) -> State:
    h, c = state
    i, f, g, o = _lstm_gates(p + of_state(h, weights))
    c = f * c + i * g
    return o * jnp.tanh(c), c


def _lstm_all(p: Array, olds: State, news: State, weights: Weights) -> tuple[Array, ...]:
    """The four gates, c before, and tanh(c) after."""
    h, c = olds
    return *_lstm_gates(p + of_state(h, weights)), c, jnp.tanh(news[1])


def _lstm_pull(dstate: State, gates: tuple[Array, ...], weights: Weights) -> tuple[Array, State]:
    (dh, dc), (i, f, g, o, old, shown) = dstate, gates
    dc = dc + dh * o * (1 - shown * shown)
    di, df = dc * g * i * (1 - i), dc * old * f * (1 - f)
    dg, do = dc * i * (1 - g * g), dh * shown * o * (1 - o)
    dpre = jnp.concatenate([di, df, dg, do], axis=-1)
    return dpre, (product(dpre, weights.w_h.T), dc * f)


def _gru_gates(p: Array, q: Array) -> tuple[Array, Array]:
    """R and z, of the first two thirds of p and q."""
    wide = p.shape[-1] // 3 * 2
    r, z = jnp.split(_half(jnp.tanh(0.5 * (p[..., :wide] + q[..., :wide]))), 2, axis=-1)
    return r, z


def _third(v: Array) -> Array:
    """The candidate's part of three."""
    return v[..., v.shape[-1] // 3 * 2 :]


def _gru_step(p: Array, state: State, weights: Weights) -> State:
    (h,), q = state, of_state(state[0], weights)
    r, z = _gru_gates(p, q)
    return ((1 - z) * jnp.tanh(_third(p) + r * _third(q)) + z * h,)


def _gru_all(p: Array, olds: State, news: State, weights: Weights) -> tuple[Array, ...]:
    """r, z, n, the state's part of n, and the state before."""
    q = of_state(olds[0], weights)
    r, z = _gru_gates(p, q)
    return r, z, jnp.tanh(_third(p) + r * _third(q)), _third(q), olds[0]


def _gru_pull(dstate: State, gates: tuple[Array, ...], weights: Weights):
    (dh,), (r, z, n, q_n, old) = dstate, gates
    dn = dh * (1 - z) * (1 - n * n)
    dgates = jnp.concatenate([dn * q_n * r * (1 - r), dh * (old - n) * z * (1 - z)], axis=-1)
    dq = jnp.concatenate([dgates, dn * r], axis=-1)
    return (dgates, dn), (dh * z + product(dq, weights.w_h.T),)


def _gru_gradients(dpre: tuple[Array, Array], olds: State, gates, weights: Weights):
    (dgates, dn), r = dpre, gates[0]
    dq = jnp.concatenate([dgates, dn * r], axis=-1)
    dp = jnp.concatenate([dgates, dn], axis=-1)
    return dp, gradient(olds[0], dq, weights.w_h), dq.sum((0, 1))


# Reset before the product: a second one, of r h, follows the first.


def _before_step(p: Array, state: State, weights: Weights) -> State:
    (h,) = state
    _, z, n = _before_gates(p, h, weights)
    return ((1 - z) * n + z * h,)


def _before_gates(p: Array, h: Array, weights: Weights) -> tuple[Array, Array, Array]:
    w_gates, w_n = _split(weights.w_h)
    r, z = _gru_gates(p, product(h, w_gates))
    bias_n = 0 if weights.bias_h is None else _third(weights.bias_h)
    return r, z, jnp.tanh(_third(p) + product(r * h, w_n) + bias_n)


def _before_all(p: Array, olds: State, news: State, weights: Weights) -> tuple[Array, ...]:
    """r, z, n and the state before."""
    return *_before_gates(p, olds[0], weights), olds[0]


def _before_pull(dstate: State, gates: tuple[Array, ...], weights: Weights):
    (dh,), (r, z, n, old) = dstate, gates
    w_gates, w_n = _split(weights.w_h)
    dn = dh * (1 - z) * (1 - n * n)
    dreset = product(dn, w_n.T)
    dgates = [dreset * old * r * (1 - r), dh * (old - n) * z * (1 - z)]
    dgates = jnp.concatenate(dgates, axis=-1)
    return (dgates, dn), (dh * z + dreset * r + product(dgates, w_gates.T),)


def _before_gradients(dpre: tuple[Array, Array], olds: State, gates, weights: Weights):
    (dgates, dn), (old,), (w_gates, w_n) = dpre, olds, _split(weights.w_h)
    dw = gradient(old, dgates, w_gates), gradient(gates[0] * old, dn, w_n)
    dp = jnp.concatenate([dgates, dn], axis=-1)
    return dp, jnp.concatenate(dw, axis=1), dp.sum((0, 1))


def _same_on_both_sides(dpre: Array, olds: State, gates, weights: Weights):
    return dpre, gradient(olds[0], dpre, weights.w_h), dpre.sum((0, 1))


def _split(w_h: Array) -> tuple[Array, Array]:
    """Of the gates, and of the candidate."""
    wide = 2 * w_h.shape[0]
    return w_h[:, :wide], w_h[:, wide:]


def _half(t: Array) -> Array:
    return 0.5 * t + 0.5


RNN = {name: _rnn(name) for name in ACTIVATIONS}
LSTM = Cell(_lstm_step, _lstm_all, _lstm_pull, _same_on_both_sides)
GRU = Cell(_gru_step, _gru_all, _gru_pull, _gru_gradients)
GRU_BEFORE = Cell(_before_step, _before_all, _before_pull, _before_gradients)
