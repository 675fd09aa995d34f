"""Attention in blocks of queries and keys: exact, with memory that is linear in the tokens.

Each block of queries walks over the blocks of keys and keeps, of every row of scores, the largest
m, the sum l of exp(score - m) and the weighted values y; where a later block has a larger score,
what was summed is scaled down (Dao et al., "FlashAttention", NeurIPS 2022, section 3.1; Rabe and
Staats, "Self-attention does not need O(n^2) memory", 2021). The way back computes the scores of a
block again, from the rows' log-sum-exp (Dao et al., appendix B.4).

One head after the other is held in blocks on a CPU, all together elsewhere.

A block of scores is held with the keys first, (s, t). Maxima and sums over keys are then sums of
rows, which the compiler computes in vectors on a CPU, where along a row it goes number by number.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.attention.block import Block, Inputs, Plan, plan_of
from biojax.kernels.attention.scores import Options, are_small, exp
from biojax.kernels.dispatch import accumulator, platform
from biojax.kernels.meshes import varying
from biojax.typing import Array, Dtype

__all__ = ["attention", "backward", "forward"]

# Scores of a block: worth a step of a loop, and in cache on a CPU, with what is made of them.
QUERIES = KEYS = 1024


def attention(*args) -> tuple[Array, Array]:
    """The arrays of `Inputs`, then `Options`; to y (b, t, n, v) and the log-sum-exp (b, t, n).

    A bias or mask of all t * s scores is copied where no blocks near their best size divide t and
    s; the gradient of such a bias is as large.
    """
    inputs = Inputs(*args[:-1])
    # Inside of `shard_map` gradients are of the type of what they are gradients of.
    query, key, value, bias = _varying(inputs[:4], inputs)
    inputs = inputs._replace(query=query, key=key, value=value, bias=bias)
    return _attention(args[-1], inputs)


def _rounded(options: Options, inputs: Inputs) -> tuple[Array, Array]:
    y, lse = forward(options, inputs)
    return y.astype(inputs.query.dtype), lse


_attention = jax.custom_vjp(_rounded, nondiff_argnums=(0,))


def _attention_fwd(options: Options, inputs: Inputs) -> tuple[tuple[Array, Array], tuple]:
    y, lse = _rounded(options, inputs)
    return (y, lse), (inputs, y, lse)


def _attention_bwd(options: Options, saved: tuple, gradients: tuple) -> tuple[Inputs]:
    found = backward(options, *saved, *gradients)
    return (jax.tree.map(lambda wide, x: wide.astype(x.dtype), found, _of_floats(saved[0])),)


_attention.defvjp(_attention_fwd, _attention_bwd)


@functools.partial(jax.jit, static_argnums=0)  # outside of jit, too, compiled once
def forward(options: Options, inputs: Inputs) -> tuple[Array, Array]:
    """The result (b, t, n, v) and the log-sum-exp of the logits (b, t, n), float32 at least."""
    plan, wide = plan_of(inputs, QUERIES, KEYS), accumulator(inputs.query.dtype)
    small = are_small(inputs.query, inputs.key, inputs.bias, options.scale)
    arrays, options, scale = _prepared(inputs, plan, options)
    across, product = _products(arrays.query.dtype, wide, options)

    def head(small: bool, _, r: Array, q: Array, k: Array, v: Array):
        q, k = _in_blocks(scale * q, plan.queries), _in_blocks(k, plan.keys)
        v = _in_blocks(v, plan.keys).swapaxes(-2, -1)

        def queries(at: Array) -> tuple[Array, Array]:
            block = Block(options, arrays, plan, r, at)

            def step(j: Array, state: tuple) -> tuple:
                here = block._replace(j=j)
                x = here.logits(across(k[j], q[at]))
                if small:
                    p, total, y = exp(x), *state
                    return total + p.sum(axis=0), y + product(v[j], here.dropped(p))
                total, y, peak = state
                highest = jnp.maximum(peak, x.max(axis=0))
                # Where nothing was seen yet, minus infinity less itself is not a number.
                shift = jnp.where(highest == -jnp.inf, 0.0, highest)
                p, before = exp(x - shift), jnp.exp(peak - shift)
                y = y * before + product(v[j], here.dropped(p))
                return total * before + p.sum(axis=0), y, highest

            size = plan.queries[1]
            state = jnp.zeros(size, wide), jnp.zeros((v.shape[1], size), wide)
            state += () if small else (jnp.full(size, -jnp.inf, wide),)
            state = _varying(state, inputs)
            total, y, *peak = lax.fori_loop(0, block.key_blocks(), step, state)
            return y / jnp.where(total > 0, total, 1.0), sum(peak, jnp.log(total))

        return None, lax.map(queries, jnp.arange(len(q)))

    def walk(small: bool, *arrays: Array) -> tuple[Array, Array]:
        return _over_heads(functools.partial(head, small), plan, None, *arrays)[1]

    ways = functools.partial(walk, True), functools.partial(walk, False)
    y, lse = lax.cond(small, *ways, *arrays[:3])
    n = plan.m * plan.g
    y = _tokens(y.swapaxes(-2, -1), plan, n, plan.t)
    return y, _tokens(lse[..., None], plan, n, plan.t)[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def backward(
    options: Options, inputs: Inputs, y: Array, lse: Array, dy: Array, dlse: Array
) -> Inputs:
    """The gradients of the inputs, in float32 at least, from those of both results."""
    plan, wide = plan_of(inputs, QUERIES // 2, KEYS), accumulator(inputs.query.dtype)
    arrays, options, scale = _prepared(inputs, plan, options)
    across, product = _products(arrays.query.dtype, wide, options)
    # The part of a logit's gradient that all of its row have in common.
    common = dlse - (dy.astype(wide) * y.astype(wide)).sum(axis=-1)
    # A row that saw nothing weighs nothing: exp(logit - infinity).
    lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)

    def head(dbias: Array | None, r: Array, q: Array, k: Array, v: Array, dy, lse, common):
        q, k, v = _in_blocks(scale * q, plan.queries), *(_in_blocks(x, plan.keys) for x in (k, v))
        dy, common = (_in_blocks(x, plan.queries) for x in (dy, common))
        lse, k_t = _in_blocks(lse, plan.queries, jnp.inf), k.swapaxes(-2, -1)

        def queries(sums: tuple, at: Array) -> tuple[tuple, Array]:
            block = Block(options, arrays, plan, r, at)

            def step(j: Array, state: tuple) -> tuple:
                dq, dk, dv, dbias = state
                here = block._replace(j=j)
                products = across(k[j], q[at])
                p = exp(here.logits(products) - lse[at, :, 0])
                dx = p * (here.dropped(across(v[j], dy[at])) + common[at, :, 0])
                ds = dx * here.slope(products)
                dv = dv.at[j].add(product(here.dropped(p), dy[at]))
                dk = dk.at[j].add(product(ds, q[at]))
                dbias = None if dbias is None else here.add_bias(dbias, dx)
                return dq + product(k_t[j], ds), dk, dv, dbias

            dq = _varying(jnp.zeros((q.shape[-1], plan.queries[1]), wide), inputs)
            dq, *rest = lax.fori_loop(0, block.key_blocks(), step, (dq, *sums))
            return tuple(rest), scale * dq

        sums = _varying((jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)), inputs)
        (dk, dv, dbias), dq = lax.scan(queries, (*sums, dbias), jnp.arange(len(q)))
        return dbias, (dq, dk, dv)

    dbias = None if arrays.bias is None else _varying(_no_gradient(arrays.bias, plan), inputs)
    rows = dy.astype(arrays.query.dtype), lse[..., None], common[..., None]
    dbias, (dq, dk, dv) = _over_heads(head, plan, dbias, *arrays[:3], *rows)
    dq = _tokens(dq.swapaxes(-2, -1), plan, plan.m * plan.g, plan.t)
    dk, dv = (_tokens(x, plan, plan.m, plan.s) for x in (dk, dv))
    if inputs.bias is not None:
        inside = tuple(slice(n) for n in _four(inputs.bias).shape)
        dbias = _over_all(dbias, plan, _four(inputs.bias).shape)[inside].reshape(inputs.bias.shape)
    return Inputs(dq, dk, dv, dbias)


def _of_floats(inputs: Inputs) -> Inputs:
    return Inputs(*inputs[:4], None, None, None, None)


def _prepared(inputs: Inputs, plan: Plan, options: Options) -> tuple[Inputs, Options, float]:
    """Arrays for the loops, bias and mask in whole blocks; options; what is to scale the query.

    On a CPU 16 bits are widened: XLA would widen all of them at every step of a loop. Queries of
    32 bits or more are scaled in place of all their scores.
    """
    query, key, value, bias, mask = inputs[:5]
    wide, scale = accumulator(query.dtype), 1.0
    kind = wide if platform() == "cpu" else query.dtype
    if kind == wide:
        scale, options = options.scale, options._replace(scale=1.0)
    query, key, value = (x.astype(kind) for x in (query, key, value))
    bias, mask = (None if x is None else _whole(x, plan) for x in (bias, mask))
    return inputs._replace(query=query, key=key, value=value, bias=bias, mask=mask), options, scale


def _four(array: Array) -> Array:
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _whole(array: Array, plan: Plan) -> Array:
    """A bias or mask with four axes, those of queries and keys in whole blocks, or of length 1."""
    array = _four(array)
    lengths = zip(array.shape[2:], (plan.queries, plan.keys), strict=True)
    widths = [(0, 0 if n == 1 else count * size - n) for n, (count, size) in lengths]
    return jnp.pad(array, [(0, 0), (0, 0), *widths])


def _in_blocks(x: Array, cut: tuple[int, int], value: float = 0.0) -> Array:
    """(t, g, c) of one head of keys to (g * blocks, size, c), `value` where tokens are missing."""
    count, size = cut
    x = jnp.pad(x, [(0, count * size - len(x)), (0, 0), (0, 0)], constant_values=value)
    return x.swapaxes(0, 1).reshape(-1, size, x.shape[-1])


def _no_gradient(bias: Array, plan: Plan) -> Array:
    """Zeros that heads taken one after the other add to, or each of them where all are together."""
    b, n, *sizes = bias.shape
    if platform() != "cpu":
        b, n = 1, min(n, plan.g)
    return jnp.zeros((b, n, *sizes), accumulator(bias.dtype))


def _over_all(dbias: Array, plan: Plan, shape: tuple[int, ...]) -> Array:
    """The gradient of a bias of that shape, out of those of each head of keys."""
    if platform() == "cpu":
        return dbias
    dbias = dbias.reshape(plan.b, -1, *dbias.shape[-2:])
    return dbias.sum(axis=[i for i in (0, 1) if shape[i] == 1], keepdims=True)


def _tokens(x: Array, plan: Plan, n: int, t: int) -> Array:
    """Blocks (..., size, c) of all n heads to (b, t, n, c)."""
    return x.reshape(plan.b, n, -1, x.shape[-1]).swapaxes(1, 2)[:, :t]


def _over_heads(head: Callable, plan: Plan, carry: Array | None, *arrays: Array) -> tuple:
    """What head(carry, r, *arrays of head r) gives for each head of keys, and the last carry.

    Arrays are (b, t, m * g, c), of one head (t, g, c). On a CPU, where a block of one head fills
    the cores, heads are taken one after the other, and only one is held in blocks; elsewhere all
    together, each with a carry of its own.
    """
    b, m = plan.b, plan.m
    if platform() == "cpu":

        def of_one(carry: Array | None, r: Array) -> tuple:
            own = []
            for x in arrays:
                g = x.shape[2] // m
                at = r // m, 0, r % m * g, 0
                own.append(lax.dynamic_slice(x, at, (1, x.shape[1], g, x.shape[3]))[0])
            return head(carry, r, *own)

        return lax.scan(of_one, carry, jnp.arange(b * m))
    # Images and heads stay two axes, either of which may be spread over devices.
    split = (x.reshape(b, x.shape[1], m, -1, x.shape[3]) for x in arrays)
    of_image = jax.vmap(functools.partial(head, carry), in_axes=(0, *(1 for _ in arrays)))
    return jax.vmap(of_image)(jnp.arange(b * m).reshape(b, m), *split)


def _products(kind: Dtype, wide: Dtype, options: Options) -> tuple[Callable, Callable]:
    """Of matrices: a b^T, and a b; of factors of this kind, summed up in the wide one."""

    def across(a: Array, b: Array) -> Array:
        return lax.dot_general(
            a,
            b,
            (((1,), (1,)), ((), ())),
            precision=options.precision,
            preferred_element_type=wide,
        )

    def product(a: Array, b: Array) -> Array:
        a, b = a.astype(kind), b.astype(kind)
        return jnp.matmul(a, b, precision=options.precision, preferred_element_type=wide)

    return across, product


def _varying(arrays, inputs: Inputs):
    return jax.tree.map(lambda array: varying(array, *jax.tree.leaves(inputs[:4])), arrays)
