"""The contract of `window_attention`: one window after the other."""

import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.attention.windows import Settings
from biojax.typing import Array

__all__ = ["window_attention"]


def window_attention(query, key, value, bias, settings: Settings) -> Array:
    """Arguments as in the package, written out for each spatial axis.

    Along an axis of n voxels window number i holds those at (i * w + shift + 0 ... w - 1) mod n.
    Two of them see each other where both or neither are beyond the end of the axis.
    """
    spatial, (window, shift, scale, precision) = query.shape[1:-2], settings
    y = jnp.zeros((*query.shape[:-1], value.shape[-1]), query.dtype)
    for corner in np.ndindex(*(n // w for n, w in zip(spatial, window, strict=True))):
        axes = [range(i * w + s, (i + 1) * w + s)
                for i, w, s in zip(corner, window, shift, strict=True)]  # fmt: skip
        places = np.array(list(itertools.product(*axes)))
        beyond = places >= spatial
        seen = (beyond[:, None] == beyond[None]).all(-1)
        at = (slice(None), *(places % spatial).T)
        q, k, v = (jnp.moveaxis(x[at], 2, 1) for x in (query, key, value))
        z = scale * jnp.matmul(q, k.mT, precision=precision)
        z = jnp.where(seen, z if bias is None else z + bias, -jnp.inf)
        # The largest is taken off so that no exponential overflows.
        weights = jnp.exp(z - jnp.max(lax.stop_gradient(z), axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
        y = y.at[at].set(jnp.moveaxis(jnp.matmul(weights, v, precision=precision), 1, 2))
    return y
