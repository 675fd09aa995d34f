"""The contract of the normalisations: mean, variance, and a line."""

import jax.numpy as jnp
from jax import lax

from biojax.typing import Array

__all__ = ["normalise"]


def normalise(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    axes: tuple[int, ...],
    groups: int,
    epsilon: float,
) -> tuple[Array, Array, Array]:
    """Statistics over `axes` and over each group of neighbouring channels: y, mean, var.

    y is of x's shape; mean and var have length 1 along `axes` and `groups` along the channels.
    """
    split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    over = (*axes, x.ndim)
    mean = split.mean(over, keepdims=True)
    var = jnp.square(split - mean).mean(over, keepdims=True)
    y = ((split - mean) * lax.rsqrt(var + epsilon)).reshape(x.shape)
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    return y, mean[..., 0], var[..., 0]
