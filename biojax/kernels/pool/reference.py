"""The contract of `max_pool` and `avg_pool`: every window, stacked."""

import itertools

import jax.numpy as jnp

from biojax.kernels.conv.geometry import Pads, out_size, pad
from biojax.typing import Array

__all__ = ["avg_pool", "max_pool"]


def max_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """The first maximum of the window's taps, padding being minus infinity."""
    taps = _taps(x, window, strides, pads, -jnp.inf)
    return jnp.take_along_axis(taps, taps.argmax(axis=0, keepdims=True), axis=0)[0]


def avg_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """The sum over the window's taps over the number of taps inside of the image."""
    inside = _taps(jnp.ones_like(x), window, strides, pads, 0.0)
    return _taps(x, window, strides, pads, 0.0).sum(axis=0) / inside.sum(axis=0)


def _taps(
    x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads, value: float
) -> Array:
    out = [out_size(*each) for each in zip(x.shape[1:-1], pads, window, strides, strict=True)]
    x = pad(x, pads, value)
    taps = []
    for tap in itertools.product(*map(range, window)):
        index = [
            slice(k, k + (n - 1) * s + 1, s) for k, n, s in zip(tap, out, strides, strict=True)
        ]
        taps.append(x[:, *index])
    return jnp.stack(taps)
