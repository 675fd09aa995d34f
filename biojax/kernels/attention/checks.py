"""What every kind of attention asks of its arguments."""

import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.typing import Array, ArrayLike

__all__ = ["check_images", "check_lengths", "check_tokens", "seeing_queries", "seen_keys"]


def check_tokens(where: str, query: Array, key: Array, value: Array) -> None:
    """Refuse what is not query (b, t, n, k), key (b, s, m, k), value (b, s, m, v) of one dtype."""
    if not (
        query.ndim == key.ndim == value.ndim == 4
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
    _check_dtypes(where, query, key, value)


def check_images(where: str, query: Array, key: Array, value: Array) -> None:
    """Refuse what is not query and key (b, *spatial, n, k), value (b, *spatial, n, v)."""
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
    _check_dtypes(where, query, key, value)


def _check_dtypes(where: str, query: Array, key: Array, value: Array) -> None:
    if not query.dtype == key.dtype == value.dtype or not jnp.issubdtype(query.dtype, jnp.floating):
        raise ShapeError(
            where,
            f"query of {query.dtype}, key of {key.dtype}, value of {value.dtype}",
            "one floating dtype for all three",
            "Convert them with astype",
        )


def check_lengths(where: str, name: str, lengths: ArrayLike, b: int) -> None:
    """Refuse lengths, called so by the caller, that are not b whole numbers."""
    if lengths.shape != (b,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ShapeError(
            where,
            f"{name} of {lengths.dtype} and shape {lengths.shape}",
            f"whole numbers of shape {(b,)}, one for each of the batch",
            "Count what there is of each",
        )


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
        check_lengths(where, "key_lengths", lengths, b)
        present = start + jnp.arange(s) < jnp.asarray(lengths)[:, None]
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
