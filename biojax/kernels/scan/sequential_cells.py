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

from biojax.kernels.conv.blocks import varying
from biojax.kernels.dispatch import accumulator
from biojax.kernels.scan.cell_steps import GRU, GRU_BEFORE, LSTM, RNN, Cell
from biojax.kernels.scan.chunks import by_chunks
from biojax.kernels.scan.meshes import split_as_input
from biojax.kernels.scan.products import State, Weights, before, choose, gradient, product
from biojax.typing import Array

__all__ = ["gru", "lstm", "rnn"]


@split_as_input
@partial(jax.jit, static_argnums=(6, 7, 8), inline=True)
def rnn(x, w_x, w_h, bias, h0, lengths, activation: str, reverse: bool, chunk: int | None):
    """The state is h (b, f)."""
    h, (last,) = _run(RNN[activation], x, Weights(w_x, bias, w_h), (h0,), lengths, reverse, chunk)
    return h, last


@split_as_input
@partial(jax.jit, static_argnums=(7, 8), inline=True)
def lstm(x, w_x, w_h, bias, h0, c0, lengths, reverse: bool, chunk: int | None):
    """The state is (h, c), of (b, f) each."""
    return _run(LSTM, x, Weights(w_x, bias, w_h), (h0, c0), lengths, reverse, chunk)


@split_as_input
@partial(jax.jit, static_argnums=(7, 8, 9), inline=True)
def gru(x, w_x, w_h, bias, bias_n, h0, lengths, reset: str, reverse: bool, chunk: int | None):
    """The state is h (b, f)."""
    bias_h = jnp.concatenate([jnp.zeros(2 * h0.shape[-1], bias_n.dtype), bias_n])
    weights = Weights(w_x, bias, w_h, bias_h)
    cell = GRU if reset == "after" else GRU_BEFORE
    h, (last,) = _run(cell, x, weights, (h0,), lengths, reverse, chunk)
    return h, last


def _run(
    cell: Cell, x, weights: Weights, state0: State, lengths, reverse, chunk
) -> tuple[Array, State]:
    """Every output (b, t, f), zero beyond `lengths`, and the last state, all of x's dtype."""
    b, t, _ = x.shape
    chunk = None if chunk is None or chunk >= t else chunk
    keep = None
    if lengths is not None or chunk is not None:  # the last chunk is filled with steps to leave out
        keep = jnp.arange(t) < (jnp.full(b, t) if lengths is None else lengths)[:, None]

    def part(state, x, keep=None, reverse=False):
        given = jax.tree.leaves((state, x, keep, weights))
        state = tuple(varying(each, *given) for each in state)
        w: Weights = jax.tree.map(lambda each: varying(each, *given), weights)
        x = varying(x, *given)
        keep = None if keep is None else varying(keep.T[..., None], *given)
        outputs: tuple[Array, State] = _scan(cell, reverse, x.swapaxes(0, 1), keep, w, state)
        return outputs[0].swapaxes(0, 1).astype(x.dtype), outputs[1]

    state0 = tuple(each.astype(accumulator(x.dtype)) for each in state0)
    if chunk is None or keep is None:
        h, last = part(state0, x, keep, reverse)
    else:
        h, last = by_chunks(part, state0, (x, keep), (0, False), chunk, reverse)
    h = h if keep is None else jnp.where(keep[..., None], h, 0)
    return h, jax.tree.map(lambda each: each.astype(x.dtype), last)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(cell: Cell, reverse: bool, x, keep, weights: Weights, state0: State):
    """Every output (t, b, f) and the last state. x is (t, b, c), keep (t, b, 1) or None."""

    def body(state, given):
        new, _ = _step(cell, given, state, weights)
        return new, new[0]

    last, h = lax.scan(body, state0, (_of_inputs(x, weights), keep), reverse=reverse)
    return h, last


def _step(cell: Cell, given: tuple[Array, Array | None], state: State, weights: Weights):
    p, keep = given
    new, gates = cell.step(p, state, weights)
    return jax.tree.map(partial(choose, keep), new, state), gates


def _scan_fwd(cell, reverse, x, keep, weights, state0):
    def body(state, given):
        new, gates = _step(cell, given, state, weights)
        return new, (new, gates)

    given = _of_inputs(x, weights), keep
    last, (states, gates) = lax.scan(body, state0, given, reverse=reverse)
    return (states[0], last), (x, keep, weights, state0, states, gates)


def _scan_bwd(cell, reverse, saved, cotangents):
    x, keep, weights, state0, states, gates = saved
    dh, dlast = cotangents
    olds = tuple(map(partial(before, reverse=reverse), states, state0))
    back = cell.back(weights.w_h)

    def body(dstate, given):
        gates, old, new, keep, dh = given
        dstate = (dstate[0] + dh, *dstate[1:])
        zeros = jax.tree.map(jnp.zeros_like, dstate)
        dnew = jax.tree.map(partial(choose, keep), dstate, zeros)
        dpre, dold = cell.pull(dnew, gates, old, new, back)
        return jax.tree.map(partial(choose, keep), dold, dstate), dpre

    given = gates, olds, states, keep, dh
    dstate0, dpre = lax.scan(body, dlast, given, reverse=not reverse)
    dp, dw_h, dbias_h = cell.gradients(dpre, gates, olds, weights.w_h)
    dweights = Weights(
        gradient(x, dp, weights.w_x),
        dp.sum((0, 1)).astype(weights.bias.dtype),
        dw_h,
        None if weights.bias_h is None else dbias_h.astype(weights.bias_h.dtype),
    )
    dkeep = None if keep is None else np.zeros(keep.shape, jax.dtypes.float0)
    return product(dp, weights.w_x.T).astype(x.dtype), dkeep, dweights, dstate0


_scan.defvjp(_scan_fwd, _scan_bwd)


def _of_inputs(x: Array, weights: Weights) -> Array:
    return product(x, weights.w_x) + weights.bias
