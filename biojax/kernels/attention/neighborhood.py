"""Neighbourhood attention: what is asked, checked and chosen."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from jax import lax

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.attention import neighborhood_blocked, neighborhood_xla
from biojax.kernels.attention.checks import check_images, for_each_axis, scaled
from biojax.kernels.attention.neighbors import Axis, part_of, with_halo
from biojax.kernels.axes import per_axis
from biojax.kernels.dispatch import select
from biojax.kernels.meshes import left_to_compiler
from biojax.typing import Array, IntOrTuple, Precision

__all__ = ["neighborhood_attention"]

# Of so many voxels all scores are few.
FEW = 256


def neighborhood_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    stride: IntOrTuple = 1,
    is_causal: bool | Sequence[bool] = False,
    scale: float | Array | None = None,
    axis_names: Sequence[str | None] | None = None,
    precision: Precision = None,
    implementation: str | None = None,
) -> Array:
    """Attention in which each voxel sees those around it.

    p[i, j] = softmax over the j in window(i) of  scale * <query[i], key[j]>
    y[i]    = sum over the j in window(i) of  p[i, j] * value[j]

    for each head. A window is the product of one interval along each axis: `kernel_size` keys,
    `dilation` apart, with the query in the middle or, if the number is even, half of them before
    it. At the edges it is shifted inside, so that all queries see as many keys. With dilation a
    query sees voxels of its own residue class only, whose edges count.

    Args:
      query: images, (b, *spatial, n, k) with one to three spatial axes.
      key: as query.
      value: (b, *spatial, n, v).
      kernel_size: keys along each axis, or one number for all.
      dilation: voxels from one key to the next, likewise.
      stride: queries in a row that share a window, that of the one in their middle; at most
        kernel_size. With stride = kernel_size windows do not overlap, but for the last.
      is_causal: whether keys after the query are hidden, for each axis or for all. The window then
        ends at the query, and is cut off at the first voxel; queries that share one share its
        beginning, which is that of the last of them.
      scale: 1 / sqrt(k) if None; an array of no axes is multiplied into query.
      axis_names: inside of `jax.shard_map`, the axes of the mesh over which the spatial ones are
        spread, None for those that are not. Arrays are this device's part.
      precision: passed to both products, as in `jax.lax`.
      implementation: "xla", "blocked", or None to choose.

    Returns:
      (b, *spatial, n, v), of query's dtype.

    Raises:
      ShapeError: the arrays do not fit together; a kernel that, dilated, is larger than the image;
        a stride above the kernel's size; parts that are smaller than what they need of their
        neighbours, at most (kernel_size - 1) * dilation voxels.
      ConfigError: an unknown implementation; axis_names that are of no mesh here.

    The softmax is computed in at least float32. "xla" keeps all scores, voxels^2 for each head;
    "blocked" computes tile by tile, also its gradients, which are in reverse mode, and its memory
    beside some copies of the arrays does not depend on their size. Over devices, keys and values
    at the edges of parts are sent to the neighbours.
    Source: Hassani et al., "Neighborhood attention transformer", CVPR 2023, section 3; dilation:
    Hassani and Shi, "Dilated neighborhood attention transformer", 2022, section 3; causal: Hassani
    et al., "Faster neighborhood attention", NeurIPS 2024, section 3; stride: Hassani et al.,
    "Generalized neighborhood attention", 2025, section 3.

    >>> import jax.numpy as jnp
    >>> q = k = jnp.zeros((1, 5, 1, 1))
    >>> v = jnp.arange(5.0).reshape(1, 5, 1, 1)
    >>> neighborhood_attention(q, k, v, kernel_size=3).ravel()
    Array([1., 1., 2., 3., 3.], dtype=float32)
    >>> neighborhood_attention(q, k, v, kernel_size=3, is_causal=True).ravel()
    Array([0. , 0.5, 1. , 2. , 3. ], dtype=float32)
    """
    where = "neighborhood_attention"
    check_images("neighborhood_attention", query, key, value)
    sizes = query.shape[1:-2]
    names = for_each_axis(axis_names, len(sizes))
    causal = for_each_axis(is_causal, len(sizes))
    is_bool = all(isinstance(each, bool | np.bool_) for each in causal)
    if not (len(names) == len(causal) == len(sizes) and is_bool):
        raise ShapeError(
            where,
            f"is_causal={is_causal!r} and axis_names={axis_names!r} for an image of {sizes}",
            f"a bool and a name or None for each of the {len(sizes)} axes",
            "Give as many as there are spatial axes",
        )
    kernel, dilation, stride = (
        per_axis(where, name, value, len(sizes))
        for name, value in (
            ("kernel_size", kernel_size),
            ("dilation", dilation),
            ("stride", stride),
        )
    )
    parts = [_parts(where, name) for name in names]
    whole = [n * p for n, p in zip(sizes, parts, strict=True)]
    _check_windows(whole, kernel, dilation, stride)
    axes = tuple(map(Axis, whole, kernel, dilation, stride, map(bool, causal), names, parts))
    halo = [part_of(where, axis) for axis in axes]
    key, value = (with_halo(x, axes, halo) for x in (key, value))
    query, scale = scaled(where, query, scale)
    implementations = {
        "xla": neighborhood_xla.neighborhood_attention,
        "blocked": neighborhood_blocked.neighborhood_attention,
    }
    run = select(where, implementations, implementation, partial(_rule, sizes))
    return left_to_compiler(partial(_run, run, axes, scale, precision), query, key, value)


def _parts(where: str, name: str | None) -> int:
    try:
        return 1 if name is None else lax.axis_size(name)
    except NameError as error:
        raise ConfigError(
            where,
            f"{name!r} in axis_names",
            "an axis of the mesh of a surrounding jax.shard_map",
            "Call it inside of jax.shard_map, or leave axis_names out",
        ) from error


def _run(run, axes, scale, precision, query, key, value) -> Array:
    return run(query, key, value, axes, scale, precision)


def _rule(sizes: Sequence[int]) -> tuple[str, str]:
    voxels = math.prod(sizes)
    if voxels <= FEW:
        return "xla", f"{voxels} voxels have few scores"
    return "blocked", f"{voxels} voxels have too many scores to keep"


def _check_windows(
    sizes: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]
) -> None:
    where = "neighborhood_attention"
    fits = tuple(n // d for n, d in zip(sizes, dilation, strict=True))
    if any(k > n for k, n in zip(kernel, fits, strict=True)):
        least = tuple(map(min, kernel, fits))
        raise ShapeError(
            where,
            f"kernel_size={kernel} and dilation={dilation} for an image of {tuple(sizes)}",
            "kernel_size * dilation of at most the size of the image along each axis",
            "Choose smaller windows, or larger images",
            f"kernel_size={least}" if min(least) else None,
        )
    if any(s > k for s, k in zip(stride, kernel, strict=True)):
        raise ShapeError(
            where,
            f"stride={stride} for kernel_size={kernel}",
            "queries that share a window to lie in it: a stride of at most kernel_size",
            "Choose smaller strides",
            f"stride={tuple(map(min, stride, kernel))}",
        )
