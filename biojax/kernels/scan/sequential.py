"""The linear recurrence one step after the other with `jax.lax.scan`.

Jitted by itself, since `lax.scan` compiles every new step function anew, which outside of a larger
`jit` would be every call. Inside of one this changes nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.conv.blocks import varying
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["linear_scan"]


@partial(jax.jit, static_argnames=["reverse"], inline=True)
def linear_scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    """Time first: a is (t or 1, ...), b (t, ...)."""
    wide, shape = accumulator(b.dtype), b.shape[1:]

    def flat(a_t: Array) -> Array:
        return jnp.broadcast_to(a_t, shape).reshape(-1)

    def step(h, given):
        a_t, b_t = given
        a_t = flat(a[0]) if a_t is None else a_t if a_t.ndim == 1 else flat(a_t)
        h = a_t.astype(wide) * h + b_t.astype(wide)
        return h, h.astype(b.dtype)

    # With an axis of length 1 among those of the state XLA on CPU took 2.5 times as long.
    decays = None if a.shape[0] == 1 else a.reshape(len(a), -1) if a.shape == b.shape else a
    first = varying(h0.astype(wide).reshape(-1), a, b)
    h_last, h = lax.scan(step, first, (decays, b.reshape(len(b), -1)), reverse=reverse)
    return h.reshape(b.shape), h_last.reshape(shape).astype(b.dtype)
