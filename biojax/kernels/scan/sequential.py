"""The linear recurrence one step after the other, and back.

Jitted by itself, since `lax.scan` compiles every new step function anew, which outside of a larger
`jit` would be every call. Inside of one this changes nothing.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import varying
from biojax.kernels.scan.loop import loop
from biojax.typing import Array

__all__ = ["back", "linear_scan"]


@partial(jax.jit, static_argnames=["reverse"], inline=True)
def linear_scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    """Time first: a is (t or 1, ...), b (t, ...)."""

    def step(h, a_t, b_t):
        h = a_t * h + b_t
        return h, h

    return _run(step, a, b, h0, reverse)


@partial(jax.jit, static_argnames=["reverse"], inline=True)
def back(a: Array, dh: Array, dlast: Array, reverse: bool) -> tuple[Array, Array]:
    """The gradients of b and h0: g_{t-1} = a_t (dh_t + g_t), from g = dlast after the last step.

    With what leaves a step as the state, decays and gradients are read as they are, where the
    recurrence of db itself would want the decays shifted by one step: a copy of them.
    """

    def step(g, a_t, dh_t):
        db = dh_t + g
        return a_t * db, db

    return _run(step, a, dh, dlast, not reverse)


def _run(step: Callable, a: Array, x: Array, first: Array, reverse: bool) -> tuple[Array, Array]:
    wide, shape = accumulator(x.dtype), x.shape[1:]
    # With an axis of length 1 among those of the state XLA on CPU took 2.5 times as long.
    lean = tuple(n for n in shape if n != 1) or (1,)
    whole = a.shape == x.shape

    def decay(a_t: Array | None) -> Array:
        if whole and a_t is not None:
            return a_t
        return jnp.broadcast_to(a[0] if a_t is None else a_t, shape).reshape(lean)

    def body(state, given):
        a_t, x_t = given
        state, y = step(state, decay(a_t).astype(wide), x_t.astype(wide))
        return state, y.astype(x.dtype)

    decays = a.reshape(len(a), *lean) if whole else None if a.shape[0] == 1 else a
    first = varying(first.astype(wide).reshape(lean), a, x)
    last, y = loop(body, first, (decays, x.reshape(len(x), *lean)), reverse=reverse)
    return y.reshape(x.shape), last.reshape(shape).astype(x.dtype)
