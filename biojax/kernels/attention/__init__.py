"""Scaled dot-product attention."""

import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.kernels.attention import xla
from biojax.kernels.attention.linear import linear_attention
from biojax.kernels.attention.rotary import rotary, rotary_angles
from biojax.kernels.dispatch import select
from biojax.typing import Array, Precision

__all__ = ["attention", "linear_attention", "rotary", "rotary_angles"]


def attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    precision: Precision = None,
    implementation: str | None = None,
) -> Array:
    """Scaled dot-product attention, exact.

    p[b, n, t, s] = softmax over s of  scale * <query[b, t, n], key[b, s, n]> + bias[b, n, t, s]
    y[b, t, n]    = sum over s of  p[b, n, t, s] * value[b, s, n]

    Args:
      query: (b, t, n, k).
      key: (b, s, m, k), m dividing n: each head of key and value serves n / m heads of query.
      value: (b, s, m, v).
      bias: added to the scaled products, broadcastable to (b, n, t, s).
      mask: boolean, broadcastable to (b, n, t, s); True where a query may look.
      scale: 1 / sqrt(k) if None.
      is_causal: query i sees keys 0 to i only.
      precision: passed to both products, as in `jax.lax`.
      implementation: "xla", or None to choose.

    Returns:
      (b, t, n, v), of query's dtype. A query that may look nowhere gives zeros.

    Raises:
      ShapeError: the arrays do not fit together.

    The softmax is computed in at least float32. Memory is proportional to t * s.
    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.1; grouped
    heads: Ainslie et al., "GQA", EMNLP 2023, section 2.2.

    >>> q = k = jnp.zeros((1, 2, 1, 4))
    >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> attention(q, k, v, is_causal=True)[0, :, 0, 0]
    Array([1., 2.], dtype=float32)
    """
    _check(query, key, value, bias, mask)
    run = select(
        "attention", {"xla": xla.attention}, implementation, lambda: ("xla", "the only one")
    )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return run(query, key, value, bias, mask, scale, is_causal, precision)


def _check(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> None:
    where = "attention"
    ranks = query.ndim == key.ndim == value.ndim == 4
    if not (
        ranks
        and query.shape[0] == key.shape[0] == value.shape[0]
        and query.shape[-1] == key.shape[-1]
        and key.shape[1:3] == value.shape[1:3]
        and min(key.shape[1:]) > 0
        and query.shape[2] % key.shape[2] == 0
    ):
        raise ShapeError(
            where,
            f"query {query.shape}, key {key.shape}, value {value.shape}",
            "query (b, t, n, k), key (b, s, m, k), value (b, s, m, v), n a multiple of m; "
            "s, m and k at least 1",
            "Heads come third: x.reshape(b, t, n, k)",
        )
    if not query.dtype == key.dtype == value.dtype or not jnp.issubdtype(query.dtype, jnp.floating):
        raise ShapeError(
            where,
            f"query of {query.dtype}, key of {key.dtype}, value of {value.dtype}",
            "one floating dtype for all three",
            "Convert them with astype",
        )
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
