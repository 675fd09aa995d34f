"""Scaled dot-product attention: every query may look at every key."""

import jax
import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.kernels.attention import blocked, cudnn, pallas, xla
from biojax.kernels.attention.checks import (
    as_array,
    as_lengths,
    check_options,
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
        `jax.shard_map` where there are several; or None to choose one of the first two.

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
    return _attend(
        "attention",
        query,
        key,
        value,
        bias,
        mask,
        query_lengths,
        key_lengths,
        dropout_key,
        scale,
        Options(1.0, is_causal, soft_cap, dropout_rate, precision),
        implementation,
    )[0]


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
    return _attend(
        "attention_and_lse",
        query,
        key,
        value,
        bias,
        mask,
        query_lengths,
        key_lengths,
        dropout_key,
        scale,
        Options(1.0, is_causal, soft_cap, dropout_rate, precision),
        implementation,
    )


def _attend(
    where: str,
    query: Array,
    key: Array,
    value: Array,
    bias: ArrayLike | None,
    mask: ArrayLike | None,
    query_lengths: ArrayLike | None,
    key_lengths: ArrayLike | None,
    dropout_key: Array | None,
    scale: float | Array | None,
    options: Options,
    implementation: str | None,
) -> tuple[Array, Array]:
    check_tokens(where, query, key, value)
    bias, mask = (
        None if given is None else as_array(where, name, given)
        for name, given in (("bias", bias), ("mask", mask))
    )
    _check_scores(where, query, key, bias, mask)
    lengths = (
        None if given is None else as_lengths(where, name, given, query.shape[0])
        for name, given in (("query_lengths", query_lengths), ("key_lengths", key_lengths))
    )
    check_options(where, options)
    query, scale = scaled(where, query, scale)
    options = options._replace(scale=scale)
    if dropout_key is None or options.dropout_rate == 0:
        dropout_key, options = None, options._replace(dropout_rate=0.0)
    else:
        # A key of one kind, whatever the caller's: others draw by the whole block.
        dropout_key = jax.random.bits(dropout_key, (2,), jnp.uint32)
    implementations = {
        "xla": xla.attention,
        "blocked": blocked.attention,
        "cudnn": cudnn.attention,
        "pallas": pallas.attention,
    }
    run = select(where, implementations, implementation, lambda: _rule(query, key))
    args = query, key, value, bias, mask, *lengths, dropout_key, options
    alone, arrays = of_arrays(_of_none if 0 in query.shape else run, args, {})
    return left_to_compiler(alone, *arrays)


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


def _check_scores(
    where: str, query: Array, key: Array, bias: Array | None, mask: Array | None
) -> None:
    scores = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    for name, array in (("bias", bias), ("mask", mask)):
        if array is not None and not _broadcasts(array.shape, scores):
            raise ShapeError(
                where,
                f"{name} of shape {array.shape}",
                f"a shape that broadcasts to (b, n, t, s) = {scores}",
                f"Put axes of length 1 where the {name} does not vary",
            )
    if mask is not None and mask.dtype != jnp.bool_:
        raise ShapeError(
            where,
            f"mask of {mask.dtype}",
            "a boolean mask, True where a query may look",
            "Write mask != 0, or pass numbers to be added as bias",
        )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False)
    )
