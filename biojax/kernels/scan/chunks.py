"""Recurrences chunk by chunk, of which only the states between the chunks outlive their chunk."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.dispatch import accumulator, platform
from biojax.kernels.meshes import varying
from biojax.typing import Array

__all__ = ["LEAST", "by_chunks", "segment_sums", "whole_or_by_chunks"]

# A logarithm whose exponential is 0, and that can be subtracted from itself and multiplied by 0.
LEAST = -1e30


def by_chunks(
    run: Callable[..., tuple[Array, Any]],
    state0: Any,
    arrays: Sequence[Array],
    fill: Sequence[float],
    chunk: int,
    reverse: bool,
) -> tuple[Array, Any]:
    """Apply y, state = run(state, *parts) to one chunk of steps after the other.

    For gradients the chunks are computed anew, last one first, each from the state before it. So
    these states are all that is kept.

    Args:
      run: a recurrence over few steps, from the first to the last.
      state0: before the first chunk, of the dtype that `run` returns.
      arrays: the inputs, (b, t, ...) each.
      fill: for each of them the value of the steps that make the last chunk whole. Such a step
        must leave the state as it is.
      chunk: how many steps `run` takes.
      reverse: run from the last step to the first.

    Returns:
      y: of all steps, (b, t, ...). The last state in the order run.
    """
    t = arrays[0].shape[1]
    chunk = min(chunk, t)
    count = -(-t // chunk)

    def split(x: Array, value: float) -> Array:
        widths = [(0, 0), (0, count * chunk - t), *[(0, 0)] * (x.ndim - 2)]
        x = jnp.pad(x, widths, constant_values=value)
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    def in_order(x: Array) -> Array:
        return jnp.flip(x, 1) if reverse else x

    def widened(x: Array) -> Array:
        # What is bfloat16 before a loop, XLA on CPU widens whole at every step of it.
        halves = platform() == "cpu" and x.dtype == jnp.bfloat16
        return x.astype(jnp.float32) if halves else x

    dtype: Any = None

    @partial(jax.checkpoint, prevent_cse=False)
    def body(state, parts):
        nonlocal dtype
        parts = (part.astype(x.dtype) for part, x in zip(parts, arrays, strict=True))
        y, state = run(state, *map(in_order, parts))
        dtype = y.dtype
        return state, widened(in_order(y))

    parts = tuple(map(widened, map(split, arrays, fill)))
    state0 = jax.tree.map(lambda part: varying(part, *arrays, *jax.tree.leaves(state0)), state0)
    state, y = lax.scan(body, state0, parts, reverse=reverse)
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], count * chunk, *y.shape[3:])[:, :t].astype(dtype), state


def whole_or_by_chunks(
    run: Callable[..., tuple[Array, Any]],
    weights: Any,
    state0: Any,
    x: Array,
    keep: Array | None,
    chunk: int | None,
    reverse: bool,
) -> tuple[Array, Any]:
    """Apply y, state = run(weights, state, x, keep, reverse), by chunks unless chunk is None.

    Args:
      run: a recurrence that leaves the state as it is at steps where keep is False.
      weights: the arrays that are the same at every step. Their gradients are added up over the
        chunks in at least float32: a sum in 16 bits stalls.
      state0: before the first step, of the dtype that `run` returns.
      x: the input, (b, t, ...).
      keep: which steps count, (b, t); all if None.
      chunk: how many steps' worth `run` is to keep for gradients; all if None.
      reverse: run from the last step to the first.
    """
    t = x.shape[1]
    if chunk is None or chunk >= t:
        return run(weights, state0, x, keep, reverse)
    wide = jax.tree.map(lambda w: w.astype(accumulator(w.dtype)), weights)

    def part(state, x, keep=None):
        narrow = jax.tree.map(lambda w, given: w.astype(given.dtype), wide, weights)
        return run(narrow, state, x, keep, False)

    if keep is None and t % chunk:  # the last chunk is filled with steps to leave out
        keep = jnp.ones(x.shape[:2], bool)
    if keep is None:
        return by_chunks(part, state0, [x], [0], chunk, reverse)
    return by_chunks(part, state0, [x, keep], [0, False], chunk, reverse)


def segment_sums(x: Array) -> Array:
    """The sum of x over the steps after j up to i, for every i >= j; minus infinity for others.

    (..., t) to (..., t, t), [i, j]. A difference of two cumulative sums would be less work, but
    loses the small steps that follow a very negative one, which may be minus infinity. Work is
    t^2, and t^3 in one product where that is faster.
    """
    t, x = x.shape[-1], jnp.maximum(x, LEAST)
    until = jnp.tri(t, dtype=x.dtype)
    after = jnp.tri(t, k=-1, dtype=x.dtype)
    terms = x[..., None] * after
    if t <= 128:
        sums = jnp.einsum("il,...lj->...ij", until, terms, precision="highest")
    else:
        sums = jnp.cumsum(terms, axis=-2)
    return jnp.where((until > 0) & (sums > LEAST / 2), sums, -jnp.inf)
