"""Attention whose weights are products of features, linear in the number of tokens."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from biojax.kernels.attention.checks import check_tokens, seen_keys
from biojax.kernels.dispatch import accumulator, select
from biojax.kernels.meshes import split_as_input
from biojax.kernels.scan.checks import check_chunk, of_states
from biojax.kernels.scan.chunks import by_chunks
from biojax.typing import Array, ArrayLike, Precision

__all__ = ["elu_plus_one", "linear_attention"]

FeatureMap = Callable[[Array], Array]


def elu_plus_one(x: Array) -> Array:
    """1 + x above 0 and exp(x) below: positive, as weights have to be.

    >>> jax.grad(elu_plus_one)(0.0)
    Array(1., dtype=float32, weak_type=True)
    """
    return jnp.where(x > 0, 1 + x, jnp.exp(jnp.where(x > 0, 0, x)))


def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    is_causal: bool = False,
    feature_map: FeatureMap = elu_plus_one,
    chunk: int | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> Array:
    """Attention with products of features for weights, in place of exponentials of products.

    w[t, s] = <phi(query[t]), phi(key[s])>
    y[t]    = sum over s of  w[t, s] value[s]  /  sum over s of  w[t, s]
            = phi(query[t]) . (sum over s of  phi(key[s]) value[s]^T)  /  the same with value 1

    for each head: keys and values are summed up first, in a matrix for all queries.

    Args:
      query: (b, t, n, k).
      key: (b, s, m, k), m dividing n: each head of key and value serves n / m heads of query.
      value: (b, s, m, v).
      mask: boolean, broadcastable to (b, 1, 1, s); True for keys that may be seen. It hides keys
        alone, as there are no scores to hide, and so is named, not the fourth.
      key_lengths: how many keys there are, (b,), whole numbers; those after them are not seen.
      is_causal: query i sees keys 0 to i only.
      feature_map: phi, of arrays (..., k) to arrays (..., f) of numbers that are not negative; it
        sees numbers of at least float32. Outside of `jax.jit` pass a function that has a name, as
        each lambda that is written in the call is compiled anew.
      chunk: queries that are computed at once if causal, and of which gradients keep one matrix;
        as many as a feature has numbers, at least 64, if None.
      precision: passed to every product, as in `jax.lax`; "highest" if None, since all of them
        write or read sums, and none has weights.
      implementation: "chunked" or None.

    Returns:
      (b, t, n, v), of query's dtype. A query whose weights are all 0 gives zeros.

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: a chunk without queries, or an unknown implementation.

    Features and sums are held in at least float32. Time is proportional to t + s. Memory beside
    copies of inputs and outputs is that of one matrix (b, m, f, v); if causal that of the weights
    of one chunk too, (b, n, chunk, chunk), and for gradients that of t / chunk matrices.
    Source: Katharopoulos et al., "Transformers are RNNs", ICML 2020, section 3; in chunks: Hua et
    al., "Transformer quality in linear time", ICML 2022, section 3.2.

    >>> one, value = jnp.ones((1, 3, 1, 2)), jnp.arange(3.0).reshape(1, 3, 1, 1)
    >>> linear_attention(one, one, value, is_causal=True).ravel()
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    where = "linear_attention"
    check_tokens(where, query, key, value)
    seen = seen_keys(where, mask, key_lengths, key.shape[:2])
    seen = jnp.ones(key.shape[:2], bool) if seen is None else seen
    chunk = max(64, query.shape[-1]) if chunk is None else chunk
    check_chunk(where, chunk)
    run = select(where, {"chunked": _chunked}, implementation, lambda: ("chunked", "the only one"))
    return run(query, key, value, seen, feature_map, is_causal, chunk, of_states(precision))


def _chunked(query, key, value, seen, feature_map, is_causal, chunk, precision) -> Array:
    attend = partial(
        _attend, feature_map=feature_map, is_causal=is_causal, chunk=chunk, precision=precision
    )
    (y,) = split_as_input(lambda *args: (attend(*args),))(query, key, value, seen)
    return y


@partial(jax.jit, static_argnames=["feature_map", "is_causal", "chunk", "precision"])
def _attend(query, key, value, seen, feature_map, is_causal, chunk, precision) -> Array:
    """Heads come before tokens while it runs, and those that share a key behind one another.

    q (b, m, g * t, f), k (b, m, s, f), v (b, m, s, v); the sums of keys and values (b, m, f, v),
    and of keys (b, m, f, 1).
    """
    n, m, wide = query.shape[2], key.shape[2], accumulator(query.dtype)
    dot = partial(jnp.matmul, precision=precision)

    def of_queries(q: Array) -> Array:
        return _by_head(feature_map(q.astype(wide)), m)

    def of_keys(k: Array, v: Array, seen: Array) -> tuple[Array, Array]:
        k = jnp.where(seen[..., None, None], feature_map(k.astype(wide)), 0)
        return _by_head(k, m), _by_head(v.astype(wide), m)

    def sums(k: Array, v: Array) -> tuple[Array, Array]:
        k = jnp.swapaxes(k, 2, 3)
        return dot(k, v), k.sum(axis=3, keepdims=True)

    def mean(y: Array, total: Array, t: int) -> Array:
        y = (y / jnp.where(total == 0, 1, total)).astype(query.dtype)
        return jnp.moveaxis(y.reshape(y.shape[0], n, t, y.shape[3]), 1, 2)

    def one_chunk(state, q, k, v, seen) -> tuple[Array, tuple[Array, Array]]:
        q, (k, v), t = of_queries(q), of_keys(k, v, seen), q.shape[1]
        until = jnp.tile(jnp.tri(t, dtype=wide), (q.shape[2] // t, 1))
        weights = dot(q, jnp.swapaxes(k, 2, 3)) * until
        y = dot(weights, v) + dot(q, state[0])
        total = weights.sum(axis=3, keepdims=True) + dot(q, state[1])
        return mean(y, total, t), jax.tree.map(jnp.add, state, sums(k, v))

    t = query.shape[1]
    if not is_causal or t == 0:
        q, (before, total) = of_queries(query), sums(*of_keys(key, value, seen))
        return mean(dot(q, before), dot(q, total), t)
    keys = [_to_length(x, t) for x in (key, value, seen)]
    shapes = jax.eval_shape(lambda *keys: sums(*of_keys(*keys)), *keys)
    nothing = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    y, _ = by_chunks(one_chunk, nothing, (query, *keys), (0, 0, 0, False), chunk, False)
    return y


def _by_head(x: Array, m: int) -> Array:
    """(b, t, n, f) to (b, m, g * t, f): the heads that share one of m, behind one another."""
    b, t, n, f = x.shape
    return jnp.moveaxis(x, 2, 1).reshape(b, m, n // m * t, f)


def _to_length(x: Array, t: int) -> Array:
    """The first t keys (b, t, ...), zeros behind them where there are fewer."""
    missing = max(0, t - x.shape[1])
    return jnp.pad(x[:, :t], [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)])
