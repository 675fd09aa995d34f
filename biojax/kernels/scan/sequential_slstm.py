"""The scalar memory of xLSTM one step after the other and its gradient.

States are kept. On the way back the gates of all steps are one product of these, and the gradient
of the weights is another one; in the loop remains the product that carries the gradient from step
to step.

Jitted by itself, since `lax.scan` compiles every new step function anew, which outside of a larger
`jit` would be every call. Inside of one this changes nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import split_as_input, varying
from biojax.kernels.scan.chunks import LEAST, whole_or_by_chunks
from biojax.kernels.scan.loop import loop
from biojax.kernels.scan.products import before, choose
from biojax.typing import Array, Precision

__all__ = ["slstm", "step"]

State = tuple[Array, Array, Array, Array]


@split_as_input
@partial(jax.jit, static_argnames=["reverse", "chunk", "precision"])
def slstm(
    gates, w_h, h, c, n, m, reverse: bool, chunk: int | None, precision: Precision
) -> tuple[Array, State]:
    """Gates are (b, t, n, 4, k), and the parts of the state (b, n, k)."""

    def run(w_h, state, gates, keep, reverse):
        given = jax.tree.leaves((w_h, state, gates, keep))
        state = tuple(varying(part, *given) for part in state)
        keep = None if keep is None else varying(keep.T[..., None, None], *given)
        w_h, steps = (varying(array, *given) for array in (w_h, jnp.moveaxis(gates, 1, 0)))
        found: tuple[Array, State] = _scan(reverse, precision, steps, keep, w_h, state)
        return jnp.moveaxis(found[0], 0, 1), found[1]

    return whole_or_by_chunks(run, w_h, (h, c, n, m), gates, None, chunk, reverse)


def step(state: State, gates: Array, w_h: Array, precision: Precision) -> State:
    """Gates are (b, n, 4, k)."""
    h, c, n, m = state
    return _elementwise(gates + _product(h, w_h, precision), c, n, m)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(reverse: bool, precision: Precision, gates, keep, w_h: Array, state0: State):
    """Every h (t, b, n, k) and the last state. Gates are (t, b, n, 4, k), keep (t, b, 1, 1)."""

    def body(state, given):
        state = _next(given, state, w_h, precision)
        return state, state[0].astype(gates.dtype)

    last, h = loop(body, state0, (gates, keep), reverse=reverse)
    return h, last


def _next(given, state: State, w_h: Array, precision: Precision) -> State:
    gates, keep = given
    return jax.tree.map(partial(choose, keep), step(state, gates, w_h, precision), state)


def _scan_fwd(reverse, precision, gates, keep, w_h, state0):
    def body(state, given):
        state = _next(given, state, w_h, precision)
        return state, state

    last, states = loop(body, state0, (gates, keep), reverse=reverse)
    return (states[0].astype(gates.dtype), last), (gates, keep, w_h, state0, states)


def _scan_bwd(reverse, precision, saved, cotangents):
    gates, keep, w_h, state0, states = saved
    dh, dlast = cotangents
    olds = tuple(map(partial(before, reverse=reverse), states, state0))
    back = jnp.swapaxes(w_h.reshape(*w_h.shape[:2], -1), 1, 2)

    def body(dstate, given):
        (pre, *old), keep, dh = given
        dstate = (dstate[0] + dh, *dstate[1:])
        _, pull = jax.vjp(_elementwise, pre, *old)
        dpre, *dold = pull(jax.tree.map(partial(choose, keep), dstate, zeros))
        through = _per_head(dpre.reshape(*dpre.shape[:2], -1), back, precision)
        return jax.tree.map(partial(choose, keep), (through, *dold), dstate), dpre

    zeros = jax.tree.map(jnp.zeros_like, dlast)
    given = (gates + _product(olds[0], w_h, precision), *olds[1:]), keep, dh
    dstate0, dpre = loop(body, dlast, given, reverse=not reverse)
    dw_h = jnp.einsum(
        "tbnk,tbngj->nkgj",
        olds[0].astype(w_h.dtype),
        dpre.astype(w_h.dtype),
        precision=precision,
        preferred_element_type=dpre.dtype,
    )
    dkeep = None if keep is None else np.zeros(keep.shape, jax.dtypes.float0)
    return dpre.astype(gates.dtype), dkeep, dw_h.astype(w_h.dtype), dstate0


_scan.defvjp(_scan_fwd, _scan_bwd)


def _product(h: Array, w_h: Array, precision: Precision) -> Array:
    """What the gates see of states, of one step or of all: (..., n, k) to (..., n, 4, k)."""
    k = h.shape[-1]
    return _per_head(h, w_h.reshape(-1, k, 4 * k), precision).reshape(*h.shape[:-1], 4, k)


def _per_head(v: Array, w: Array, precision: Precision) -> Array:
    """(..., n, i) times a matrix for each head, (n, i, j).

    Heads go first: as one einsum over (b, n, i), XLA on CPU (jaxlib 0.10.2) refuses bfloat16.
    """
    v, wide = jnp.moveaxis(v, -2, 0).astype(w.dtype), accumulator(w.dtype)
    y = jnp.einsum("n...i,nij->n...j", v, w, precision=precision, preferred_element_type=wide)
    return jnp.moveaxis(y, 0, -2)


def _elementwise(pre: Array, c: Array, n: Array, m: Array) -> State:
    """The next state from the gates before their functions, (b, n, 4, k)."""
    i, f, z, o = jnp.moveaxis(pre, -2, 0)
    # Before anything was taken in there is nothing to carry, and any m would do but the largest.
    carried = jnp.where(n > 0, jax.nn.log_sigmoid(f) + lax.stop_gradient(m), -jnp.inf)
    # In this order: bounded last, m was computed twice over, and a step took twice as long (CPU).
    m = lax.stop_gradient(jnp.maximum(carried, jnp.maximum(i, LEAST)))
    kept, taken = jnp.exp(carried - m), jnp.exp(i - m)
    c = kept * c + taken * jnp.tanh(z)
    n = kept * n + taken
    return jax.nn.sigmoid(o) * c / jnp.where(n > 0, n, 1.0), c, n, m
