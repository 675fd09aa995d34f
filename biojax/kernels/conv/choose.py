"""Which implementation of a convolution runs where: the first row that applies.

The rows for the CPU rest on times of float32 on two cores, forward and with both gradients. On
GPU and TPU XLA's own convolution is the best there is, but for a product of matrices in disguise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from biojax.kernels.conv import depthwise, pointwise, winograd
from biojax.kernels.conv import matmul as one_product
from biojax.kernels.conv.geometry import Geometry
from biojax.typing import Array

__all__ = ["choose_conv", "choose_conv_transpose"]


# From as many taps on transforms are faster, forward and with both gradients together.
LARGE_KERNEL = {1: 96, 2: 200, 3: 600}
# Winograd's points hold twice the weights, and that for each of the gradients.
MANY_WEIGHTS = 3 * 2**20
# Patches are put together of a slice for each tap: thousands would compile for minutes.
MANY_TAPS = 512
# What one product gives is held twice.
MANY_OUTPUTS = 2**23


class _Row(NamedTuple):
    implementation: str
    applies: Callable[[Array, Array, Geometry], bool]
    reason: str


def _is_large(w: Array, geometry: Geometry) -> bool:
    """Many taps for each output of a stride, and few channels to multiply at each frequency."""
    taps = math.prod(w.shape[:-2]) // math.prod(geometry.strides)
    return taps >= LARGE_KERNEL[w.ndim - 2] and w.shape[-2] * w.shape[-1] <= 16 * geometry.groups


def _products(x: Array, w: Array, geometry: Geometry) -> int:
    """Multiply-adds for one tap of the kernel."""
    return _pixels(x, geometry) * w.shape[-2] * w.shape[-1]


def _pixels(x: Array, geometry: Geometry) -> int:
    """Outputs, about."""
    return math.prod(x.shape[:-1]) // math.prod(geometry.strides)


_CONV = [
    _Row("pointwise", lambda x, w, g: pointwise.fits(w, g), "one tap: a matrix product"),
    _Row("fft", lambda x, w, g: _is_large(w, g), "hundreds of taps, on CPU"),
    _Row(
        "depthwise",
        lambda x, w, g: depthwise.fits(w, g) and g.groups > 1 and w.shape[-3] <= 96,
        "depthwise on CPU",
    ),
    _Row("grouped", lambda x, w, g: g.groups > 1, "groups merged to fill vectors, on CPU"),
    _Row("xla", lambda x, w, g: x.ndim == 3, "1-D"),
    _Row(
        "patches",
        lambda x, w, g: (
            w.size >= 2**17 and _pixels(x, g) <= 256 and math.prod(w.shape[:-2]) <= MANY_TAPS
        ),
        "few pixels and many channels: one product, on CPU",
    ),
    _Row(
        "xla",
        lambda x, w, g: x.ndim == 4 and _products(x, w, g) < 2**25,
        "2-D and small, on CPU",
    ),
    _Row(
        "planes",
        lambda x, w, g: x.ndim == 4 and x.shape[0] == 1 and max(w.shape[-2:]) <= 64,
        "one plane of few channels: XLA's 2-D convolution, on CPU",
    ),
    _Row(
        "winograd",
        lambda x, w, g: winograd.fits(w, g) and max(w.shape[-2:]) > 16 and w.size <= MANY_WEIGHTS,
        "short kernel without stride along the first axis, on CPU",
    ),
    _Row("planes", lambda x, w, g: True, "XLA's 2-D convolution, by blocks, on CPU"),
]
_CONV_TRANSPOSE = [
    _Row(
        "matmul",
        lambda x, w, g: (
            one_product.fits(w, g)
            and x.size * w.shape[-1] < 2**26
            and x.size // x.shape[-1] * math.prod(w.shape[:-2]) * w.shape[-1] <= MANY_OUTPUTS
        ),
        "kernel equal to strides: no two outputs overlap",
    ),
    _Row("phases", lambda x, w, g: True, "no product with the zeros between, on CPU"),
]


def choose_conv(x: Array, w: Array, geometry: Geometry, platform: str) -> tuple[str, str]:
    """The implementation of `conv`, and why."""
    if platform != "cpu":
        return "xla", f"the platform's own convolution on {platform}"
    return _first(_CONV, x, w, geometry)


def choose_conv_transpose(x: Array, w: Array, geometry: Geometry, platform: str) -> tuple[str, str]:
    """The implementation of `conv_transpose`, and why."""
    if platform != "cpu":
        if one_product.fits(w, geometry):
            return "matmul", "kernel equal to strides: no two outputs overlap"
        return "xla", f"the platform's own convolution on {platform}"
    return _first(_CONV_TRANSPOSE, x, w, geometry)


def _first(rows: list[_Row], x: Array, w: Array, geometry: Geometry) -> tuple[str, str]:
    return next((r.implementation, r.reason) for r in rows if r.applies(x, w, geometry))
