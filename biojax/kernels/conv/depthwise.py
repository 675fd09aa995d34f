"""Depthwise convolution as sums of shifted images, one multiply-add for each tap of the kernel.

y[z, y, x, c] = sum over i, j, k of  x[z + i, y + j, x + k, c] * w[i, j, k, c]

There is no matrix product in it, so the sum is written out for the compiler, which makes vector
instructions of it. Large kernels go by Winograd's minimal filtering along the depth, as in
`winograd.py`: 2 to 2.8 times fewer of them, and every plane of the kernel in one sum.

The weights' gradient is a sum of the same kind, with rows of the image and of the outputs'
gradient in the places of image and kernel: a reduction for each tap would read everything anew.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv import blocked
from biojax.kernels.conv.blocked import Method
from biojax.kernels.conv.geometry import Geometry, out_size, pad
from biojax.kernels.conv.winograd import combined, matrices, points
from biojax.kernels.meshes import varying
from biojax.typing import Array

__all__ = ["conv", "fits", "method"]

# Sums of many more terms the compiler leaves scalar (jaxlib 0.10.2: 81 are vectors, 125 are not),
# and into sums of many fewer it puts the reading of a block, which has the same effect.
MAX_TERMS = 64
ROWS = 16
# So many columns times channels at a time.
COLUMNS = 4096
# Terms added up one after another: each addition waits for the one before.
CHAIN = 6
# Outputs of a tile for each depth of the kernel, and the fewest taps in a plane. Whatever is used
# up to 15 times the compiler computes anew for each use: points are used by every tap of a plane,
# their sums by every output of a tile.
TILES = {5: 4, 7: 4, 9: 2}
# Numbers in an image of planes that one sum is for: larger ones are faster in cache, by blocks.
WHOLE = 2**22
MIN_TERMS = 16


_Pair = tuple[Array | int, Array | int]


def fits(w: Array, geometry: Geometry) -> bool:
    """One channel in and one out for each group."""
    return w.shape[-2] == 1 and w.shape[-1] == geometry.groups


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any kernel, strides, dilation and padding."""
    if not fits(w, geometry):
        raise UnsupportedError(
            "conv",
            f"implementation='depthwise' for a kernel {w.shape} in {geometry.groups} groups",
            "one input and one output channel for each group",
            "Use implementation='xla', or None to choose",
        )
    return blocked.conv(method(w.shape, geometry, x.size), x, w, geometry)


def method(kernel: tuple[int, ...], geometry: Geometry, size: int) -> Method:
    """Winograd's along the depth where it pays; else direct, in one block if that is small.

    Args:
      kernel: (*k, 1, c).
      geometry: of the convolution.
      size: numbers in the image.
    """
    plain = geometry.strides[0] == geometry.dilation[0] == 1 and len(kernel) == 5
    pays = kernel[0] in TILES and MIN_TERMS <= kernel[1] * kernel[2] <= 2 * MAX_TERMS
    if plain and pays:
        return _WINOGRAD[kernel[0]]
    flat = len(kernel) < 5 or kernel[0] == 1
    return _WHOLE if flat and size <= WHOLE else _DIRECT


def _terms(image: Array, w: Array, rows: Sequence, out: tuple[int, int], geometry: Geometry):
    """The sum over some rows of a plane of the kernel: (..., h, w, c) and (..., kh, kw, 1, c).

    A row's number may be traced.
    """
    (height, width), (_, sh, sw), (_, dh, dw) = out, geometry.strides, geometry.dilation
    lead = w.shape[:-4]
    across = (*lead, *(1,) * (image.ndim - len(lead) - 1), w.shape[-1])
    parts = []
    for j in rows:
        row = _taken(image, j * dh, height, sh, axis=-3)
        for k in range(w.shape[-3]):
            weights = w[..., j, k, 0, :].reshape(across)
            parts.append(_taken(row, k * dw, width, sw, axis=-2) * weights)
    return _added(parts)


def _taken(image: Array, first: Array | int, count: int, stride: int, axis: int) -> Array:
    """Every stride-th slice that one tap sees along an axis."""
    axis %= image.ndim
    image = lax.dynamic_slice_in_dim(image, first, (count - 1) * stride + 1, axis)
    return lax.slice_in_dim(image, 0, None, stride, axis)


def _added(parts: Sequence[Array]) -> Array:
    chains = [parts[i : i + CHAIN] for i in range(0, len(parts), CHAIN)]
    sums = [sum(chain[1:], start=chain[0]) for chain in chains]
    return sum(sums[1:], start=sums[0])


def _plane_size(window: Array, kernel: tuple[int, ...], geometry: Geometry) -> tuple[int, int]:
    sizes = zip(window.shape[2:4], kernel[1:3], geometry.dilation[1:], strict=True)
    extents = [(n, (0, 0), (k - 1) * d + 1) for n, k, d in sizes]
    height, width = (out_size(*e, s) for e, s in zip(extents, geometry.strides[1:], strict=True))
    return height, width


def _forward(window: Array, w: Array, geometry: Geometry) -> Array:
    (kd, kh, kw, _, _), (sd, _, _), (dd, _, _) = w.shape, geometry.strides, geometry.dilation
    window = pad(window, geometry.pads)
    out = _plane_size(window, w.shape, geometry)
    depth = out_size(window.shape[1], (0, 0), (kd - 1) * dd + 1, sd)

    def terms(i: Array | int, rows: Sequence[Array | int]) -> Array:
        return _terms(_taken(window, i * dd, depth, sd, axis=1), w[i], rows, out, geometry)

    if kd * kh * kw <= MAX_TERMS:
        return sum((terms(i, range(kh)) for i in range(1, kd)), start=terms(0, range(kh)))
    if kh * kw <= 2 * MAX_TERMS:
        steps = jnp.arange(1, kd)
        return lax.scan(lambda y, i: (y + terms(i, range(kh)), None), terms(0, range(kh)), steps)[0]
    steps = jnp.arange(1, kd * kh)
    return lax.scan(lambda y, i: (y + terms(i // kh, [i % kh]), None), terms(0, [0]), steps)[0]


def _gradient(window: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    (kd, *_), (sd, *_), (dd, *_) = kernel, geometry.strides, geometry.dilation
    window = pad(window, geometry.pads)
    b, depth, *_ = dy.shape

    def read(window: Array, dy: Array, i: Array, at: _Pair, sizes: tuple[_Pair, _Pair]):
        first = [n * s for n, s in zip(at, geometry.strides[1:], strict=True)]
        n, z, c = i // depth, i % depth, dy.shape[-1]
        size = (1, (kd - 1) * dd + 1, *sizes[0], c)
        x = lax.dynamic_slice(window, (n, z * sd, *first, 0), size)[0, ::dd]
        return x, lax.dynamic_slice(dy, (n, z, *at, 0), (1, 1, *sizes[1], c))[0]

    return _row_products(read, b * depth, kd, window, dy, kernel, geometry)


def _row_products(
    read: Callable,
    count: int,
    planes: int,
    window: Array,
    dy: Array,
    kernel: tuple[int, ...],
    geometry: Geometry,
) -> Array:
    """For each tap of the kernel, products of rows, added up over `ROWS` rows at a time.

    `read` gives what plane i of `count` contributes in a tile of a few rows and columns: of the
    image (planes, *sizes[0], c), of the outputs' gradient (planes or 1, *sizes[1], c).
    """
    (_, kh, kw, _, c), (_, sh, sw), (_, dh, dw) = kernel, geometry.strides, geometry.dilation
    height, width = dy.shape[2:4]
    rows, columns = min(ROWS, height), min(max(1, COLUMNS // c), width)
    tiles = -(-height // rows), -(-width // columns)
    extra = tiles[0] * rows - height, tiles[1] * columns - width
    span = (kh - 1) * dh + 1
    dy = jnp.pad(dy, ((0, 0), (0, 0), (0, extra[0]), (0, extra[1]), (0, 0)))
    window = jnp.pad(window, ((0, 0), (0, 0), (0, extra[0] * sh), (0, extra[1] * sw), (0, 0)))
    sizes = ((rows - 1) * sh + span, (columns - 1) * sw + (kw - 1) * dw + 1), (rows, columns)

    def step(totals: tuple[Array, ...], i: Array):
        i, at = i // math.prod(tiles), (i // tiles[1] % tiles[0] * rows, i % tiles[1] * columns)
        x, d = read(window, dy, i, at, sizes)

        def column(k: int) -> Array:
            """Over every row of the kernel, the sum of rows of x times rows of dy."""
            part = lax.slice_in_dim(x, k * dw, k * dw + (columns - 1) * sw + 1, sw, axis=2)
            return _added(
                [part[:, r * sh : r * sh + span : dh] * d[:, r, None] for r in range(rows)]
            )

        return tuple(total + column(k) for k, total in enumerate(totals)), None

    zero = varying(jnp.zeros((planes, kh, columns, c), dy.dtype), window, dy)
    totals = lax.scan(step, (zero,) * kw, jnp.arange(count * math.prod(tiles)))[0]
    return jnp.stack([total.sum(2) for total in totals], axis=2)[:, :, :, None]


def _direct_scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
    return 4 * kernel[-1]


def _no_scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
    return 0


_DIRECT = Method(lambda w: w, _forward, _gradient, _direct_scratch, _direct_scratch, apart=True)
_WHOLE = _DIRECT._replace(scratch=_no_scratch)


def _winograd(taps: int) -> Method:
    outputs = TILES[taps]
    a, g, b = matrices(outputs, taps)

    def tiles(window: Array) -> Array:
        """B^T x: (points, b * tiles, h, w, c)."""
        return jnp.stack(points(b, window, outputs))

    def forward(window: Array, w: Array, geometry: Geometry) -> Array:
        window = pad(window, geometry.pads)
        out = _plane_size(window, w.shape, geometry)
        products = _terms(tiles(window), w, range(w.shape[1]), out, geometry)
        y = jnp.stack(combined(a, list(products)), axis=1)
        return y.reshape(window.shape[0], -1, *y.shape[2:])

    def gradient(window: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
        dy = dy.reshape(-1, outputs, *dy.shape[2:])
        gradients = jnp.stack(combined(a.T, [dy[:, i] for i in range(outputs)]))

        def read(window: Array, dy: Array, i: Array, at: _Pair, sizes: tuple[_Pair, _Pair]):
            first = [n * s for n, s in zip(at, geometry.strides[1:], strict=True)]
            lead, c = (len(b), 1), dy.shape[-1]
            x = lax.dynamic_slice(window, (0, i, *first, 0), (*lead, *sizes[0], c))[:, 0]
            return x, lax.dynamic_slice(dy, (0, i, *at, 0), (*lead, *sizes[1], c))[:, 0]

        window = tiles(pad(window, geometry.pads))
        return _row_products(read, len(dy), len(b), window, gradients, kernel, geometry)

    def scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
        return math.ceil((2 * len(b) / outputs + 2) * kernel[-1])

    def prepare(w: Array) -> Array:
        return jnp.tensordot(g.astype(w.dtype), w, axes=1, precision=lax.Precision.HIGHEST)

    return Method(prepare, forward, gradient, scratch, scratch, outputs)


_WINOGRAD = {taps: _winograd(taps) for taps in TILES}
