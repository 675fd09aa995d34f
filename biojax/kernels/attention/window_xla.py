"""Attention within windows, all of them at once."""

import jax.numpy as jnp

from biojax.kernels.attention.scores import exponentials
from biojax.kernels.attention.windows import (
    Settings,
    as_image,
    as_windows,
    logits,
    sides,
)
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["attention"]


def attention(query, key, value, bias, settings: Settings) -> Array:
    """Arguments as in the package, the bias for whole windows."""
    b, *spatial = query.shape[:-2]
    q, k, v = (as_windows(x, settings) for x in (query, key, value))
    side = sides(b, tuple(spatial), settings)
    weights, total, _ = exponentials(logits(q, k, bias, side, settings))
    y = jnp.matmul(
        (weights / total).astype(v.dtype),
        v,
        precision=settings.precision,
        preferred_element_type=accumulator(v.dtype),
    )
    return as_image(y.astype(query.dtype), tuple(spatial), settings)
