"""Neighbourhood attention as full attention behind a mask, with every score in memory."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.attention.neighbors import Axis, part_of
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["neighborhood_attention"]


def neighborhood_attention(query, key, value, axes, scale, precision) -> Array:
    """Arguments as in the package, `scale` a number, keys and values with their halo."""
    b, *_, n, _ = query.shape
    q, k, v = (x.reshape(b, -1, n, x.shape[-1]) for x in (query, key, value))
    wide = accumulator(q.dtype)
    options = {"precision": precision, "preferred_element_type": wide}
    logits = jnp.where(
        _mask(axes), scale * jnp.einsum("btnk,bsnk->bnts", q, k, **options), -jnp.inf
    )
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    y = jnp.einsum("bnts,bsnv->btnv", weights, v, **options)
    return y.reshape(*query.shape[:-1], -1).astype(query.dtype)


def _mask(axes: tuple[Axis, ...]) -> Array:
    """Which keys each of this device's queries sees, (t, s)."""
    seen = jnp.ones((1, 1), bool)
    for axis in axes:
        before, after, first, counts = part_of("neighborhood_attention", axis)
        keys = np.arange(before + first.shape[1] + after)
        j, rest = np.divmod(keys - first[..., None], axis.dilation)
        table = jnp.asarray((rest == 0) & (j >= 0) & (j < counts[..., None]))
        table = table[0 if axis.name is None else lax.axis_index(axis.name)]
        t, s = (m * n for m, n in zip(seen.shape, table.shape, strict=True))
        seen = (seen[:, None, :, None] & table[None, :, None, :]).reshape(t, s)
    return seen
