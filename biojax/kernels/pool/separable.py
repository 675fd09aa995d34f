"""Pooling one axis at a time: a window is a box, so its maximum is that of its lines' maxima.

XLA's own gradient of a maximum looks for it once more in every window, and scatters. Here a maximum
comes with its position, and each pixel reads the few windows that see it.

XLA's partitioner (JAX 0.10) may split the two arrays of a window of pairs in different ways, and
then mistakes pixels or ends the process. So where there are several devices the taps of a window
are compared instead, which is slower.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.conv.geometry import Pads, cropped, out_size
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import left_to_compiler, varying
from biojax.kernels.pool import xla
from biojax.typing import Array

__all__ = ["avg_pool", "max_pool"]


class _Lines(NamedTuple):
    """Windows along one axis of (b, *spatial, c), which has `size` pixels there."""

    axis: int
    size: int
    window: int
    stride: int
    pads: tuple[int, int]

    def among(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], Pads]:
        """Window, strides and pads of each of `rank` axes."""

        def each(value, otherwise) -> tuple:
            return tuple(value if i == self.axis else otherwise for i in range(1, rank + 1))

        return each(self.window, 1), each(self.stride, 1), each(self.pads, (0, 0))

    def numbers(self, shape: tuple[int, ...]) -> Array:
        """The pixels of each line counted, in an array of this shape, for other axes than this."""
        shape = (*shape[: self.axis], self.size, *shape[self.axis + 1 :])
        return lax.broadcasted_iota(np.min_scalar_type(self.size), shape, self.axis)

    def taps(self, x: Array, outside: np.ndarray) -> Iterator[tuple[Array, np.ndarray]]:
        """The first pixel of each window and its number, the second, and so on.

        Beyond the image the pixel is `outside`, and the number that of the border.
        """
        n = out_size(self.size, self.pads, self.window, self.stride)
        span, before = (n - 1) * self.stride + 1, self.pads[0]
        widths = [(0, 0, 0)] * x.ndim
        widths[self.axis] = (before, span + self.window - 1 - self.size - before, 0)
        x = lax.pad(x, outside, widths)
        for k in range(self.window):
            number = np.clip(np.arange(n) * self.stride + k - before, 0, self.size - 1)
            number = number.reshape(-1, *[1] * (x.ndim - 1 - self.axis))
            yield lax.slice_in_dim(x, k, k + span, self.stride, self.axis), number

    def seeing(self, v: Array, nothing: int) -> Iterator[Array]:
        """For each pixel v at the last window that sees it, at the one before, and so on.

        Some of these windows end before the pixel, and where there are none v is `nothing`.
        """
        before, s = self.pads[0], self.stride
        most = -(-self.window // s)
        low = max(most - 1 - before // s, 0)
        high = max((self.size - 1 + before) // s + 1 - v.shape[self.axis], 0)
        widths = [(low, high) if i == self.axis else (0, 0) for i in range(v.ndim)]
        v = jnp.repeat(jnp.pad(v, widths, constant_values=nothing), s, axis=self.axis)
        for back in range(most):
            start = before + (low - back) * s
            yield lax.slice_in_dim(v, start, start + self.size, axis=self.axis)


def max_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """The last axis first, so that the first maximum in the order of the axes is found."""
    wide = x.astype(accumulator(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return _each_axis(_max_pool, wide, window, strides, pads).astype(x.dtype)


def avg_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """The mean of means, since all lines of a window hold as many pixels."""
    wide = x.astype(accumulator(x.dtype))
    return _each_axis(_avg_pool, wide, window, strides, pads).astype(x.dtype)


def _each_axis(pool: Callable, x: Array, *geometry: tuple) -> Array:
    axes = list(enumerate(zip(*geometry, strict=True), start=1))

    def run(x: Array) -> Array:
        for axis, each in reversed(axes):
            if each != (1, 1, (0, 0)):  # else every pixel is a window of its own
                x = pool(x, _Lines(axis, x.shape[axis], *each))
        return x

    return left_to_compiler(run, x)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: Array, lines: _Lines) -> Array:
    return xla.max_pool(x, *lines.among(x.ndim - 2))


def _max_pool_fwd(x, lines):
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    find = _by_pairs if jax.device_count() == 1 else _by_taps
    return find(x, lines, np.asarray(lowest, x.dtype))


def _by_pairs(x: Array, lines: _Lines, lowest: np.ndarray) -> tuple[Array, Array]:
    """The first maximum of each window and the number of its pixel."""
    window, strides, pads = lines.among(x.ndim - 2)
    number = varying(lines.numbers(x.shape), x)
    (x, pads), (number, _) = cropped(x, pads), cropped(number, pads)
    return lax.reduce_window(
        (x, number),
        (lowest, np.asarray(lines.size, number.dtype)),
        _first_larger,
        (1, *window, 1),
        (1, *strides, 1),
        ((0, 0), *pads, (0, 0)),
    )


def _first_larger(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of two values with their numbers the larger, or NaN; of equal ones that of lower number."""
    (x, i), (y, j) = a, b
    is_second = ((x == x) & ~(y <= x)) | ((x == y) & (j < i))
    return jnp.where(is_second, y, x), jnp.where(is_second, j, i)


def _by_taps(x: Array, lines: _Lines, lowest: np.ndarray) -> tuple[Array, Array]:
    """The same, by as many comparisons as a window has pixels."""
    kind = np.min_scalar_type(lines.size)
    (y, number), *others = lines.taps(x, lowest)
    at = jnp.broadcast_to(number.astype(kind), y.shape)
    for tap, number in others:
        at = jnp.where((y == y) & ~(tap <= y), number.astype(kind), at)
        y = lax.max(y, tap)
    # Left to itself the compiler finds every maximum again for each pixel of its window.
    return lax.optimization_barrier((y, at))


def _max_pool_bwd(lines, at, dy):
    number = lines.numbers(dy.shape)
    seen = zip(lines.seeing(at, lines.size), lines.seeing(dy, 0), strict=True)
    return (sum(jnp.where(a == number, d, 0) for a, d in seen),)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _avg_pool(x: Array, lines: _Lines) -> Array:
    return xla.avg_pool(x, *lines.among(x.ndim - 2))


def _avg_pool_fwd(x, lines):
    return _avg_pool(x, lines), None


def _avg_pool_bwd(lines, _, dy):
    spatial = tuple(lines.size if i == lines.axis else n for i, n in enumerate(dy.shape))[1:-1]
    for count in xla.counts(spatial, *lines.among(dy.ndim - 2)):
        dy = dy / count.astype(dy.dtype)
    tap = (np.arange(lines.size) + lines.pads[0]) % lines.stride
    tap = tap.reshape(-1, *[1] * (dy.ndim - 1 - lines.axis))
    seen = enumerate(lines.seeing(dy, 0))
    return (sum(jnp.where(tap + back * lines.stride < lines.window, d, 0) for back, d in seen),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
_avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)
