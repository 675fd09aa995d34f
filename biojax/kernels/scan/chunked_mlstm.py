"""The matrix memory of xLSTM, one chunk of steps after the other.

A chunk is computed by matrix products, or step by step. Letters as in the package.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import split_as_input
from biojax.kernels.scan.chunks import LEAST, by_chunks, segment_sums
from biojax.typing import Array, Precision

__all__ = ["chunked", "parallel", "sequential", "step"]

State = tuple[Array, Array, Array]


@split_as_input
def chunked(*args) -> tuple[Array, ...]:
    """Matrix products within chunks."""
    return _by_chunks(_matrices, *args)


@split_as_input
def sequential(*args) -> tuple[Array, ...]:
    """Step by step."""
    return _by_chunks(_steps, *args)


@split_as_input
def parallel(*args) -> tuple[Array, ...]:
    """The quadratic form: all steps in one chunk."""
    *args, _, reverse, precision = args
    return _by_chunks(_matrices, *args, args[0].shape[1], reverse, precision)


@partial(jax.jit, static_argnames=["of_chunk", "chunk", "reverse", "precision"])
def _by_chunks(of_chunk, query, key, value, i, f, C, n, m, scale, chunk, reverse, precision):
    wide = accumulator(value.dtype)

    def run(state, q, k, v, i, log_f):
        q, k, v = (x.astype(wide) for x in (q, k, v))
        h, state = of_chunk(state, q, scale * k, v, i, log_f, precision)
        return h.astype(value.dtype), state

    arrays = query, key, value, i.astype(wide), jax.nn.log_sigmoid(f.astype(wide))
    # What takes nothing in and forgets nothing fills chunks without a trace.
    fill = 0.0, 0.0, 0.0, -jnp.inf, 0.0
    h, state = by_chunks(run, (C, n, m), arrays, fill, chunk, reverse)
    return h, *state


def _matrices(state: State, q, k, v, i, log_f, precision: Precision) -> tuple[Array, State]:
    """One chunk, [s, r] what step r adds to the output of step s.

    q and k (b, t, n, k), v (b, t, n, v), i and log_f (b, t, n).
    """
    einsum = partial(jnp.einsum, precision=precision)
    C, n, m = state
    i, log_f = (jnp.moveaxis(x, 1, -1) for x in (i, log_f))
    sums = segment_sums(log_f)
    entering = sums + i[..., None, :]
    carried = sums[..., 0] + log_f[..., :1] + lax.stop_gradient(m)[..., None]
    m = _stabiliser(carried, entering.max(axis=-1))
    weights = jnp.exp(entering - m[..., None])
    kept = jnp.exp(carried - m)
    scores = weights * einsum("bsnk,brnk->bnsr", q, k)
    h = einsum("bnsr,brnv->bnsv", scores, v)
    h += kept[..., None] * einsum("bsnk,bnkv->bnsv", q, C)
    norm = scores.sum(axis=-1) + kept * einsum("bsnk,bnk->bns", q, n)
    h /= _divisor(norm, m)[..., None]
    k = jnp.moveaxis(weights[..., -1, :], -1, 1)[..., None] * k
    C = kept[..., -1, None, None] * C + einsum("brnk,brnv->bnkv", k, v)
    n = kept[..., -1, None] * n + k.sum(axis=1)
    return jnp.moveaxis(h, 1, 2), (C, n, m[..., -1])


def _steps(state: State, q, k, v, i, log_f, precision: Precision) -> tuple[Array, State]:
    """One chunk, step by step. Shapes as in `_matrices`."""

    def body(state, parts):
        h, state = step(state, *parts, precision=precision)
        return state, h

    parts = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, i, log_f))
    state, h = lax.scan(body, state, parts)
    return jnp.moveaxis(h, 0, 1), state


def step(state: State, q, k, v, i, log_f, precision: Precision) -> tuple[Array, State]:
    """One step. Shapes as in `_matrices`, without time."""
    C, n, m = state
    carried = log_f + lax.stop_gradient(m)
    m = _stabiliser(carried, i)
    kept, taken = jnp.exp(carried - m)[..., None], jnp.exp(i - m)[..., None]
    k = taken * k
    C = kept[..., None] * C + k[..., None] * v[..., None, :]
    n = kept * n + k
    h = jnp.einsum("bnkv,bnk->bnv", C, q, precision=precision)
    return h / _divisor(jnp.sum(n * q, axis=-1), m)[..., None], (C, n, m)


def _stabiliser(carried: Array, entering: Array) -> Array:
    """The next m, a number also where all is forgotten and nothing taken in."""
    return lax.stop_gradient(jnp.maximum(carried, jnp.maximum(entering, LEAST)))


def _divisor(norm: Array, m: Array) -> Array:
    """max(|norm|, exp(-m)), whose square is not 0 where norm is."""
    return jnp.maximum(jnp.abs(norm), jnp.exp(-jnp.minimum(m, 40.0)))
