"""Pooling by any windows: the gradient is a sum over the taps of a window.

Each tap brings a part of the output's gradient to every s-th pixel, which is padding with zeros
in between: no scatter, and the compiler makes one loop of all taps.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.kernels.conv.geometry import Pads, out_size, pad
from biojax.kernels.dispatch import accumulator
from biojax.kernels.pool import xla
from biojax.typing import Array

__all__ = ["avg_pool", "max_pool"]


class _Windows(NamedTuple):
    """Where they lie in an image of size `spatial`."""

    spatial: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: Pads

    @property
    def out(self) -> list[int]:
        """How many there are along each axis."""
        sizes = zip(self.spatial, self.pads, self.window, self.strides, strict=True)
        return [out_size(*each) for each in sizes]

    @property
    def taps(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*map(range, self.window))


def max_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """The gradient goes to the first maximum of each window."""
    return _max_pool(x, _Windows(x.shape[1:-1], window, strides, pads))


def avg_pool(x: Array, window: tuple[int, ...], strides: tuple[int, ...], pads: Pads) -> Array:
    """One axis at a time: the mean of means, since every window is a box."""
    y = x.astype(accumulator(x.dtype))
    for axis in reversed(range(len(window))):

        def along(values: tuple, otherwise, axis: int = axis) -> tuple:
            return tuple(v if i == axis else otherwise for i, v in enumerate(values))

        lines = along(window, 1), along(strides, 1), along(pads, (0, 0))
        y = _means(y, _Windows(y.shape[1:-1], *lines))
    return y.astype(x.dtype)


def _means(x: Array, windows: _Windows) -> Array:
    """`_avg_pool`, of a type that a checker sees through the decorator."""
    return _avg_pool(x, windows)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: Array, windows: _Windows) -> Array:
    return xla.max_pool(x, *windows[1:])


def _max_pool_fwd(x, windows):
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    x = pad(x, windows.pads, lowest)
    seen = []
    for tap in windows.taps:
        steps = zip(tap, windows.out, windows.strides, strict=True)
        seen.append(x[:, *(slice(k, k + (n - 1) * s + 1, s) for k, n, s in steps)])
    y, at = seen[0], jnp.zeros(seen[0].shape, jnp.int32)
    for number, value in enumerate(seen[1:], start=1):
        at = jnp.where(value > y, number, at)
        y = lax.max(y, value)
    # Left to itself the compiler would look for the maximum once more in every tap's gradient.
    return lax.optimization_barrier((y, at))


def _max_pool_bwd(windows, at, dy):
    wide = dy.astype(accumulator(dy.dtype))
    dx = _spread(lambda number: jnp.where(at == number, wide, 0), windows, wide)
    return (dx.astype(dy.dtype),)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _avg_pool(x: Array, windows: _Windows) -> Array:
    return xla.avg_pool(x, *windows[1:])


def _avg_pool_fwd(x, windows):
    return xla.avg_pool(x, *windows[1:]), None


def _avg_pool_bwd(windows, _, dy):
    for count in xla.counts(*windows):
        dy = dy / count.astype(dy.dtype)
    return (_spread(lambda _: dy, windows, dy),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
_avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)


def _spread(part: Callable[[int], Array], windows: _Windows, dy: Array) -> Array:
    """The sum over taps of their part of dy, each pixel of it where the tap saw the image."""
    total = jnp.zeros((), dy.dtype)
    for number, tap in enumerate(windows.taps):
        widths, seen = [(0, 0, 0)], [slice(None)]
        for k, n, (before, _), size, s in zip(
            tap, windows.out, windows.pads, windows.spatial, windows.strides, strict=True
        ):
            first = k - before
            widths.append((max(first, 0), max(size - (first + (n - 1) * s + 1), 0), s - 1))
            seen.append(slice(max(-first, 0), max(-first, 0) + size))
        # Cropping by negative widths would be less code; XLA's partitioner aborts on them, with
        # zeros in between (jaxlib 0.10.2).
        total += lax.pad(part(number), np.zeros((), dy.dtype), [*widths, (0, 0, 0)])[*seen]
    return total
