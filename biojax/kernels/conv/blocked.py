"""Convolution and its transpose by blocks: the frame that the methods for the CPU share.

A method knows how one block of outputs comes from its window and how one block's part of the
weights' gradient does. All else is here: the input's gradient of a convolution is a transposed
convolution and the other way round, and every gradient runs by blocks as the output does, so no
array of patches is ever whole.

A convolution strided by s is adjoint to one that puts s outputs between two inputs. Each of these
s phases is a convolution without stride, by every s-th tap of the kernel (Dumoulin and Visin,
"A guide to convolution arithmetic for deep learning", 2016, section 4; Shi et al., "Is the
deconvolution layer the same as a convolutional layer?", 2016).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.conv import bilinear
from biojax.kernels.conv.bilinear import adjoint
from biojax.kernels.conv.blocks import Cut, map_blocks, plan, sum_blocks
from biojax.kernels.conv.geometry import Geometry, dilated, out_size
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import varying
from biojax.typing import Array

__all__ = ["Method", "conv", "conv_transpose"]


class Method(NamedTuple):
    """One way to compute a block; arrays (b, d, h, w, c) in the dtype that sums are held in.

    Args:
      prepare: kernel (kd, kh, kw, c // g, f) to the form that `forward` wants; linear.
      forward: (window, prepared kernel, geometry) to the outputs. The window holds its own zeros
        along the depth, and along the height where that is cut; the geometry's pads are the others.
      gradient: (window, gradient of the outputs, kernel's shape, geometry) to the gradient of the
        prepared kernel.
      scratch: (kernel's shape, columns of the output, strides) to the numbers that `forward` holds
        on the way for each output pixel; without any the image is one block.
      gradient_scratch: the same for `gradient`.
      tile: the depth of a block is a multiple of this.
      apart: as in `map_blocks`.
      rows: (kernel's shape, columns of the output) to the most rows of a block in `forward`, where
        outputs are as far apart as pixels; None for any.
    """

    prepare: Callable[[Array], Array]
    forward: Callable[[Array, Array, Geometry], Array]
    gradient: Callable[[Array, Array, tuple[int, ...], Geometry], Array]
    scratch: Callable[[tuple[int, ...], int, tuple[int, ...]], int]
    gradient_scratch: Callable[[tuple[int, ...], int, tuple[int, ...]], int]
    tile: int = 1
    apart: bool = False
    rows: Callable[[tuple[int, ...], int], int | None] = lambda kernel, columns: None


def conv(method: Method, x: Array, w: Array, geometry: Geometry, first: int = 1) -> Array:
    """(b, *spatial, c) and (*k, c // g, f) to (b, *out, f).

    The first of fewer than three spatial axes is taken for the height (1) or for the depth (0), and
    the second for the width, along which blocks are whole.
    """
    places = _places(x, first)
    y = bilinear.convolve(_maps(method), *_lifted(x, w, geometry, places))
    return y.reshape(y.shape[0], *(y.shape[1 + place] for place in places), y.shape[-1])


def conv_transpose(method: Method, x: Array, w: Array, geometry: Geometry) -> Array:
    """The same for a transposed convolution, whose pads are around x already spread out."""
    places = _places(x, 1)
    y = bilinear.conv_transpose(_maps(method), *_lifted(x, w, geometry, places))
    return y.reshape(y.shape[0], *(y.shape[1 + place] for place in places), y.shape[-1])


@cache
def _maps(method: Method) -> bilinear.Maps:
    steps = (_convolve, _transposed, _weight_gradient)
    return bilinear.Maps(*[partial(step, method) for step in steps])


def _convolve(method: Method, x: Array, w: Array, geometry: Geometry) -> Array:
    wide = accumulator(x.dtype)
    cuts, out = _cuts(method, method.scratch, x, w.shape, geometry, method.rows)
    inner = _inner(geometry, cuts)
    prepared = method.prepare(w.astype(wide))

    def compute(window: Array) -> Array:
        return method.forward(window.astype(wide), prepared, inner).astype(x.dtype)

    return map_blocks(compute, x, cuts, jax.ShapeDtypeStruct(out, x.dtype), method.apart)


def _transposed(
    method: Method, y: Array, w: Array, geometry: Geometry, spatial: tuple[int, ...]
) -> Array:
    wide = accumulator(y.dtype)
    w, geometry = _undilated(w, geometry)
    strides = geometry.strides
    axes = [
        _phases(*each)
        for each in zip(w.shape[:3], strides, geometry.dilation, geometry.pads, strict=True)
    ]
    before = [max(p.span - p.ahead for p in axis) for axis in axes]
    extent = [b + 1 + max(p.ahead for p in axis) for b, axis in zip(before, axes, strict=True)]
    coarse = [-(-n // s) for n, s in zip(spatial, strides, strict=True)]
    mirrored = adjoint(w.astype(wide), geometry.groups)
    held = method.scratch(mirrored.shape, coarse[2], (1, 1, 1)) or _widened(
        y, mirrored.shape, (1, 1, 1)
    )
    if max(strides) > 1:
        held += 2 * math.prod(strides) * mirrored.shape[-1]
    out, size = (y.shape[0], *coarse), wide.itemsize
    cuts = plan(
        out,
        (1, 1),
        extent[:2],
        before[:2],
        held * size,
        w.size * size,
        method.tile,
        method.rows(mirrored.shape, coarse[2]),
    )

    def phases(window: Array, group: Sequence[Sequence["_Phase"]]) -> list[Array]:
        """One of every `strides` outputs along each axis, for phases that see the same pixels."""
        at = group[0]
        beyond = (p.ahead - p.span >= n for p, n in zip(at, y.shape[1:4], strict=True))
        if any(p.taps == 0 for p in at) or any(beyond):
            zeros = jnp.zeros((*(cut.size for cut in cuts), coarse[2], mirrored.shape[-1]), wide)
            return [zeros] * len(group)
        pads = [(0, 0)] * 3
        for axis, (p, b, e) in enumerate(zip(at, before, extent, strict=True)):
            n = window.shape[axis + 1]
            if axis < (2 if cuts[2].parts > 1 else 1):
                start = b + p.ahead - p.span
                window = lax.slice_in_dim(
                    window, start, n - (e - 1) + p.span + start, axis=axis + 1
                )
            else:
                pads[axis] = (p.span - p.ahead, coarse[axis] + p.ahead - n)
        inner = geometry._replace(strides=(1, 1, 1), pads=tuple(pads))
        kernel = jnp.concatenate([_taps_of(mirrored, strides, at) for at in group], axis=-1)
        return jnp.split(method.forward(window, method.prepare(kernel), inner), len(group), axis=-1)

    def compute(window: Array) -> Array:
        window, groups, parts = window.astype(wide), {}, {}
        for at in itertools.product(*axes):
            same = tuple((p.taps, p.span, p.ahead) for p in at) if geometry.groups == 1 else at
            groups.setdefault(same, []).append(at)
        for group in groups.values():
            parts |= zip(group, phases(window, group), strict=True)
        return _interleaved([parts[at].astype(y.dtype) for at in itertools.product(*axes)], strides)

    out = jax.ShapeDtypeStruct((y.shape[0], *spatial, mirrored.shape[-1]), y.dtype)
    return map_blocks(compute, y, cuts, out, method.apart)


def _weight_gradient(
    method: Method, x: Array, dy: Array, after: Array, kernel: tuple[int, ...], geometry: Geometry
) -> Array:
    wide = accumulator(x.dtype)
    cuts, _ = _cuts(method, method.gradient_scratch, x, kernel, geometry)
    inner = _inner(geometry, cuts)
    _, restore = jax.vjp(method.prepare, varying(jnp.zeros(kernel, wide), x, dy))

    def compute(window: Array, dy: Array) -> Array:
        return method.gradient(window.astype(wide), dy.astype(wide), kernel, inner)

    return restore(sum_blocks(compute, x, dy, cuts, after))[0]


def _places(x: Array, first: int) -> tuple[int, ...]:
    return (0, 1, 2) if x.ndim == 5 else (first, 2)[: x.ndim - 2]


def _lifted(
    x: Array, w: Array, geometry: Geometry, places: tuple[int, ...]
) -> tuple[Array, Array, Geometry]:
    """Fewer spatial axes as three."""

    def three(values: Sequence, one) -> tuple:
        of = dict(zip(places, values, strict=True))
        return tuple(of.get(place, one) for place in range(3))

    x = x.reshape(x.shape[0], *three(x.shape[1:-1], 1), x.shape[-1])
    w = w.reshape(*three(w.shape[:-2], 1), *w.shape[-2:])
    strides, pads, dilation = (
        three(values, one)
        for values, one in (
            (geometry.strides, 1),
            (geometry.pads, (0, 0)),
            (geometry.dilation, 1),
        )
    )
    return x, w, geometry._replace(strides=strides, pads=pads, dilation=dilation)


class _Phase(NamedTuple):
    """Outputs s * j + r of an axis, for one r: sum over m of y[j + ahead - m * d] w[first + s * m].

    span is (taps - 1) * d.
    """

    first: int
    taps: int
    span: int
    ahead: int


def _phases(kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> list[_Phase]:
    phases = []
    for r in range(stride):
        ahead, first = divmod(r + pads[0], stride)
        taps = len(range(first, kernel, stride))
        phases.append(_Phase(first, taps, max(taps - 1, 0) * dilation, ahead))
    return phases


def _taps_of(mirrored: Array, strides: tuple[int, ...], at: Sequence[_Phase]) -> Array:
    """The taps of a phase: counted from the end, since the kernel is mirrored."""
    kernel = zip(mirrored.shape[:3], strides, at, strict=True)
    return mirrored[tuple(slice((k - 1 - p.first) % s, None, s) for k, s, p in kernel)]


def _undilated(w: Array, geometry: Geometry) -> tuple[Array, Geometry]:
    """Zeros between the taps in place of dilation, along axes that have strides too."""
    both = [s > 1 and d > 1 for s, d in zip(geometry.strides, geometry.dilation, strict=True)]
    between = [d - 1 if b else 0 for b, d in zip(both, geometry.dilation, strict=True)]
    if any(both):
        w = lax.pad(w, jnp.zeros((), w.dtype), [(0, 0, n) for n in (*between, 0, 0)])
    dilation = tuple(1 if b else d for b, d in zip(both, geometry.dilation, strict=True))
    return w, geometry._replace(dilation=dilation)


def _interleaved(parts: Sequence[Array], strides: tuple[int, ...]) -> Array:
    """Phases (b, d, h, w, c), the last axis' first, put between each other."""
    if len(parts) == 1:
        return parts[0]
    b, *spatial, c = parts[0].shape
    y = jnp.stack(parts, axis=-2).reshape(b, *spatial, *strides, c)
    y = y.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(b, *(n * s for n, s in zip(spatial, strides, strict=True)), c)


def _cuts(
    method: Method,
    scratch: Callable,
    x: Array,
    w: tuple[int, ...],
    geometry: Geometry,
    rows: Callable = lambda kernel, columns: None,
) -> tuple[list[Cut], tuple[int, ...]]:
    """The blocks of a convolution, and the shape of its output."""
    extent = dilated(w[:-2], geometry.dilation)
    sizes = zip(x.shape[1:-1], geometry.pads, extent, geometry.strides, strict=True)
    out = (x.shape[0], *(out_size(*each) for each in sizes))
    before = [pad[0] for pad in geometry.pads[:2]]
    size = accumulator(x.dtype).itemsize
    held = (scratch(w, out[-1], geometry.strides) or _widened(x, w, geometry.strides)) * size
    weights = math.prod(w) * size
    most = rows(w, out[-1]) if max(geometry.strides) == 1 else None
    cuts = plan(out, geometry.strides[:2], extent[:2], before, held, weights, method.tile, most)
    return cuts, (*out, w[-1])


def _widened(x: Array, w: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Numbers of both images for each output, if they are held in a wider dtype than their own."""
    return x.shape[-1] * math.prod(strides) + w[-1] if accumulator(x.dtype) != x.dtype else 0


def _inner(geometry: Geometry, cuts: Sequence[Cut]) -> Geometry:
    """The geometry within a window, which has its zeros along what is cut already."""
    return geometry._replace(
        pads=((0, 0), (0, 0) if cuts[2].parts > 1 else geometry.pads[1], geometry.pads[2])
    )
