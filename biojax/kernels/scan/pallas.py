"""The linear recurrence on TPU: the state stays in vector registers, one tile of it per program.

The state is laid out as tiles of a register. A program runs over all blocks of time for one tile,
the last axis of the grid being run in order, and carries the tile from block to block in scratch
memory. Elsewhere than on TPU the same program is interpreted: right, and slow.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from biojax.errors import UnsupportedError
from biojax.typing import Array

__all__ = ["linear_scan"]

LANES = 128
# Steps of a block: three arrays of 256 tiles of 4 KiB, twice for the copies under way, are 6 MiB.
STEPS = 256
UNROLL = 8


def linear_scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    """Time first: a is (t or 1, ...), b (t, ...). Of float32 or bfloat16."""
    if b.dtype not in (jnp.float32, jnp.bfloat16):
        raise UnsupportedError(
            "linear_scan",
            f"implementation='pallas' for {b.dtype}",
            "float32 or bfloat16",
            "Name another implementation, or None to choose",
        )
    t, *state = b.shape
    sublanes = 8 if b.dtype == jnp.float32 else 16
    steps = min(STEPS, -(-t // UNROLL) * UNROLL)

    def tiles(x: Array, time: int) -> Array:
        """(time, *state) to (time, tiles, sublanes, lanes), with zeros at the end of both."""
        x = x.reshape(x.shape[0], -1)
        fill = -x.shape[1] % (sublanes * LANES)
        x = jnp.pad(x, ((0, time - x.shape[0]), (0, fill)))
        return x.reshape(time, -1, sublanes, LANES)

    whole = -(-t // steps) * steps
    if reverse:
        a, b = jnp.flip(a, 0), jnp.flip(b, 0)
    a = jnp.broadcast_to(a, b.shape)
    arrays = tiles(a, whole), tiles(b, whole), tiles(h0.astype(jnp.float32)[None], 1)
    h = _tiled(*arrays, steps)
    h = h.reshape(whole, -1)[:t, : math.prod(state)].reshape(b.shape)
    h = jnp.flip(h, 0) if reverse else h
    return h, h[0 if reverse else -1]


def _tiled(a: Array, b: Array, h0: Array, steps: int) -> Array:
    t, count, *tile = b.shape
    over_time = pl.BlockSpec((steps, None, *tile), lambda i, j: (j, i, 0, 0))
    first = pl.BlockSpec((None, None, *tile), lambda i, j: (0, i, 0, 0))

    def call(interpret: bool):
        return pl.pallas_call(
            partial(_kernel, steps=steps),
            grid=(count, t // steps),
            in_specs=[over_time, over_time, first],
            out_specs=over_time,
            out_shape=jax.ShapeDtypeStruct(b.shape, b.dtype),
            scratch_shapes=[pltpu.VMEM(tuple(tile), jnp.float32)],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=interpret,
        )

    return lax.platform_dependent(a, b, h0, tpu=call(False), default=call(True))


def _kernel(a_ref, b_ref, h0_ref, h_ref, carry_ref, *, steps: int) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _():
        carry_ref[...] = h0_ref[...]

    def step(i: Array, h: Array) -> Array:
        h = a_ref[i].astype(jnp.float32) * h + b_ref[i].astype(jnp.float32)
        h_ref[i] = h.astype(h_ref.dtype)
        return h

    carry_ref[...] = lax.fori_loop(0, steps, step, carry_ref[...], unroll=UNROLL)
