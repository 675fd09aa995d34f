"""One step after the other with `jax.lax.scan`.

For the cells, the product with the inputs does not depend on the state, so it is taken out of
the loop as one large matrix product; only the product with the state stays inside.

Each is jitted by itself, since `lax.scan` compiles every new step function anew, which outside of
a larger `jit` would be every call. Inside of one this changes nothing.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.dispatch import accumulator
from biojax.typing import Array, Dtype

__all__ = ["ACTIVATIONS", "gru", "linear_scan", "lstm", "rnn"]

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


@partial(jax.jit, static_argnames=["reverse"], inline=True)
def linear_scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    """Time first: a and b are (t, ...)."""
    wide = accumulator(b.dtype)

    def step(h, ab):
        h = ab[0].astype(wide) * h + ab[1].astype(wide)
        return h, h.astype(b.dtype)

    h_last, h = lax.scan(step, _carry(h0, wide, a, b), (a, b), reverse=reverse)
    return h, h_last.astype(b.dtype)


@partial(jax.jit, static_argnames=["activation", "reverse"], inline=True)
def rnn(x, w_x, w_h, bias, h0, activation: str, reverse: bool) -> tuple[Array, Array]:
    """The state is (b, f)."""

    def step(h, x_t):
        return ACTIVATIONS[activation](x_t + _product(h, w_h))

    return _scan(step, h0, x, (w_x, w_h, bias), reverse)


@partial(jax.jit, static_argnames=["reverse"], inline=True)
def lstm(x, w_x, w_h, bias, h0, c0, reverse: bool) -> tuple[Array, tuple[Array, Array]]:
    """The state is (h, c)."""

    def step(state, x_t):
        h, c = state
        i, f, g, o = jnp.split(x_t + _product(h, w_h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    return _scan(step, (h0, c0), x, (w_x, w_h, bias), reverse)


@partial(jax.jit, static_argnames=["reset", "reverse"], inline=True)
def gru(x, w_x, w_h, bias, bias_n, h0, reset: str, reverse: bool) -> tuple[Array, Array]:
    """The state is (b, f)."""
    features = h0.shape[-1]
    w_gates, w_n = w_h[:, : 2 * features], w_h[:, 2 * features :]

    def after(h, x_t):
        gates, state = jnp.split(_product(h, w_h), [2 * features], axis=-1)
        r, z = jnp.split(jax.nn.sigmoid(x_t[:, : 2 * features] + gates), 2, axis=-1)
        n = jnp.tanh(x_t[:, 2 * features :] + r * (state + bias_n))
        return (1 - z) * n + z * h

    def before(h, x_t):
        gates = jax.nn.sigmoid(x_t[:, : 2 * features] + _product(h, w_gates))
        r, z = jnp.split(gates, 2, axis=-1)
        n = jnp.tanh(x_t[:, 2 * features :] + _product(r * h, w_n) + bias_n)
        return (1 - z) * n + z * h

    step = after if reset == "after" else before
    return _scan(step, h0, x, (w_x, w_h, bias, bias_n), reverse)


def _product(h: Array, w: Array) -> Array:
    """H W in w's dtype, summed in at least float32."""
    return jnp.matmul(h.astype(w.dtype), w, preferred_element_type=accumulator(w.dtype))


def _carry(state0, wide: Dtype, *arrays: Array):
    """The first state in the type of the later ones.

    Inside of `shard_map` the type says over which devices a value varies, and the later states
    vary wherever one of the arrays does: a choice that is never taken says so at no cost.
    """
    for array in (*jax.tree.leaves(state0), *arrays):
        one = lax.stop_gradient(jnp.ravel(array)[:1].sum()).astype(wide)
        state0 = jax.tree.map(lambda h, one=one: jnp.where(True, h.astype(wide), one), state0)
    return state0


def _scan(step: Callable, state0, x: Array, weights: tuple[Array, ...], reverse: bool):
    """Run `step(state, x_t W_x + bias)` over time; the first part of the state is the output."""
    wide = accumulator(x.dtype)
    w_x, _, bias = weights[:3]
    inputs = jnp.moveaxis(_product(x, w_x) + bias, 1, 0)

    def body(state, x_t):
        state = step(state, x_t)
        return state, jax.tree.leaves(state)[0].astype(x.dtype)

    state0 = _carry(state0, wide, x, *weights)
    last, h = lax.scan(body, state0, inputs, reverse=reverse)
    return jnp.moveaxis(h, 0, 1), jax.tree.map(lambda leaf: leaf.astype(x.dtype), last)
