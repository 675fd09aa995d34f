"""Pooling by windows that tile the image: the gradient is a broadcast over each window.

XLA's own gradient of a maximum looks for it once more in every window, and scatters; here the
output keeps which tap it came from.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv.geometry import Pads
from biojax.kernels.dispatch import accumulator
from biojax.kernels.pool import xla
from biojax.typing import Array

__all__ = ["avg_pool", "fits", "max_pool"]


def fits(
    spatial: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...], pads: Pads
) -> bool:
    """Windows side by side, whole, and nothing around them."""
    whole = all(n % k == 0 for n, k in zip(spatial, window, strict=True))
    return whole and window == strides and not any(map(any, pads))


def max_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """The gradient goes to the first maximum of each window."""
    _check("max_pool", x, window, strides, pads)
    return _max_pool(x, window)


def avg_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """The gradient is the same for every pixel of a window."""
    _check("avg_pool", x, window, strides, pads)
    return _avg_pool(x, window)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: Array, window: tuple[int, ...]) -> Array:
    return xla.max_pool(x, window, window, ((0, 0),) * len(window))


def _max_pool_fwd(x, window):
    y, taps = xla.max_pool(x, window, window, ((0, 0),) * len(window)), math.prod(window)
    kind = jnp.uint8 if taps < 256 else jnp.int32
    x = x.reshape(_split(y.shape, window))
    at = jnp.where(x == _widened(y), _numbers(window, kind), jnp.asarray(taps, kind))
    # Left to itself the compiler finds every maximum again for each pixel of its window.
    return y, lax.optimization_barrier(at.min(_window_axes(y)))


def _max_pool_bwd(window, at, dy):
    dx = jnp.where(_widened(at) == _numbers(window, at.dtype), _widened(dy), 0)
    return (dx.reshape(_joined(dy.shape, window)),)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _avg_pool(x: Array, window: tuple[int, ...]) -> Array:
    return xla.avg_pool(x, window, window, ((0, 0),) * len(window))


def _avg_pool_fwd(x, window):
    return _avg_pool(x, window), None


def _avg_pool_bwd(window, _, dy):
    each = (dy.astype(accumulator(dy.dtype)) / math.prod(window)).astype(dy.dtype)
    dx = jnp.broadcast_to(_widened(each), _split(dy.shape, window))
    return (dx.reshape(_joined(dy.shape, window)),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
_avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)


def _split(out: tuple[int, ...], window: tuple[int, ...]) -> tuple[int, ...]:
    """The image's shape with each spatial axis in two: which window, and which tap of it."""
    pairs = zip(out[1:-1], window, strict=True)
    return (out[0], *(n for pair in pairs for n in pair), out[-1])


def _joined(out: tuple[int, ...], window: tuple[int, ...]) -> tuple[int, ...]:
    sizes = [n * k for n, k in zip(out[1:-1], window, strict=True)]
    return (out[0], *sizes, out[-1])


def _window_axes(y: Array) -> tuple[int, ...]:
    return tuple(range(2, 2 * y.ndim - 3, 2))


def _widened(y: Array) -> Array:
    """The output's shape among axes split in two."""
    return jnp.expand_dims(y, _window_axes(y))


def _numbers(window: tuple[int, ...], kind) -> Array:
    """The taps of a window counted from its first, among axes split in two."""
    numbers = jnp.arange(math.prod(window), dtype=kind)
    return numbers.reshape(_split((1,) * (len(window) + 2), window))


def _check(where: str, x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads):
    if not fits(x.shape[1:-1], window, strides, pads):
        raise UnsupportedError(
            where,
            f"implementation='tiles' for an image of {x.shape[1:-1]}, a window of {window}, "
            f"strides {strides} and padding {pads}",
            "strides equal to the window, sizes that are multiples of it, and no padding",
            "Use implementation='taps', or None to choose",
        )
