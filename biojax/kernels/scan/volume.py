"""Images as sequences: their voxels along an order, and scans along several orders.

Raster orders are transpositions. Curves are gathered by tables, which lie in the compiled program;
the gradient of a gather would be a scatter, but that of a permutation is the inverse one.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.errors import ConfigError, ShapeError, nearest
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import left_to_compiler
from biojax.kernels.scan.curves import checked
from biojax.kernels.scan.orders import Order, parse, permuted
from biojax.typing import Array

__all__ = ["scan_volume", "traverse", "untraverse"]

Scan = Callable[[Array], Array]


def traverse(x: Array, order: str) -> Array:
    """The voxels of images as sequences, in the order in which they are visited.

    y[b, t, c] = x[b, p_t, c],   p_t the voxel visited at step t

    Args:
      x: images, (b, *spatial, c) with one to three spatial axes.
      order: letters of the axes, slowest first ("zyx": raster order; "xy" in 2-D), or "snake",
        "morton" or "hilbert"; a leading "-" walks backwards. See `permutation`.

    Returns:
      (b, t, c), of x's dtype. Curves differentiate in reverse only.

    Raises:
      ShapeError: x has no or too many spatial axes, or no voxel.
      ConfigError: no order of that name for as many axes.

    Raster orders need no memory beside x and y. A curve has two tables of 4 bytes a voxel, there
    and back. Every program holds those of its curves, the second one for gradients or if it goes
    back: 1 GB a curve for 512^3 voxels. For the next call those of the last curve are kept, with
    4 bytes a voxel more: 1.6 GB; they take several times that while they are made.

    >>> x = jnp.arange(6).reshape(1, 2, 3, 1)
    >>> traverse(x, "xy")[0, :, 0].tolist()
    [0, 3, 1, 4, 2, 5]
    >>> traverse(x, "-snake")[0, :, 0].tolist()
    [3, 4, 5, 2, 1, 0]
    """
    _check("traverse", x)
    return left_to_compiler(partial(_traverse, order=parse("traverse", order, x.ndim - 2)), x)


def untraverse(y: Array, order: str, spatial: Sequence[int]) -> Array:
    """Sequences put back where their steps were taken: the inverse of `traverse`.

    x[b, p_t, c] = y[b, t, c],   p_t the voxel visited at step t

    Args:
      y: sequences, (b, t, c).
      order: as in `traverse`.
      spatial: size of each of the one to three spatial axes; their product is t.

    Returns:
      Images (b, *spatial, c), of y's dtype. Curves differentiate in reverse only.

    Raises:
      ShapeError: y is not (b, t, c) with as many steps as spatial has voxels.
      ConfigError: no order of that name for as many axes.

    >>> y = jnp.arange(6).reshape(1, 6, 1)
    >>> untraverse(y, "xy", (2, 3))[0, ..., 0].tolist()
    [[0, 2, 4], [1, 3, 5]]
    """
    sizes = checked("untraverse", spatial)
    if y.ndim != 3 or y.shape[1] != math.prod(sizes):
        raise ShapeError(
            "untraverse",
            f"y of shape {y.shape} and spatial={sizes}",
            f"(b, {math.prod(sizes)}, c)",
            "Give the size that the image had before it was traversed",
        )
    parsed = parse("untraverse", order, len(sizes))
    return left_to_compiler(partial(_untraverse, order=parsed, spatial=sizes), y)


def scan_volume(
    x: Array,
    scan: Scan | Sequence[Scan],
    orders: str | Sequence[str],
    *,
    merge: str | Callable[[list[Array]], Array] = "mean",
) -> Array:
    """Scan images along several orders, and merge what is found at each voxel.

    y = merge over i of  untraverse(scan_i(traverse(x, order_i)), order_i)

    Args:
      x: images, (b, *spatial, c) with one to three spatial axes.
      scan: sequences (b, t, c) to sequences (b, t, f); one for all orders, or one for each.
      orders: one or several, as in `traverse`; see `raster_orders` and `cross_scan_orders`.
      merge: "mean" or "sum" over the orders, added up in at least float32; "concatenate" along the
        channels; or a function of the list of images (b, *spatial, f).

    Returns:
      (b, *spatial, f), of the scans' dtype, with f times the number of orders if concatenated; or
      whatever the function merges to.

    Raises:
      ShapeError: x has no or too many spatial axes, or no voxel; a scan's output is not (b, t, f);
        outputs to be added up differ in shape.
      ConfigError: no order at all or none of that name, not as many scans as orders, or an unknown
        merge.

    Time and memory are linear in the voxels if those of the scan are linear in t.

    >>> x = jnp.ones((1, 2, 2, 1))
    >>> scan_volume(x, lambda s: jnp.cumsum(s, axis=1), ["yx", "-yx"], merge="sum")[0, ..., 0]
    Array([[5., 5.],
           [5., 5.]], dtype=float32)
    """
    _check("scan_volume", x)
    orders = [orders] if isinstance(orders, str) else list(orders)
    scans = [scan] * len(orders) if callable(scan) else list(scan)
    if not orders or len(scans) != len(orders):
        raise ConfigError(
            "scan_volume",
            f"{len(scans)} scans and {len(orders)} orders",
            "one or more orders, and a scan for all or for each of them",
            "Give as many scans as orders",
        )
    if not callable(merge) and merge not in _MERGES:
        raise ConfigError(
            "scan_volume",
            f"merge={merge!r}",
            f"one of {', '.join(map(repr, _MERGES))}, or a function of the list of images",
            "Name one of these",
            nearest(str(merge), _MERGES),
        )
    results = [_scanned(x, each, order) for each, order in zip(scans, orders, strict=True)]
    return (merge if callable(merge) else _MERGES[merge])(results)


def _traverse(x: Array, order: Order) -> Array:
    b, *spatial, c = x.shape
    if order.curve != "raster":
        return _permute(x.reshape(b, math.prod(spatial), c), order, tuple(spatial), 0)
    y = jnp.transpose(x, _of_image(order)).reshape(b, math.prod(spatial), c)
    return jnp.flip(y, axis=1) if order.backward else y


def _untraverse(y: Array, order: Order, spatial: tuple[int, ...]) -> Array:
    b, _, c = y.shape
    if order.curve != "raster":
        return jnp.reshape(_permute(y, order, spatial, 1), (b, *spatial, c))
    y = jnp.flip(y, axis=1) if order.backward else y
    x = y.reshape(b, *(spatial[axis] for axis in order.axes), c)
    return jnp.transpose(x, np.argsort(_of_image(order)).tolist())


def _of_image(order: Order) -> tuple[int, ...]:
    """The axes of (b, *spatial, c) in that order."""
    return 0, *(axis + 1 for axis in order.axes), len(order.axes) + 1


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _permute(x: Array, order: Order, spatial: tuple[int, ...], which: int) -> Array:
    """Steps from voxels (which = 0), or voxels from steps (which = 1), both (b, t, c)."""
    table = jnp.asarray(permuted(order, spatial)[which])
    table = lax.optimization_barrier(table)  # else XLA computes gathers of constants, slowly
    return jnp.take(x, table, axis=1, mode="clip", unique_indices=True)


def _permute_fwd(x, order, spatial, which):
    return _permute(x, order, spatial, which), None


def _permute_bwd(order, spatial, which, _, dy):
    return (_permute(dy, order, spatial, 1 - which),)


_permute.defvjp(_permute_fwd, _permute_bwd)


def _scanned(x: Array, scan: Scan, order: str) -> Array:
    sequence = traverse(x, order)
    y = scan(sequence)
    shape = getattr(y, "shape", None)
    if shape is None or len(shape) != 3 or shape[:2] != sequence.shape[:2]:
        raise ShapeError(
            "scan_volume",
            f"{type(y).__name__ if shape is None else shape} from the scan along {order!r}",
            f"({sequence.shape[0]}, {sequence.shape[1]}, f)",
            "Let the scan return its outputs alone, without the last state",
        )
    return untraverse(y, order, x.shape[1:-1])


def _sum(images: list[Array], divisor: int = 1) -> Array:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ShapeError(
            "scan_volume",
            f"images of shapes {sorted(shapes)} to add up",
            "one shape",
            "Let the scans have as many outputs, or merge otherwise",
            "merge='concatenate'",
        )
    dtype = jnp.result_type(*images)
    total = functools.reduce(operator.add, (image.astype(accumulator(dtype)) for image in images))
    return (total / divisor if divisor > 1 else total).astype(dtype)


_MERGES: dict[str, Callable[[list[Array]], Array]] = {
    "mean": lambda images: _sum(images, len(images)),
    "sum": _sum,
    "concatenate": lambda images: jnp.concatenate(images, axis=-1),
}


def _check(where: str, x: Array) -> None:
    if not 1 <= x.ndim - 2 <= 3 or 0 in x.shape[1:-1]:
        raise ShapeError(
            where,
            f"x of shape {x.shape}",
            "(b, *spatial, c) with one to three spatial axes, none of them empty",
            "Add a batch axis in front or a channel axis at the end",
        )
