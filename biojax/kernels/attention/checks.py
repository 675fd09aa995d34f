"""What every kind of attention asks of its arguments."""

import math
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.attention.scores import Options
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array, ArrayLike

__all__ = [
    "as_array",
    "as_lengths",
    "check_arrays",
    "check_dtypes",
    "check_images",
    "check_kind",
    "check_options",
    "check_scores",
    "check_tokens",
    "for_each_axis",
    "scaled",
    "seeing_queries",
    "seen_keys",
]


def check_arrays(where: str, **given: Any) -> None:
    """Refuse lists and numbers, so called by the caller: they have no dtype to compute in."""
    for name, each in given.items():
        if not _is_array(each):
            raise ShapeError(
                where,
                f"{name} of {type(each).__name__}",
                "an array",
                "Make it one, of the dtype to compute in: jnp.asarray",
            )


def check_tokens(where: str, query: Array, key: Array, value: Array) -> None:
    """Refuse what is not query (b, t, n, k), key (b, s, m, k), value (b, s, m, v) of one dtype."""
    check_arrays(where, query=query, key=key, value=value)
    if not (
        query.ndim == key.ndim == value.ndim == 4
        and query.shape[0] == key.shape[0] == value.shape[0]
        and query.shape[-1] == key.shape[-1]
        and key.shape[1:3] == value.shape[1:3]
        and min(*key.shape[1:], *value.shape[1:], query.shape[2]) > 0
        and query.shape[2] % key.shape[2] == 0
    ):
        raise ShapeError(
            where,
            f"query {query.shape}, key {key.shape}, value {value.shape}",
            "query (b, t, n, k), key (b, s, m, k), value (b, s, m, v), n a multiple of m; "
            "s, n, m, k and v at least 1",
            "Heads come third: x.reshape(b, t, n, k)",
        )
    check_dtypes(where, query, key, value)


def check_images(where: str, query: Array, key: Array, value: Array) -> None:
    """Refuse what is not query and key (b, *spatial, n, k), value (b, *spatial, n, v)."""
    check_arrays(where, query=query, key=key, value=value)
    if not (
        1 <= query.ndim - 3 <= 3
        and query.shape == key.shape
        and query.shape[:-1] == value.shape[:-1]
        and min(*query.shape, *value.shape) > 0
    ):
        raise ShapeError(
            where,
            f"query {query.shape}, key {key.shape}, value {value.shape}",
            "query and key (b, *spatial, n, k), value (b, *spatial, n, v), with one to three "
            "spatial axes, none of them empty",
            "Heads come before their channels: x.reshape(b, *spatial, n, k)",
        )
    check_dtypes(where, query, key, value)


def check_dtypes(where: str, query: Array, key: Array, value: Array) -> None:
    """Refuse three dtypes that are not one and floating."""
    if not query.dtype == key.dtype == value.dtype or not jnp.issubdtype(query.dtype, jnp.floating):
        raise ShapeError(
            where,
            f"query of {query.dtype}, key of {key.dtype}, value of {value.dtype}",
            "one floating dtype for all three",
            "Convert them with astype",
        )


def check_scores(where: str, name: str, array: Array, axes: str, shape: tuple[int, ...]) -> None:
    """Refuse a bias or a mask that does not broadcast to scores, (b, n, t, s) or others.

    Args:
      where: the function that asks.
      name: "bias" or "mask".
      array: the one so called.
      axes: of the scores, as the caller's documentation names them.
      shape: of the scores.
    """
    if not _broadcasts(array.shape, shape):
        raise ShapeError(
            where,
            f"{name} of shape {array.shape}",
            f"a shape that broadcasts to {axes} = {shape}",
            f"Put axes of length 1 where the {name} does not vary",
        )
    check_kind(where, name, array)


def check_kind(where: str, name: str, array: Array) -> None:
    """Refuse a mask that is not boolean, and a bias that is not of floating numbers."""
    if name == "mask" and array.dtype != jnp.bool_:
        raise ShapeError(
            where,
            f"mask of {array.dtype}",
            "a boolean mask, True where a query may look",
            "Write mask != 0, or pass numbers to be added as bias",
        )
    if name == "bias" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise ShapeError(
            where,
            f"bias of {array.dtype}",
            "floating numbers, which are added to the scaled products",
            "Convert it with astype, or pass what a query may see as mask",
        )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False)
    )


def check_options(where: str, options: Options) -> None:
    """Refuse a share of weights, or a cap, that is none; compilers have to know both."""
    rate, cap = options.dropout_rate, options.soft_cap
    if not (isinstance(rate, Real) and 0 <= rate < 1):
        raise ConfigError(
            where,
            f"dropout_rate={rate}",
            "a share of the weights from 0 to below 1, a number of Python's",
            "Drop nothing with 0",
            "dropout_rate=0.9" if isinstance(rate, Real) and rate >= 1 else "dropout_rate=0.0",
        )
    if cap is not None and not (isinstance(cap, Real) and 0 < cap < math.inf):
        raise ConfigError(
            where,
            f"soft_cap={cap}",
            "a positive number of Python's, which logits do not exceed, or None",
            "Leave it out for no cap",
            "soft_cap=None",
        )


def scaled(where: str, query: Array, scale: float | Array | None) -> tuple[Array, float]:
    """The query, and what its products are to be multiplied with, a number that compilers know.

    A scale that is an array, which may be computed from others, is multiplied into the query.

    Args:
      where: the function that asks.
      query: (..., k).
      scale: one real number; 1 / sqrt(k) if None.

    Raises:
      ShapeError: the scale is not one real number.
    """
    if scale is None:
        return query, query.shape[-1] ** -0.5
    if isinstance(scale, Real):
        return query, float(scale)
    scale = as_array(where, "scale", scale)
    if scale.shape or not jnp.issubdtype(jnp.promote_types(scale.dtype, query.dtype), jnp.floating):
        raise ShapeError(
            where,
            f"scale of {scale.dtype} and shape {scale.shape}",
            "one real number",
            "Multiply what differs from head to head into query, and pass scale=1.0",
        )
    return (query.astype(accumulator(query.dtype)) * scale).astype(query.dtype), 1.0


def as_array(where: str, name: str, given: Any) -> Array:
    """Numbers in lists, so called by the caller, as an array; arrays as they are."""
    if _is_array(given):
        return given
    try:
        return jnp.asarray(given)
    except (TypeError, ValueError) as error:
        raise ShapeError(
            where,
            f"{name} of {type(given).__name__}",
            "an array",
            "Pass numbers, as many in each row",
        ) from error


def _is_array(given: Any) -> bool:
    return hasattr(given, "shape") and hasattr(given, "dtype")


def for_each_axis(given: Any, rank: int) -> tuple:
    """What is given for each axis, or one for all of `rank` axes. Neither is checked."""
    return tuple(given) if np.iterable(given) else (given,) * rank


def as_lengths(where: str, name: str, given: Any, b: int) -> Array:
    """Lengths, so called by the caller, in 32 bits.

    Raises:
      ShapeError: they are not b whole numbers.
    """
    lengths = as_array(where, name, given)
    if lengths.shape != (b,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ShapeError(
            where,
            f"{name} of {lengths.dtype} and shape {lengths.shape}",
            f"whole numbers of shape {(b,)}, one for each of the batch",
            "Count what there is of each",
        )
    # In fewer bits a sum with the number of a token would run over.
    return jnp.asarray(lengths).astype(jnp.int32)


def seen_keys(
    where: str,
    mask: ArrayLike | None,
    lengths: ArrayLike | None,
    shape: tuple[int, ...],
    start: Array | int = 0,
) -> Array | None:
    """Which keys may be seen, boolean and of shape (b, s); None for all.

    Args:
      where: the function that asks.
      mask: boolean, broadcastable to (b, 1, 1, s), where all queries see the same.
      lengths: how many keys there are, (b,).
      shape: b and s.
      start: the number of keys before these.

    Raises:
      ShapeError: mask or lengths have another shape or dtype.
    """
    b, s = shape
    seen = None
    if mask is not None:
        mask = as_array(where, "mask", mask)
        wide = (1,) * (4 - mask.ndim) + mask.shape
        fits = len(wide) == 4 and wide[0] in (1, b) and wide[1:3] == (1, 1) and wide[3] in (1, s)
        if not fits or mask.dtype != jnp.bool_:
            raise ShapeError(
                where,
                f"mask of {mask.dtype} and shape {mask.shape}",
                f"a boolean mask of keys, of a shape that broadcasts to (b, 1, 1, s) = "
                f"{(b, 1, 1, s)}",
                "Let all heads and queries see the same keys: mask[:, None, None]",
            )
        seen = jnp.broadcast_to(mask.reshape(wide)[:, 0, 0], (b, s))
    if lengths is not None:
        lengths = as_lengths(where, "key_lengths", lengths, b)
        present = start + jnp.arange(s) < lengths[:, None]
        seen = present if seen is None else seen & present
    return seen


def seeing_queries(
    seen: Array | None, lengths: Array | None, t: int, is_causal: bool
) -> Array | None:
    """Which of t queries exist and see a key, (b, t) or (b, 1); None for all.

    Args:
      seen: which keys may be seen, (b, s); None for all.
      lengths: how many queries there are, (b,); None for all.
      t: their number.
      is_causal: whether query i sees keys 0 to i only.
    """
    found = None
    if seen is not None:
        found = seen.any(axis=1, keepdims=True)
        if is_causal:
            found &= jnp.arange(t) >= jnp.argmax(seen, axis=1, keepdims=True)
    if lengths is not None:
        exist = jnp.arange(t) < lengths[:, None]
        found = exist if found is None else exist & found
    return found
