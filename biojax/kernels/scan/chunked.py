"""The linear recurrence by chunks: parallel within a chunk, and one chunk after the other.

The parallel prefix over all steps goes through memory 2 log2(t) times and keeps what it halved on
the way: compiled for a TPU v5e, 65,536 steps of 512 states took 320 MiB beyond inputs and outputs,
and by chunks none. Over a chunk that fits in cache it goes through cache, and a state goes from
chunk to chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import varying
from biojax.kernels.scan import associative
from biojax.typing import Array

__all__ = ["linear_scan"]

# Of inputs in a chunk. On two cores with 1 MiB of cache each, of 1/16 to 16 MiB this or a quarter
# of it was the fastest for 2**20 steps of 8 states and for 65,536 steps of 64 and of 512.
CHUNK_BYTES = 2**20


@partial(jax.jit, static_argnames=["reverse", "chunk_bytes"], inline=True)
def linear_scan(
    a: Array, b: Array, h0: Array, reverse: bool, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Array, Array]:
    """Time first: a is (t or 1, ...), b (t, ...)."""
    wide, t = accumulator(b.dtype), b.shape[0]
    steps = min(t, max(1, chunk_bytes // max(1, h0.size * jnp.dtype(wide).itemsize)))
    count = -(-t // steps)

    def split(x: Array, fill: float) -> Array:
        x = jnp.pad(x.reshape(t, -1), ((0, count * steps - t), (0, 0)), constant_values=fill)
        return x.reshape(count, steps, -1)

    def step(h, parts):
        a, b = parts
        h, last = associative.linear_scan(a, b.astype(wide), h, reverse)
        return last, h.astype(parts[1].dtype)

    # Steps that make the last chunk whole keep the state, so a shared decay becomes each step's.
    parts = split(jnp.broadcast_to(a, b.shape).astype(b.dtype), 1), split(b, 0)
    first = varying(h0.astype(wide).reshape(-1), a, b)
    h_last, h = lax.scan(step, first, parts, reverse=reverse)
    h = h.reshape(count * steps, -1)[:t]
    return h.reshape(b.shape), h_last.reshape(h0.shape).astype(b.dtype)
