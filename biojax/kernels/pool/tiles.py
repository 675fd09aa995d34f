"""Pooling by small windows that tile the image: the gradient is a broadcast over each window.

XLA's own gradient of a maximum looks for it once more in every window, and scatters; here the
output keeps which tap it came from.
"""

import functools
import itertools
import math
import operator
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv.geometry import Pads
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import left_to_compiler
from biojax.typing import Array

__all__ = ["avg_pool", "fits", "max_pool"]

# Every tap is an operation of its own for the compiler.
_MOST_TAPS = 64


def fits(
    spatial: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...], pads: Pads
) -> bool:
    """Windows side by side, small, whole, and nothing around them."""
    whole = all(n % k == 0 for n, k in zip(spatial, window, strict=True))
    small = math.prod(window) <= _MOST_TAPS
    return small and whole and window == strides and not any(map(any, pads))


def max_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """The gradient goes to the first maximum of each window."""
    _check("max_pool", x, window, strides, pads)
    return left_to_compiler(lambda x: _max_pool(x, window), x)


def avg_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """The gradient is the same for every pixel of a window."""
    _check("avg_pool", x, window, strides, pads)
    return left_to_compiler(lambda x: _avg_pool(x, window), x)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: Array, window: tuple[int, ...]) -> Array:
    return functools.reduce(lax.max, _taps(x, window))


def _max_pool_fwd(x, window):
    first, *others = _taps(x, window)
    y, at = first, jnp.zeros(first.shape, jnp.uint8)
    for number, tap in enumerate(others, start=1):
        at = jnp.where((y == y) & ~(tap <= y), jnp.uint8(number), at)
        y = lax.max(y, tap)
    # Left to itself the compiler finds every maximum again for each pixel of its window.
    return lax.optimization_barrier((y, at))


def _max_pool_bwd(window, at, dy):
    dx = jnp.where(_widened(at) == _numbers(window, at.dtype), _widened(dy), 0)
    return (dx.reshape(_joined(dy.shape, window)),)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _avg_pool(x: Array, window: tuple[int, ...]) -> Array:
    wide = accumulator(x.dtype)
    total = functools.reduce(operator.add, (tap.astype(wide) for tap in _taps(x, window)))
    return (total / math.prod(window)).astype(x.dtype)


def _avg_pool_fwd(x, window):
    return _avg_pool(x, window), None


def _avg_pool_bwd(window, _, dy):
    each = (dy.astype(accumulator(dy.dtype)) / math.prod(window)).astype(dy.dtype)
    dx = jnp.broadcast_to(_widened(each), _split(dy.shape, window))
    return (dx.reshape(_joined(dy.shape, window)),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
_avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)


def _taps(x: Array, window: tuple[int, ...]) -> Iterator[Array]:
    """The pixels that each tap of the windows sees, the first tap first."""
    out = [n // k for n, k in zip(x.shape[1:-1], window, strict=True)]
    split = x.reshape(_split((x.shape[0], *out, x.shape[-1]), window))
    for tap in itertools.product(*map(range, window)):
        yield split[:, *(part for k in tap for part in (slice(None), k))]


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
            f"strides equal to the window, sizes that are multiples of it, no padding, and at most "
            f"{_MOST_TAPS} pixels in a window",
            "Use implementation='separable', or None to choose",
        )
