"""Mamba's selective state space: a linear recurrence whose step size and ports follow the input."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.kernels.dispatch import accumulator, platform, select
from biojax.kernels.meshes import split_as_input, varying
from biojax.kernels.scan import sequential_selective
from biojax.kernels.scan.checks import check_chunk, check_dtypes, initial_state
from biojax.kernels.scan.chunks import by_chunks
from biojax.kernels.scan.linear import linear_scan
from biojax.kernels.scan.sharded import states_between
from biojax.typing import Array

__all__ = ["selective_scan", "selective_step"]


def selective_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    z: Array | None = None,
    *,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    h0: Array | None = None,
    reverse: bool = False,
    chunk: int | None = None,
    axis_name: str | None = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Selective state space, S6.

    s_t = softplus(delta_t + delta_bias)             or delta_t + delta_bias
    h_t = exp(s_t A) * h_{t-1} + (s_t u_t) B_t,      h_{-1} = h0
    y_t = (C_t h_t + D u_t) * silu(z_t)

    Args:
      u: input, (b, t, c).
      delta: step sizes, (b, t, c).
      A: rates, (c, n), negative.
      B: what each state takes in, (b, t, n), or (b, t, g, n) for channels in g groups.
      C: what is read from each state, as B.
      D: what passes by the states, (c,); nothing if None.
      z: gate of the output, (b, t, c); open if None.
      delta_bias: (c,); 0 if None.
      delta_softplus: make step sizes positive.
      h0: state before the first step, (b, c, n); zeros if None.
      reverse: run from the last step to the first.
      chunk: steps whose states are in memory together; the square root of t if None, with which
        the fewest states are kept.
      axis_name: inside of `jax.shard_map`, the axis of the mesh over which time is spread; h0 and
        h_last are the same on all devices, all else with a time is this device's part.
      implementation: of the recurrence in a chunk: "sequential", "associative", or None to choose.

    Returns:
      y: (b, t, c), of u's dtype. h_last: the last state in the order run, (b, c, n), float32 at
      least.

    Raises:
      ShapeError: the arrays do not fit together.

    States are in at least float32, whatever the inputs: in 16 bits they are known to give NaN.
    Time is linear in t. States of (b, c, n) are kept one for each chunk, for the gradient, and all
    of one chunk at a time; never those of all steps. Over an axis of the mesh each device runs its
    part twice, without D and z at first, to learn the state that the part begins with.
    Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", COLM
    2024, section 3.2 and algorithm 2.

    >>> ones = jnp.ones((1, 3, 1))
    >>> y, h_last = selective_scan(ones, ones, -jnp.log(2.0) * jnp.ones((1, 1)), ones, ones)
    >>> y[0, :, 0]
    Array([1.  , 1.5 , 1.75], dtype=float32)
    """
    where = "selective_scan"
    groups = _check(where, 3, u, delta, A, B, C, D, z, delta_bias)
    b = u.shape[0]
    h0 = initial_state(where, "h0", h0, (b, *A.shape), u.dtype)
    chunk = math.isqrt(u.shape[1]) if chunk is None else chunk
    check_chunk(where, chunk)
    B, C = (part.reshape(b, part.shape[1], groups, -1) for part in (B, C))
    chunks = {"sequential": sequential_selective.scan, "associative": _associative}
    implementations = {name: split_as_input(partial(_scan, each)) for name, each in chunks.items()}
    run = select(where, implementations, implementation, _rule)
    rest = delta_softplus, reverse, chunk
    if axis_name is None:
        return run(u, delta, z, B, C, A, D, delta_bias, h0, *rest)
    # What this device's part does to a state: all of it by one decay, and what it adds to zeros.
    size = delta.astype(h0.dtype) + (0 if delta_bias is None else delta_bias)
    size = jax.nn.softplus(size) if delta_softplus else size
    decay = jnp.exp(size.sum(1)[..., None] * A)
    _, added = run(u, delta, None, B, C, A, None, delta_bias, jnp.zeros_like(h0), *rest)
    first, last = states_between(decay, added, h0, axis_name, reverse)
    y, _ = run(u, delta, z, B, C, A, D, delta_bias, first, *rest)
    return y, last


def selective_step(
    h: Array,
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    z: Array | None = None,
    *,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
) -> tuple[Array, Array]:
    """One step of `selective_scan`.

    Args:
      h: state before the step, (b, c, n); zeros to begin with.
      u: (b, c). delta: (b, c). A: (c, n). B, C: (b, n) or (b, g, n). D: (c,). z: (b, c). As
        there, without time.
      delta_bias, delta_softplus: as there.

    Returns:
      y: (b, c), of u's dtype. h: the state after the step, float32 at least.

    Raises:
      ShapeError: the arrays do not fit together.

    >>> one = jnp.ones((1, 1))
    >>> y, h = selective_step(jnp.ones((1, 1, 1)), one, 0 * one, -one, one, one)
    >>> y
    Array([[1.]], dtype=float32)
    """
    where = "selective_step"
    groups = _check(where, 2, u, delta, A, B, C, D, z, delta_bias)
    h = initial_state(where, "h", h, (u.shape[0], *A.shape), u.dtype)
    B, C = (part.reshape(part.shape[0], groups, -1) for part in (B, C))
    u, delta, B, C = (part[:, None] for part in (u, delta, B, C))
    arrays = u, delta, None if z is None else z[:, None], B, C, A, D, delta_bias, h
    scan = split_as_input(partial(_scan, sequential_selective.scan))
    y, h = scan(*arrays, delta_softplus, False, 1)
    return y[:, 0], h


def _rule() -> tuple[str, str]:
    if platform() == "cpu":
        return "sequential", "on CPU one pass over the states of a chunk is the least work"
    return "associative", f"log(chunk) parallel steps on {platform()}"


# Not inlined: then gradients outside of a larger jit would be compiled anew at every call.
@partial(jax.jit, static_argnums=(0, 10, 11, 12))
def _scan(of_chunk, u, delta, z, B, C, A, D, bias, h0, softplus, reverse, chunk):
    """States are (b, n, g, c / g) in here: channels last, by group."""
    given = [v for v in (u, delta, z, B, C, A, D, bias, h0) if v is not None]
    A, h0 = varying(A, *given), varying(h0, *given)
    wide, groups = accumulator(u.dtype), B.shape[2]
    by_group = (*A.shape[1:], groups, -1)
    A = A.astype(wide).T.reshape(by_group)
    D = None if D is None else D.astype(wide)  # here, so that chunks add up its gradient in it

    def run(h, u, delta, B, C, *gate):
        u, delta, B, C, *gate = (
            jnp.moveaxis(v, 1, 0).astype(wide) for v in (u, delta, B, C, *gate)
        )
        delta = jax.nn.softplus(delta) if softplus else delta
        split = (*u.shape[:2], groups, -1)
        ports = (jnp.swapaxes(v, 2, 3) for v in (B, C))
        y, last = of_chunk(delta.reshape(split), (delta * u).reshape(split), A, *ports, h)
        y = y.reshape(u.shape)
        if D is not None:
            y += D * u
        if gate:
            y *= jax.nn.silu(gate[0])
        return jnp.moveaxis(y, 0, 1), last

    # Steps that fill the last chunk leave the state as it is.
    delta = delta if bias is None else delta.astype(wide) + bias.astype(wide)
    arrays, fill = [u, delta, B, C], [0, -jnp.inf if softplus else 0, 0, 0]
    if z is not None:
        arrays, fill = [*arrays, z], [*fill, 0]
    state0 = jnp.swapaxes(h0, 1, 2).reshape(h0.shape[0], *by_group)
    y, last = by_chunks(run, state0, arrays, fill, chunk, reverse)
    last = jnp.swapaxes(last.reshape(h0.shape[0], h0.shape[2], h0.shape[1]), 1, 2)
    return y.astype(u.dtype), last


def _associative(delta, x, A, B, C, h0) -> tuple[Array, Array]:
    """As `sequential_selective.scan`."""
    decay = jnp.exp(delta[:, :, None] * A)
    taken = x[:, :, None] * B[..., None]
    h, last = linear_scan(decay, taken, h0, axis=0, implementation="associative")
    return jnp.einsum("tbngc,tbng->tbgc", h, C, precision="highest"), last


def _check(where, rank, u, delta, A, B, C, D, z, delta_bias) -> int:
    """The number of groups, once the arrays are known to fit."""
    c = u.shape[-1] if u.ndim else 0
    lead, n = u.shape[:-1], A.shape[-1] if A.ndim else 0
    groups = B.shape[-2] if B.ndim == rank + 1 else 1
    fits = (
        u.ndim == rank
        and 0 not in u.shape[1:]
        and delta.shape == u.shape
        and A.shape == (c, n)
        and n > 0
        and B.shape == C.shape
        and B.shape in ((*lead, n), (*lead, groups, n))
        and groups > 0
        and c % groups == 0
        and all(v is None or v.shape == (c,) for v in (D, delta_bias))
        and (z is None or z.shape == u.shape)
    )
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z}
    named = {k: v for k, v in (named | {"delta_bias": delta_bias}).items() if v is not None}
    if not fits:
        t = "t, " if rank == 3 else ""
        raise ShapeError(
            where,
            ", ".join(f"{name} {v.shape}" for name, v in named.items()),
            f"u, delta and z (b, {t}c), A (c, n), B and C (b, {t}n) or (b, {t}g, n) with c in g "
            "groups, D and delta_bias (c,)",
            "Make the shapes agree",
        )
    check_dtypes(where, **named)
    return groups
