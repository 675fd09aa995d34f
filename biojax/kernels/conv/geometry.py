"""Strides, dilation and padding, written out for every spatial axis."""

from collections.abc import Sequence
from operator import index
from typing import NamedTuple

import numpy as np
from jax import lax

from biojax.errors import ShapeError
from biojax.typing import Array, Padding, Precision

__all__ = [
    "Geometry",
    "Pads",
    "conv_pads",
    "cropped",
    "dilated",
    "out_size",
    "pad",
    "transpose_pads",
]

Pads = tuple[tuple[int, int], ...]


class Geometry(NamedTuple):
    """What every implementation is told, written out for each spatial axis."""

    strides: tuple[int, ...]
    pads: Pads
    dilation: tuple[int, ...]
    groups: int
    precision: Precision


def dilated(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """The extent of a kernel whose taps are `dilation` apart.

    >>> dilated((3, 5), (2, 1))
    (5, 5)
    """
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def conv_pads(
    where: str,
    padding: Padding,
    spatial: Sequence[int],
    extent: Sequence[int],
    strides: Sequence[int],
) -> Pads:
    """Zeros before and after each axis, for a window of `extent`.

    "SAME" gives ceil(n / stride) outputs, the odd zero at the end, as in TensorFlow and Flax.

    Raises:
      ShapeError: an unknown name, or not one pair per axis.
    """
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise _padding_error(where, padding, len(spatial))
        return tuple(lax.padtype_to_pads(spatial, extent, strides, padding.upper()))
    return _explicit(where, padding, len(spatial))


def transpose_pads(
    where: str, padding: Padding, extent: Sequence[int], strides: Sequence[int]
) -> Pads:
    """Zeros before and after each axis of the input already spread out by `strides`.

    "SAME" gives n * stride outputs, "VALID" n * stride + max(k - stride, 0), as in
    `jax.lax.conv_transpose`.
    """
    if not isinstance(padding, str):
        return _explicit(where, padding, len(extent))
    if padding.upper() not in ("SAME", "VALID"):
        raise _padding_error(where, padding, len(extent))
    pads = []
    for k, s in zip(extent, strides, strict=True):
        if padding.upper() == "VALID":
            total, before = k + s - 2 + max(k - s, 0), k - 1
        else:
            total = k + s - 2
            before = k - 1 if s > k - 1 else -(-total // 2)
        pads.append((before, total - before))
    return tuple(pads)


def out_size(size: int, pad: tuple[int, int], extent: int, stride: int) -> int:
    """How many windows fit along one axis."""
    return (size + sum(pad) - extent) // stride + 1


def pad(x: Array, pads: Pads, value: float = 0.0) -> Array:
    """Fill around the spatial axes of (b, *spatial, c); negative widths crop."""
    widths = [(0, 0, 0), *((before, after, 0) for before, after in pads), (0, 0, 0)]
    return lax.pad(x, np.asarray(value, x.dtype), widths)


def cropped(x: Array, pads: Pads) -> tuple[Array, Pads]:
    """Crop where pads are negative; the image and the pads that remain.

    XLA's own convolution on CPU (jaxlib 0.10.2) answers wrongly for pads such as (-1, 1).
    """
    if min(width for pair in pads for width in pair) >= 0:
        return x, pads
    x = pad(x, tuple((min(before, 0), min(after, 0)) for before, after in pads))
    return x, tuple((max(before, 0), max(after, 0)) for before, after in pads)


def _explicit(where: str, padding: int | Sequence[tuple[int, int]], rank: int) -> Pads:
    if isinstance(padding, int | np.integer):
        return ((int(padding), int(padding)),) * rank
    try:
        pads = tuple((index(before), index(after)) for before, after in padding)
    except (TypeError, ValueError):
        raise _padding_error(where, padding, rank) from None
    if len(pads) != rank:
        raise _padding_error(where, padding, rank)
    return pads


def _padding_error(where: str, padding: object, rank: int) -> ShapeError:
    return ShapeError(
        where,
        f"padding={padding!r}",
        f"'SAME', 'VALID', one integer, or {rank} pairs (before, after)",
        "Write the padding in one of these forms",
    )
