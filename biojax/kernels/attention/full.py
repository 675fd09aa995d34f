"""Scaled dot-product attention: every query may look at every key."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from biojax.errors import UnsupportedError
from biojax.kernels.attention import blocked, cudnn, pallas, xla
from biojax.kernels.attention.block import Inputs
from biojax.kernels.attention.checks import (
    as_array,
    as_lengths,
    check_options,
    check_scores,
    check_tokens,
    scaled,
)
from biojax.kernels.attention.scores import Options
from biojax.kernels.dispatch import accumulator, of_arrays, platform, select
from biojax.kernels.meshes import left_to_compiler
from biojax.typing import Array, ArrayLike, Precision

__all__ = ["attention", "attention_and_lse"]


def attention(
    query: Array,
    key: Array,
    value: Array,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | Array | None = None,
    is_causal: bool = False,
    query_lengths: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> Array:
    """Scaled dot-product attention, exact.

    x[b, n, t, s] = cap(scale * <query[b, t, n], key[b, s, n]>) + bias[b, n, t, s]
    p[b, n, t, s] = softmax over s of  x[b, n, t, s]
    y[b, t, n]    = sum over s of  p[b, n, t, s] * value[b, s, n]

    Args:
      query: (b, t, n, k).
      key: (b, s, m, k), m dividing n: each head of key and value serves n / m heads of query.
      value: (b, s, m, v).
      bias: added to the scaled products, broadcastable to (b, n, t, s); -inf hides a key.
      mask: boolean, broadcastable to (b, n, t, s); True where a query may look.
      scale: 1 / sqrt(k) if None; an array of no axes, learned perhaps, is multiplied into query.
      is_causal: query i sees keys 0 to i only, counted from the first of both.
      query_lengths: how many of the queries there are, (b,), whole numbers; those after them give
        zeros.
      key_lengths: how many of the keys there are, (b,); those after them are not seen.
      soft_cap: c of cap(x) = c * tanh(x / c), which keeps logits within c; none if None.
      dropout_rate: share of the weights p that are dropped, the others divided by 1 less it.
      dropout_key: random key; None, as in evaluation, drops nothing, whatever dropout_rate is.
        "xla" and "blocked" drop the same weights. Inside of `jax.shard_map` so do all devices: give
        each its own, `jax.random.fold_in(key, jax.lax.axis_index(axis_name))`.
      precision: passed to both products, as in `jax.lax`.
      implementation: "blocked", whose memory is linear in t + s, in reverse mode, and its gradients
        in forward mode, as in `jax.hessian`; "xla", which holds all t * s scores, in every mode;
        "cudnn", for 16 bits on NVIDIA's GPUs; "pallas", JAX's splash kernel on TPU, inside of
        `jax.shard_map` where there are several; or None to choose one of the first two: the others
        have been compiled for such devices, and not been timed on any.

    Returns:
      (b, t, n, v), of query's dtype. A query that may look nowhere gives zeros.

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: dropout_rate is not in [0, 1), soft_cap is not positive, or either is an array.
      UnsupportedError: the named implementation cannot do it here.

    The softmax is computed in at least float32.
    Sources: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.1; grouped
    heads: Ainslie et al., "GQA", EMNLP 2023, section 2.2; in blocks: Dao et al.,
    "FlashAttention", NeurIPS 2022, section 3.1; soft cap: Gemma team, "Gemma 2", 2024, section 2.

    >>> q = k = jnp.zeros((1, 2, 1, 4))
    >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> attention(q, k, v, is_causal=True)[0, :, 0, 0]
    Array([1., 2.], dtype=float32)
    """
    given = query, key, value, bias, mask, query_lengths, key_lengths, dropout_key
    others = is_causal, soft_cap, dropout_rate, precision
    return _attend("attention", given, scale, others, implementation)[0]


def attention_and_lse(
    query: Array,
    key: Array,
    value: Array,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | Array | None = None,
    is_causal: bool = False,
    query_lengths: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """`attention`, and the logarithm of what each query's weights were divided by.

    lse[b, t, n] = log(sum over s of  exp(x[b, n, t, s]))

    With it the results y_1 and y_2 for two sets of keys make the one for both of them,
    (e_1 y_1 + e_2 y_2) / (e_1 + e_2) where e_i = exp(lse_i).

    Args:
      All: as of `attention`.

    Returns:
      y: (b, t, n, v), of query's dtype. lse: (b, t, n), float32 at least; minus infinity for a
      query that may look nowhere.

    Raises:
      ShapeError, ConfigError, UnsupportedError: see `attention`.

    >>> q = k = v = jnp.zeros((1, 3, 1, 4))
    >>> attention_and_lse(q, k, v)[1][0, 0] == jnp.log(3)
    Array([ True], dtype=bool)
    """
    given = query, key, value, bias, mask, query_lengths, key_lengths, dropout_key
    others = is_causal, soft_cap, dropout_rate, precision
    return _attend("attention_and_lse", given, scale, others, implementation)


def _attend(
    where: str, given: tuple, scale: float | Array | None, others: tuple, name: str | None
) -> tuple[Array, Any]:
    """Both results; no log-sum-exp where `attention` asks an implementation that has none."""
    check_tokens(where, *given[:3])
    inputs = _as_arrays(where, Inputs(*given))
    query, scale = scaled(where, inputs.query, scale)
    options = Options(scale, *others)
    check_options(where, options)
    if inputs.dropout_key is None or options.dropout_rate == 0:
        dropout_key, options = None, options._replace(dropout_rate=0.0)
    else:
        # A key of one kind, whatever the caller's: others draw by the whole block.
        dropout_key = jax.random.bits(inputs.dropout_key, (2,), jnp.uint32)
    inputs = inputs._replace(query=query, dropout_key=dropout_key)

    implementations = {
        "xla": xla.attention,
        "blocked": blocked.attention,
        "cudnn": partial(_alone, where, "cudnn", cudnn.attention),
        "pallas": partial(_alone, where, "pallas", pallas.attention),
    }
    run = select(where, implementations, name, lambda: _rule(query, inputs.key))
    run = _of_none if 0 in query.shape else run
    alone, arrays = of_arrays(run, (*inputs, options), {})
    return left_to_compiler(alone, *arrays)


def _alone(where: str, name: str, run: Callable, *args: Any) -> tuple[Array, None]:
    """What an implementation without a log-sum-exp finds."""
    if where == "attention_and_lse":
        raise UnsupportedError(
            where,
            f"implementation={name!r}, which gives no log-sum-exp with a gradient",
            "one that does",
            "Leave it out, or call attention",
            "implementation='blocked'",
        )
    return run(*args), None


def _of_none(query: Array, _, value: Array, *__) -> tuple[Array, Array]:
    """What no queries find, or those of no images."""
    y = jnp.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    return y, jnp.zeros(query.shape[:3], accumulator(query.dtype))


def _rule(query: Array, key: Array) -> tuple[str, str]:
    """Measured on a CPU; elsewhere all scores are held as long as they are few."""
    b, t, n, _ = query.shape
    s = key.shape[1]
    if platform() == "cpu":
        few = t * s <= 256 * 256
        return ("xla" if few else "blocked"), f"{t} x {s} scores of a head, on CPU"
    few = b * n * t * s <= 2**26
    return ("xla" if few else "blocked"), f"{b} x {n} x {t} x {s} scores"


def _as_arrays(where: str, inputs: Inputs) -> Inputs:
    """With all that was given in lists as arrays, and lengths in 32 bits, if everything fits."""
    (b, t, n, _), s = inputs.query.shape, inputs.key.shape[1]
    scores = (b, n, t, s)
    found = {}
    for name in ("bias", "mask"):
        if (given := getattr(inputs, name)) is not None:
            found[name] = as_array(where, name, given)
            check_scores(where, name, found[name], "(b, n, t, s)", scores)
    for name in ("query_lengths", "key_lengths"):
        if (given := getattr(inputs, name)) is not None:
            found[name] = as_lengths(where, name, given, b)
    return inputs._replace(**found)
