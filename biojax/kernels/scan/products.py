"""What the loops of the cells are made of: weights, products, choices, the states before."""

from typing import NamedTuple

import jax.numpy as jnp

from biojax.kernels.dispatch import accumulator
from biojax.typing import Array, Precision

__all__ = ["State", "Weights", "before", "choose", "gradient", "of_state", "product"]

State = tuple[Array, ...]


class Weights(NamedTuple):
    """The arrays that are the same at every step; bias_h may be None."""

    w_x: Array
    bias: Array
    w_h: Array
    bias_h: Array | None = None


def of_state(h: Array, weights: Weights, precision: Precision) -> Array:
    """Q = h W_h + bias_h, of one step or of all."""
    q = product(h, weights.w_h, precision)
    return q if weights.bias_h is None else q + weights.bias_h


def product(v: Array, w: Array, precision: Precision) -> Array:
    """V W in w's dtype, summed in at least float32."""
    v, wide = v.astype(w.dtype), accumulator(w.dtype)
    return jnp.matmul(v, w, precision=precision, preferred_element_type=wide)


def gradient(v: Array, dy: Array, w: Array, precision: Precision) -> Array:
    """Of w in V W, over all steps at once: v is (t, b, c), dy (t, b, f)."""

    def rows(x: Array) -> Array:
        # One axis to sum over: XLA on CPU took 7 ms for 2,048 rows of 256 and 1,024, and 11 ms for
        # 256 times 8 of them. The batch is its slower part, so that parts of it on devices stay.
        return x.astype(w.dtype).swapaxes(0, 1).reshape(-1, x.shape[-1])

    wide = accumulator(w.dtype)
    dw = jnp.matmul(rows(v).T, rows(dy), precision=precision, preferred_element_type=wide)
    return dw.astype(w.dtype)


def choose(keep: Array | None, new: Array, old: Array) -> Array:
    """The new state where a step counts; everywhere if keep is None."""
    return new if keep is None else jnp.where(keep, new, old)


def before(states: Array, state0: Array, reverse: bool) -> Array:
    """The state that each step starts from."""
    ordered = (states[1:], state0[None]) if reverse else (state0[None], states[:-1])
    return jnp.concatenate(ordered)
