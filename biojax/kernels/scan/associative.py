"""The linear recurrence as a parallel prefix: linear work in a depth of 2 log2(t) steps.

(a1, b1) followed by (a2, b2) is the one step (a1 a2, a2 b1 + b2); this is associative, so any
bracketing will do.
"""

import jax.numpy as jnp
from jax import lax

from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["linear_scan"]


def linear_scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    """Time first: a is (t or 1, ...), b (t, ...). The initial state enters with the first input."""
    wide = accumulator(b.dtype)
    a = jnp.broadcast_to(a, b.shape)
    first, last = (-1, 0) if reverse else (0, -1)
    inputs = b.astype(wide).at[first].add(a[first].astype(wide) * h0.astype(wide))

    def combine(one, two):
        return one[0] * two[0], two[0] * one[1] + two[1]

    _, h = lax.associative_scan(combine, (a.astype(wide), inputs), reverse=reverse)
    h = jnp.asarray(h, b.dtype)
    return h, h[last]
