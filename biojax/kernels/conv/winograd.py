"""Convolution with a short kernel by Winograd's minimal filtering along the first axis.

m outputs of a kernel of r taps need m + r - 1 products in place of m * r:

Y = A^T [(G w) * (B^T x)],   x of m + r - 1 planes, Y of m

where each product is here a whole convolution of planes over the other axes, XLA's own. With r = 3
and m = 4 that is half of the arithmetic. Along further axes as well it would be less still, but
then the transforms cost more than they save, and the error grows with each. Along one it is, for
random numbers in float32 and relative to the outputs, both as root mean squares: 2e-7 for 4 outputs
of 3 taps, 3e-7 of 5, 1.3e-6 of 7; 4e-7 for 2 outputs of 7 taps, 1.6e-6 of 9.

Sources: Winograd, "Arithmetic complexity of computations", 1980; Lavin and Gray, "Fast algorithms
for convolutional neural networks", CVPR 2016, sections 3 and 4; the matrices follow from the
interpolation points by the construction of Toom and Cook (Barabasz et al., "Error analysis and
improving the accuracy of Winograd convolution for deep neural networks", 2020, section 2).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv import blocked
from biojax.kernels.conv.blocked import Method
from biojax.kernels.conv.geometry import Geometry
from biojax.kernels.conv.planes import few_rows, plane_conv, plane_gradient
from biojax.typing import Array

__all__ = ["combined", "conv", "fits", "matrices", "points"]

# Outputs of a tile for each number of taps: eight points at most, for the error grows with them.
TILES = {3: 4, 5: 4, 7: 2}
# The last two are those of least error for ten, among fractions of numbers up to 4.
POINTS = [Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2", "4/3", "-3/4")]


@cache
def matrices(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T (m, n), G (n, r) and B^T (n, n) for m outputs and r taps, n = m + r - 1.

    >>> a, g, b = matrices(2, 3)
    >>> x, w = np.arange(4.0), np.array([1.0, 10.0, 100.0])
    >>> a @ ((g @ w) * (b @ x))
    array([210., 321.])
    """
    n = outputs + taps - 1
    points = POINTS[: n - 1]
    others = [[q for q in points if q != p] for p in points]
    scale = [math.prod(p - q for q in rest) for p, rest in zip(points, others, strict=True)]
    a = [[p**i for p in points] + [Fraction(i == outputs - 1)] for i in range(outputs)]
    g = [[p**i / s for i in range(taps)] for p, s in zip(points, scale, strict=True)]
    g.append([Fraction(i == taps - 1) for i in range(taps)])
    b = [[*_polynomial(rest), Fraction(0)] for rest in others] + [_polynomial(points)]
    return np.array(a, float), np.array(g, float), np.array(b, float)


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, from the constant up, of the product of (t - root)."""
    p = [Fraction(1)]
    for root in roots:
        p = [
            low - root * high
            for low, high in zip([Fraction(0), *p], [*p, Fraction(0)], strict=True)
        ]
    return p


def combined(matrix: np.ndarray, terms: Sequence[Array]) -> list[Array]:
    """Matrix times terms, without what is multiplied by 0."""
    rows = []
    for row in matrix:
        parts = [t if c == 1 else t * float(c) for c, t in zip(row, terms, strict=True) if c]
        rows.append(sum(parts[1:], start=parts[0]))
    return rows


def points(b: np.ndarray, window: Array, outputs: int) -> list[Array]:
    """B^T x: the planes (tiles, h, w, c) of each point, for a window (b, d, h, w, c)."""
    last = window.shape[1] - len(b) + 1
    taken = [lax.slice_in_dim(window, i, i + last, outputs, axis=1) for i in range(len(b))]
    return combined(b, [t.reshape(-1, *t.shape[2:]) for t in taken])


def _method(taps: int) -> Method:
    outputs = TILES[taps]
    a, g, b = matrices(outputs, taps)

    def prepare(w: Array) -> Array:
        return jnp.tensordot(g.astype(w.dtype), w, axes=1, precision=lax.Precision.HIGHEST)

    def forward(window: Array, w: Array, geometry: Geometry) -> Array:
        tiles = points(b, window, outputs)
        products = [plane_conv(v, w[i], geometry) for i, v in enumerate(tiles)]
        y = jnp.stack(combined(a, products), axis=1)
        batch, _, *plane = window.shape[0], *y.shape[1:]
        return y.reshape(batch, -1, *plane)

    def gradient(window: Array, dy: Array, kernel: tuple[int, ...], geometry: Geometry) -> Array:
        dy = dy.reshape(-1, outputs, *dy.shape[2:])
        gradients = combined(a.T, [dy[:, i] for i in range(outputs)])
        pairs = zip(points(b, window, outputs), gradients, strict=True)
        return jnp.stack([plane_gradient(v, d, kernel[1:3], geometry) for v, d in pairs])

    def scratch(kernel: tuple[int, ...], columns: int, strides: tuple[int, ...]) -> int:
        _, kh, kw, c, f = kernel
        return len(b) * (c + f) // outputs + kw * c + kh * f

    return Method(prepare, forward, gradient, scratch, scratch, outputs, rows=few_rows)


_METHODS = {taps: _method(taps) for taps in TILES}


def fits(w: Array, geometry: Geometry) -> bool:
    """3, 5 or 7 taps along the first axis, without stride or dilation there, and one group."""
    return (
        w.shape[0] in TILES
        and geometry.strides[0] == geometry.dilation[0] == 1
        and geometry.groups == 1
    )


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any strides, dilation and padding along the axes after the first."""
    if not fits(w, geometry):
        raise UnsupportedError(
            "conv",
            f"implementation='winograd' for kernel {w.shape[:-2]}, strides {geometry.strides}, "
            f"dilation {geometry.dilation} and {geometry.groups} groups",
            "3, 5 or 7 taps along the first axis, no stride or dilation there, one group",
            "Use implementation='xla', or None to choose",
        )
    return blocked.conv(_METHODS[w.shape[0]], x, w, geometry, first=0)
