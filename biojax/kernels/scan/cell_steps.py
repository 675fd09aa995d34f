"""One step of each cell, and its gradient by hand.

The gates are one hyperbolic tangent of all of them, since sigmoid(x) = (1 + tanh(x / 2)) / 2: on
CPU that halved the time of an LSTM's steps (jaxlib 0.10.2).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from biojax.kernels.scan.products import State, Weights, gradient, of_state, product
from biojax.typing import Array, Precision

__all__ = ["ACTIVATIONS", "GRU", "GRU_BEFORE", "LSTM", "RNN", "Cell"]


class Cell(NamedTuple):
    """How a cell steps, and how gradients go back through the step.

    Args:
      step: (p, state, weights, precision) to the next state, whose first part is the output, and
        the gates, which are kept for the gradient; p is x_t W_x + bias.
      back: w_h to what `pull` multiplies by. Once for all steps: a product with a transposed
        matrix is slower on CPU than one with a matrix that was transposed before.
      pull: (gradient of the state after, gates, state before, state after, `back`'s result,
        precision) to (`dpre`, gradient of the state before).
      gradients: (dpre, gates, states before, w_h, precision) of all steps at once to the gradients
        of p, w_h and bias_h.
    """

    step: Callable
    back: Callable
    pull: Callable
    gradients: Callable


# The activation, and its slope from its own value.
ACTIVATIONS = {
    "tanh": (jnp.tanh, lambda h: 1 - h * h),
    "relu": (lambda x: jnp.maximum(x, 0), lambda h: (h > 0).astype(h.dtype)),
}


def _rnn(activation: str) -> Cell:
    function, slope = ACTIVATIONS[activation]

    def step(p: Array, state: State, weights: Weights, precision) -> tuple[State, None]:
        return (function(p + of_state(state[0], weights, precision)),), None

    def pull(dstate: State, gates: None, old: State, new: State, back: Array, precision):
        dpre = dstate[0] * slope(new[0])
        return dpre, (product(dpre, back, precision),)

    return Cell(step, jnp.transpose, pull, _same_on_both_sides)


def _lstm_step(
    p: Array, state: State, weights: Weights, precision: Precision
) -> tuple[State, Array]:
    h, c = state
    pre = p + of_state(h, weights, precision)
    half = np.repeat(np.array([0.5, 0.5, 1, 0.5], pre.dtype), h.shape[-1])
    gates = jnp.tanh(pre * half)
    i, f, g, o = _lstm_gates(gates)
    c = f * c + i * g
    return (o * jnp.tanh(c), c), gates


def _lstm_gates(tanh: Array) -> tuple[Array, ...]:
    i, f, g, o = jnp.split(tanh, 4, axis=-1)
    return _half(i), _half(f), g, _half(o)


def _lstm_pull(dstate: State, gates: Array, old: State, new: State, back: Array, precision):
    (dh, dc), (i, f, g, o), shown = dstate, _lstm_gates(gates), jnp.tanh(new[1])
    dc = dc + dh * o * (1 - shown * shown)
    di, df = dc * g * i * (1 - i), dc * old[1] * f * (1 - f)
    dg, do = dc * i * (1 - g * g), dh * shown * o * (1 - o)
    dpre = jnp.concatenate([di, df, dg, do], axis=-1)
    return dpre, (product(dpre, back, precision), dc * f)


_Gates = tuple[Array, Array, Array, Array]


def _gru_step(
    p: Array, state: State, weights: Weights, precision: Precision
) -> tuple[State, _Gates]:
    (h,), q = state, of_state(state[0], weights, precision)
    r, z = _gru_gates(p, q)
    n = jnp.tanh(_third(p) + r * _third(q))
    return ((1 - z) * n + z * h,), (r, z, n, _third(q))


def _gru_gates(p: Array, q: Array) -> tuple[Array, Array]:
    """Gates r and z, of the first two thirds of p and q."""
    wide = p.shape[-1] // 3 * 2
    r, z = jnp.split(_half(jnp.tanh(0.5 * (p[..., :wide] + q[..., :wide]))), 2, axis=-1)
    return r, z


def _third(v: Array) -> Array:
    """The candidate's part of three."""
    return v[..., v.shape[-1] // 3 * 2 :]


def _gru_pull(dstate: State, gates: _Gates, old: State, new: State, back: Array, precision):
    (dh,), (r, z, n, q_n), (h,) = dstate, gates, old
    dn = dh * (1 - z) * (1 - n * n)
    dgates = jnp.concatenate([dn * q_n * r * (1 - r), dh * (h - n) * z * (1 - z)], axis=-1)
    dq = jnp.concatenate([dgates, dn * r], axis=-1)
    return (dgates, dn), (dh * z + product(dq, back, precision),)


def _gru_gradients(dpre: tuple[Array, Array], gates: _Gates, olds: State, w_h: Array, precision):
    (dgates, dn), r = dpre, gates[0]
    dq = jnp.concatenate([dgates, dn * r], axis=-1)
    dp, dw_h = jnp.concatenate([dgates, dn], axis=-1), gradient(olds[0], dq, w_h, precision)
    return dp, dw_h, dq.sum((0, 1))


# Reset before the product: a second one, of r h, follows the first.


def _before_step(p: Array, state: State, weights: Weights, precision: Precision):
    (h,), (w_gates, w_n) = state, _split(weights.w_h)
    r, z = _gru_gates(p, product(h, w_gates, precision))
    bias_n = 0 if weights.bias_h is None else _third(weights.bias_h)
    n = jnp.tanh(_third(p) + product(r * h, w_n, precision) + bias_n)
    return ((1 - z) * n + z * h,), (r, z, n)


def _before_back(w_h: Array) -> tuple[Array, Array]:
    w_gates, w_n = _split(w_h)
    return w_gates.T, w_n.T


def _before_pull(dstate: State, gates, old: State, new: State, back, precision):
    (dh,), (r, z, n), (h,) = dstate, gates, old
    dn = dh * (1 - z) * (1 - n * n)
    dreset = product(dn, back[1], precision)
    dgates = jnp.concatenate([dreset * h * r * (1 - r), dh * (h - n) * z * (1 - z)], axis=-1)
    return (dgates, dn), (dh * z + dreset * r + product(dgates, back[0], precision),)


def _before_gradients(dpre: tuple[Array, Array], gates, olds: State, w_h: Array, precision):
    (dgates, dn), (old,), (w_gates, w_n) = dpre, olds, _split(w_h)
    dw_gates = gradient(old, dgates, w_gates, precision)
    dw_n = gradient(gates[0] * old, dn, w_n, precision)
    dp = jnp.concatenate([dgates, dn], axis=-1)
    return dp, jnp.concatenate([dw_gates, dw_n], axis=1), dp.sum((0, 1))


def _same_on_both_sides(dpre: Array, gates, olds: State, w_h: Array, precision):
    return dpre, gradient(olds[0], dpre, w_h, precision), dpre.sum((0, 1))


def _split(w_h: Array) -> tuple[Array, Array]:
    """Of the gates, and of the candidate."""
    wide = 2 * w_h.shape[0]
    return w_h[:, :wide], w_h[:, wide:]


def _half(tanh: Array) -> Array:
    return 0.5 * tanh + 0.5


RNN = {name: _rnn(name) for name in ACTIVATIONS}
LSTM = Cell(_lstm_step, jnp.transpose, _lstm_pull, _same_on_both_sides)
GRU = Cell(_gru_step, jnp.transpose, _gru_pull, _gru_gradients)
GRU_BEFORE = Cell(_before_step, _before_back, _before_pull, _before_gradients)
