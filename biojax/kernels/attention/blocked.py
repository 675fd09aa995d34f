"""Attention in blocks of queries and keys: exact, with memory that is linear in the tokens.

Each block of queries walks over the blocks of keys and keeps, of every row of scores, the largest
m, the sum l of exp(score - m) and the weighted values y; where a later block has a larger score,
what was summed is scaled down (Dao et al., "FlashAttention", NeurIPS 2022, section 3.1; Rabe and
Staats, "Self-attention does not need O(n^2) memory", 2021). The way back computes the scores of a
block again, from the rows' log-sum-exp (Dao et al., appendix B.4).

A block of scores is held with the keys first, (s, t). Maxima and sums over keys are then sums of
rows, which the compiler computes in vectors on a CPU, where along a row it goes number by number.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.attention.block import Block, Inputs, Plan, plan_of
from biojax.kernels.attention.scores import Options
from biojax.kernels.conv.blocks import varying
from biojax.kernels.dispatch import accumulator, platform
from biojax.typing import Array, Dtype

__all__ = ["attention", "backward", "forward"]


def attention(*args) -> tuple[Array, Array]:
    """The arrays of `Inputs`, then `Options`; to y (b, t, n, v) and the log-sum-exp (b, t, n)."""
    return _attention(args[-1], Inputs(*args[:-1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options: Options, inputs: Inputs) -> tuple[Array, Array]:
    return forward(options, inputs)


def _attention_fwd(options: Options, inputs: Inputs) -> tuple[tuple[Array, Array], tuple]:
    y, lse = forward(options, inputs)
    return (y, lse), (inputs, y, lse)


def _attention_bwd(options: Options, saved: tuple, gradients: tuple) -> tuple[Inputs]:
    return (backward(options, *saved, *gradients),)


_attention.defvjp(_attention_fwd, _attention_bwd)


def forward(options: Options, inputs: Inputs) -> tuple[Array, Array]:
    """The result (b, t, n, v) of query's dtype, and the log-sum-exp of the logits (b, t, n)."""
    plan, wide = plan_of(inputs), accumulator(inputs.query.dtype)
    arrays = _in_blocks(inputs, plan)
    across, product = _products(arrays.query.dtype, wide, options)

    def one(_, image: Array, head: Array):
        q = _head(arrays.query, image, head, plan.g, plan.queries)
        k, v = (_head(x, image, head, 1, plan.keys)[0] for x in arrays[1:3])
        v = v.swapaxes(1, 2)

        def queries(at):
            group, i = at // plan.queries[0], at % plan.queries[0]
            block = Block(options, arrays, plan, image, head * plan.g + group, i)

            def step(j, state):
                m, total, y = state
                here = block._replace(j=j)
                x = here.logits(across(k[j], q[group, i]))
                peak = jnp.maximum(m, x.max(axis=0))
                # Where nothing was seen yet, minus infinity less itself is not a number.
                shift = jnp.where(peak == -jnp.inf, 0.0, peak)
                p, before = jnp.exp(x - shift), jnp.exp(m - shift)
                total = total * before + p.sum(axis=0)
                return peak, total, y * before + product(v[j], here.dropped(p))

            size = plan.queries[1]
            start = jnp.full(size, -jnp.inf, wide), jnp.zeros(size, wide)
            start = _varying((*start, jnp.zeros((v.shape[1], size), wide)), inputs)
            m, total, y = lax.fori_loop(0, block.key_blocks(), step, start)
            return (y / jnp.where(total > 0, total, 1.0)).T.astype(q.dtype), m + jnp.log(total)

        return None, lax.map(queries, jnp.arange(plan.g * plan.queries[0]))

    _, (y, lse) = _over_heads(one, None, plan)
    return _tokens(y, plan, plan.t).astype(inputs.query.dtype), _tokens(lse, plan, plan.t)


def backward(
    options: Options, inputs: Inputs, y: Array, lse: Array, dy: Array, dlse: Array
) -> Inputs:
    """The gradients of the inputs, from those of both results."""
    plan, wide = plan_of(inputs), accumulator(inputs.query.dtype)
    arrays = _in_blocks(inputs, plan)
    # The part of a logit's gradient that all of its row have in common.
    common = dlse - (dy.astype(wide) * y.astype(wide)).sum(axis=-1)
    # A row that saw nothing weighs nothing: exp(logit - infinity).
    lse = _whole(jnp.where(lse == -jnp.inf, jnp.inf, lse)[..., None], {1: plan.queries}, jnp.inf)
    rows = jnp.concatenate([lse, _whole(common[..., None], {1: plan.queries})], axis=-1)
    dy = _whole(dy.astype(arrays.query.dtype), {1: plan.queries})
    across, product = _products(arrays.query.dtype, wide, options)

    def one(dbias: Array | None, image: Array, head: Array):
        q, dy_head, row = (
            _head(x, image, head, plan.g, plan.queries) for x in (arrays.query, dy, rows)
        )
        k, v = (_head(x, image, head, 1, plan.keys)[0] for x in arrays[1:3])
        k_t = k.swapaxes(1, 2)

        def queries(sums, at):
            group, i = at // plan.queries[0], at % plan.queries[0]
            block = Block(options, arrays, plan, image, head * plan.g + group, i)
            q_i, dy_i = q[group, i], dy_head[group, i]
            lse_i, common_i = row[group, i, :, 0], row[group, i, :, 1]

            def step(j, state):
                dq, dk, dv, dbias = state
                here = block._replace(j=j)
                products = across(k[j], q_i)
                p = jnp.exp(here.logits(products) - lse_i)
                dx = p * (here.dropped(across(v[j], dy_i)) + common_i)
                ds = dx * here.slope(products)
                dv = dv.at[j].add(product(here.dropped(p), dy_i))
                dk = dk.at[j].add(product(ds, q_i))
                dbias = None if dbias is None else here.add_bias(dbias, dx)
                return dq + product(k_t[j], ds), dk, dv, dbias

            dq = _varying(jnp.zeros((q.shape[-1], plan.queries[1]), wide), inputs)
            dq, *sums = lax.fori_loop(0, block.key_blocks(), step, (dq, *sums))
            return tuple(sums), dq.T.astype(q.dtype)

        sums = _varying((jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)), inputs)
        blocks = jnp.arange(plan.g * plan.queries[0])
        (dk, dv, dbias), dq = lax.scan(queries, (*sums, dbias), blocks)
        return dbias, (dq, dk.astype(k.dtype), dv.astype(v.dtype))

    dbias = arrays.bias
    if dbias is not None:
        dbias = _varying(jnp.zeros(dbias.shape, wide), inputs)
    dbias, (dq, dk, dv) = _over_heads(one, dbias, plan)
    kind, keys = inputs.query.dtype, plan._replace(g=1)
    dq = _tokens(dq, plan, plan.t).astype(kind)
    dk, dv = (_tokens(x, keys, plan.s).astype(kind) for x in (dk, dv))
    if inputs.bias is not None:
        inside = tuple(slice(n) for n in _four(inputs.bias).shape)
        dbias = dbias[inside].reshape(inputs.bias.shape).astype(inputs.bias.dtype)
    return Inputs(dq, dk, dv, dbias)


def _in_blocks(inputs: Inputs, plan: Plan) -> Inputs:
    """The arrays in whole blocks, bias and mask with four axes.

    On a CPU 16 bits are widened: XLA would widen all of them at every step of a loop.
    """
    kind = inputs.query.dtype
    kind = accumulator(kind) if platform() == "cpu" else kind
    query, key, value, bias, mask = inputs[:5]
    cuts = {2: plan.queries, 3: plan.keys}
    return inputs._replace(
        query=_whole(query.astype(kind), {1: plan.queries}),
        key=_whole(key.astype(kind), {1: plan.keys}),
        value=_whole(value.astype(kind), {1: plan.keys}),
        bias=None if bias is None else _whole(_four(bias), cuts),
        mask=None if mask is None else _whole(_four(mask), cuts),
    )


def _four(array: Array) -> Array:
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _whole(array: Array, cuts: Mapping[int, tuple[int, int]], value: float = 0.0) -> Array:
    """Padded behind along these axes to count * size; axes of length 1 stay, to broadcast."""
    widths = [(0, 0)] * array.ndim
    for axis, (count, size) in cuts.items():
        if array.ndim < 4 or array.shape[axis] > 1 or axis == 1:
            widths[axis] = (0, count * size - array.shape[axis])
    return jnp.pad(array, widths, constant_values=value) if any(map(any, widths)) else array


def _head(x: Array, image: Array, head: Array, count: int, cut: tuple[int, int]) -> Array:
    """Heads head * count and following of one image: (b, t, n, c) to (count, blocks, size, c)."""
    sizes = (1, x.shape[1], count, x.shape[3])
    heads = lax.dynamic_slice(x, (image, 0, head * count, 0), sizes)
    return heads[0].swapaxes(0, 1).reshape(count, *cut, x.shape[3])


def _tokens(x: Array, plan: Plan, t: int) -> Array:
    """(b * m, g * blocks, size, ...) to (b, t, m * g, ...)."""
    x = x.reshape(plan.b, plan.m * plan.g, -1, *x.shape[3:])
    return x.swapaxes(1, 2)[:, :t]


def _over_heads(one: Callable, dbias: Array | None, plan: Plan) -> tuple:
    """one(dbias, image, head) for every head of keys, its results stacked.

    One after the other on a CPU, where a block of one head fills the cores, and where all of them
    add to one array.
    """

    def step(dbias, at):
        return one(dbias, at // plan.m, at % plan.m)

    heads = jnp.arange(plan.b * plan.m)
    if platform() == "cpu" or dbias is not None:
        return lax.scan(step, dbias, heads)
    return None, jax.vmap(lambda at: step(None, at)[1])(heads)


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
