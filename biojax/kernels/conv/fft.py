"""Convolution by Fourier transforms, for kernels of hundreds of taps.

y = F^-1(F(x) * conj(F(w))), summed over the input channels of a group

On a window of n pixels the circular correlation of length n or more is right for every output
that the window holds whole, so that blocks need no adding up of what overlaps. The cost hardly
depends on the kernel; the error is that of the transforms, which grows with log(n) alone.

Source: Mathieu, Henaff and LeCun, "Fast training of convolutional networks through FFTs", 2014,
section 2.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from biojax.kernels.conv import blocked
from biojax.kernels.conv.blocked import Method
from biojax.kernels.conv.geometry import Geometry, pad
from biojax.typing import Array

__all__ = ["conv"]


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any groups, strides, dilation and padding; outputs between strides are computed as well."""
    return blocked.conv(_METHOD, x, w, geometry)


def _forward(window: Array, w: Array, geometry: Geometry) -> Array:
    window, w = pad(window, geometry.pads), _spread(w, geometry.dilation, 0)
    size, (c, f) = [_fast(n) for n in window.shape[1:4]], w.shape[-2:]
    image = _spectrum(window, size).reshape(window.shape[0], geometry.groups, c, 1, -1)
    kernel = _spectrum(jnp.moveaxis(w, -2, 0), size).reshape(
        c, geometry.groups, -1, image.shape[-1]
    )
    y = (image * kernel.conj().swapaxes(0, 1)).sum(2)
    y = _image(y.reshape(window.shape[0], f, -1), size)
    sizes = zip(window.shape[1:4], w.shape[:3], geometry.strides, strict=True)
    return y[:, *(slice(0, n - k + 1, s) for n, k, s in sizes)]


def _gradient(window: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    *taps, c, f = kernel
    window, dy = pad(window, geometry.pads), _spread(dy, geometry.strides, 1)
    size = [_fast(n) for n in window.shape[1:4]]
    image = _spectrum(window, size).reshape(window.shape[0], geometry.groups, c, 1, -1)
    outputs = _spectrum(dy, size).reshape(window.shape[0], geometry.groups, 1, -1, image.shape[-1])
    dw = (image * outputs.conj()).sum(0).swapaxes(0, 1)
    dw = jnp.moveaxis(_image(dw.reshape(c, f, -1), size), 0, -2)
    extent = zip(taps, geometry.dilation, strict=True)
    return dw[*(slice(0, (k - 1) * d + 1, d) for k, d in extent)]


def _scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
    """Less than there is: smaller blocks would be mostly border."""
    return (kernel[-2] + 2) * kernel[-1]


_METHOD = Method(lambda w: w, _forward, _gradient, _scratch, _scratch)


def _spectrum(x: Array, size: Sequence[int]) -> Array:
    """(n, z, y, x, c) to (n, c, frequencies)."""
    transformed = jnp.fft.rfftn(jnp.moveaxis(x, -1, 1), size, axes=(2, 3, 4))
    return transformed.reshape(*transformed.shape[:2], -1)


def _image(spectrum: Array, size: Sequence[int]) -> Array:
    """(n, c, frequencies) to (n, z, y, x, c)."""
    spectrum = spectrum.reshape(*spectrum.shape[:2], *size[:2], size[2] // 2 + 1)
    return jnp.moveaxis(jnp.fft.irfftn(spectrum, size, axes=(2, 3, 4)), 1, -1)


def _spread(x: Array, steps: Sequence[int], axis: int) -> Array:
    """Zeros between the pixels along three axes."""
    widths = [(0, 0, 0)] * x.ndim
    widths[axis : axis + 3] = [(0, 0, s - 1) for s in steps]
    return lax.pad(x, jnp.zeros((), x.dtype), widths)


def _fast(n: int) -> int:
    """The next length without prime factors above 5.

    >>> [_fast(n) for n in (1, 7, 17, 62)]
    [1, 8, 18, 64]
    """
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
