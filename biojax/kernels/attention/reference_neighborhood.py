"""The contract of `neighborhood_attention`: one query after the other."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.attention.neighbors import neighbors
from biojax.typing import Array

__all__ = ["neighborhood_attention"]


def neighborhood_attention(query, key, value, axes, scale, precision) -> Array:
    """Of each query the keys in its window, axis by axis, and their softmax.

    Arguments as in the package, `scale` a number, `axes` one `Axis` for each of space. The whole of
    an axis is here.
    """
    tables = [neighbors(axis) for axis in axes]
    dot = partial(jnp.einsum, precision=precision)

    def one(place: tuple[Array, ...]) -> Array:
        q, k, v, seen = query, key, value, jnp.array(True)
        for axis, (first, count), i in zip(axes, tables, place, strict=True):
            j = np.arange(axis.kernel_size)
            window = jnp.asarray(first)[i] + j * axis.dilation
            # What was cut out before is flattened behind the axes still to come.
            q = q[:, i]
            k, v = (jnp.moveaxis(jnp.take(x, window, axis=1, mode="clip"), 1, -1) for x in (k, v))
            seen = seen[..., None] & (j < jnp.asarray(count)[i])
        b, n, c = q.shape
        k, v, seen = k.reshape(b, n, c, -1), v.reshape(b, n, v.shape[2], -1), seen.ravel()
        logits = jnp.where(seen, scale * dot("bnc,bncs->bns", q, k), -jnp.inf)
        # The largest is taken off so that no exponential overflows.
        weights = jnp.exp(logits - lax.stop_gradient(logits).max(axis=-1, keepdims=True))
        return dot("bns,bnvs->bnv", weights / weights.sum(axis=-1, keepdims=True), v)

    sizes = query.shape[1:-2]
    places = tuple(place.ravel() for place in np.indices(sizes))
    y = lax.map(one, tuple(map(jnp.asarray, places)))
    return jnp.moveaxis(y, 0, 1).reshape(*query.shape[:-1], -1)
