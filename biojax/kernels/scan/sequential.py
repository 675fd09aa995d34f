"""The linear recurrence one step after the other with `jax.lax.scan`.

Jitted by itself, since `lax.scan` compiles every new step function anew, which outside of a larger
`jit` would be every call. Inside of one this changes nothing.
"""

from functools import partial

import jax
from jax import lax

from biojax.kernels.conv.blocks import varying
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["linear_scan"]


@partial(jax.jit, static_argnames=["reverse"], inline=True)
def linear_scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    """Time first: a is (t or 1, ...), b (t, ...)."""
    wide = accumulator(b.dtype)

    def step(h, given):
        a_t, b_t = given
        h = (a[0] if a_t is None else a_t).astype(wide) * h + b_t.astype(wide)
        return h, h.astype(b.dtype)

    given = (None if a.shape[0] == 1 else a), b
    h_last, h = lax.scan(step, varying(h0.astype(wide), a, b), given, reverse=reverse)
    return h, h_last.astype(b.dtype)
