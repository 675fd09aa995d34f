"""Cells one step after the other with `lax.scan`, and their gradients.

What does not depend on the state is taken out of the loop: forward the product with the inputs,
backward all products but the one that carries the gradient from step to step; those of the weights
are one product of all steps together. States and gates are kept for that, as cuDNN does, since to
compute them anew took a third of the gradient's time; with `chunk`, of one chunk at a time.

Each is jitted by itself, since `lax.scan` compiles every new step function anew, which outside of
a larger `jit` would be every call. Inside of one this changes nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import split_as_input, varying
from biojax.kernels.scan.cell_steps import GRU, GRU_BEFORE, LSTM, RNN, Cell
from biojax.kernels.scan.chunks import whole_or_by_chunks
from biojax.kernels.scan.products import State, Weights, before, choose, gradient, product
from biojax.typing import Array, Precision

__all__ = ["gru", "lstm", "rnn"]


@split_as_input
@partial(jax.jit, static_argnums=(6, 7, 8, 9))
def rnn(
    x, w_x, w_h, bias, h0, lengths, activation: str, reverse: bool, chunk: int | None, precision
):
    """The state is h (b, f)."""
    cell, weights = RNN[activation], Weights(w_x, bias, w_h)
    h, (last,) = _run(cell, x, weights, (h0,), lengths, reverse, chunk, precision)
    return h, last


@split_as_input
@partial(jax.jit, static_argnums=(7, 8, 9))
def lstm(x, w_x, w_h, bias, h0, c0, lengths, reverse: bool, chunk: int | None, precision):
    """The state is (h, c), of (b, f) each."""
    weights = Weights(w_x, bias, w_h)
    return _run(LSTM, x, weights, (h0, c0), lengths, reverse, chunk, precision)


@split_as_input
@partial(jax.jit, static_argnums=(7, 8, 9, 10))
def gru(
    x, w_x, w_h, bias, bias_n, h0, lengths, reset: str, reverse: bool, chunk: int | None, precision
):
    """The state is h (b, f)."""
    bias_h = jnp.concatenate([jnp.zeros(2 * h0.shape[-1], bias_n.dtype), bias_n])
    cell, weights = GRU if reset == "after" else GRU_BEFORE, Weights(w_x, bias, w_h, bias_h)
    h, (last,) = _run(cell, x, weights, (h0,), lengths, reverse, chunk, precision)
    return h, last


def _run(
    cell: Cell, x, weights: Weights, state0: State, lengths, reverse, chunk, precision
) -> tuple[Array, State]:
    """Every output (b, t, f), zero beyond `lengths`, and the last state, all of x's dtype."""
    keep = None if lengths is None else jnp.arange(x.shape[1]) < lengths[:, None]

    def run(weights, state, x, keep, reverse):
        given = jax.tree.leaves((weights, state, x, keep))
        w, state = jax.tree.map(lambda each: varying(each, *given), (weights, state))
        x = varying(x, *given).swapaxes(0, 1)
        keep = None if keep is None else varying(keep.T[..., None], *given)
        outputs: tuple[Array, State] = _scan(cell, reverse, precision, x, keep, w, state)
        return outputs[0].swapaxes(0, 1).astype(x.dtype), outputs[1]

    state0 = tuple(each.astype(accumulator(x.dtype)) for each in state0)
    h, last = whole_or_by_chunks(run, weights, state0, x, keep, chunk, reverse)
    h = h if keep is None else jnp.where(keep[..., None], h, 0)
    return h, jax.tree.map(lambda each: each.astype(x.dtype), last)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(
    cell: Cell, reverse: bool, precision: Precision, x, keep, weights: Weights, state0: State
):
    """Every output (t, b, f) and the last state. x is (t, b, c), keep (t, b, 1) or None."""

    def body(state, given):
        new, _ = _step(cell, given, state, weights, precision)
        return new, new[0]

    given = _of_inputs(x, weights, precision), keep
    last, h = lax.scan(body, state0, given, reverse=reverse)
    return h, last


def _step(cell: Cell, given, state: State, weights: Weights, precision: Precision):
    p, keep = given
    new, gates = cell.step(p, state, weights, precision)
    return jax.tree.map(partial(choose, keep), new, state), gates


def _scan_fwd(cell, reverse, precision, x, keep, weights, state0):
    def body(state, given):
        new, gates = _step(cell, given, state, weights, precision)
        return new, (new, gates)

    given = _of_inputs(x, weights, precision), keep
    last, (states, gates) = lax.scan(body, state0, given, reverse=reverse)
    return (states[0], last), (x, keep, weights, state0, states, gates)


def _scan_bwd(cell, reverse, precision, saved, cotangents):
    x, keep, weights, state0, states, gates = saved
    dh, dlast = cotangents
    olds = tuple(map(partial(before, reverse=reverse), states, state0))
    back = cell.back(weights.w_h)

    def body(dstate, given):
        gates, old, new, keep, dh = given
        dstate = (dstate[0] + dh, *dstate[1:])
        zeros = jax.tree.map(jnp.zeros_like, dstate)
        dnew = jax.tree.map(partial(choose, keep), dstate, zeros)
        dpre, dold = cell.pull(dnew, gates, old, new, back, precision)
        return jax.tree.map(partial(choose, keep), dold, dstate), dpre

    given = gates, olds, states, keep, dh
    dstate0, dpre = lax.scan(body, dlast, given, reverse=not reverse)
    dp, dw_h, dbias_h = cell.gradients(dpre, gates, olds, weights.w_h, precision)
    dweights = Weights(
        gradient(x, dp, weights.w_x, precision),
        dp.sum((0, 1)).astype(weights.bias.dtype),
        dw_h,
        None if weights.bias_h is None else dbias_h.astype(weights.bias_h.dtype),
    )
    dkeep = None if keep is None else np.zeros(keep.shape, jax.dtypes.float0)
    dx = product(dp, weights.w_x.T, precision).astype(x.dtype)
    return dx, dkeep, dweights, dstate0


_scan.defvjp(_scan_fwd, _scan_bwd)


def _of_inputs(x: Array, weights: Weights, precision: Precision) -> list[Array]:
    """X W_x + bias of all steps, an array for each gate."""
    p = product(x, weights.w_x, precision) + weights.bias
    f, wide = weights.w_h.shape
    return jnp.split(p, wide // f, axis=-1)
