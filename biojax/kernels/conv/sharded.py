"""Convolution of images that are spread over devices, by batch and by space.

What runs on each device is the convolution of its own part, and of a halo of the neighbours'
pixels where parts see beyond their edges; what a device sends depends on the kernel and not on
the image. XLA's partitioner does this for its own convolution without groups. Others it would
gather: it is told here how to share them, by `jax.experimental.custom_partitioning`.

A part begins at a whole output. So an axis is shared if its pixels are `stride` times its outputs
and these divide by the devices; else it is gathered, as channels and weights are.

Images of a `vmap` are one longer batch. If weights are mapped too, or each image's gradient of them
is wanted, the compiler is not told how to share, and gathers as it likes.

A program for several devices calls back into Python while it is compiled (JAX 0.10). So
`jax.export` refuses it, though not one for a single device, and the persistent compilation cache
does not find it again. `jax_remove_custom_partitioning_ptr_from_cache_key` is to stay off: with it
the cache would mistake convolutions for each other that have the same shapes and differ in their
padding, say.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from biojax.kernels.conv.geometry import Geometry, dilated, out_size
from biojax.typing import Array

__all__ = [
    "Axis",
    "Split",
    "axes_of",
    "over_devices",
    "window_of_outputs",
    "window_of_pixels",
]


class Axis(NamedTuple):
    """A spatial axis, where output o sees `extent` pixels from o * stride - low on."""

    pixels: int
    outputs: int
    stride: int
    extent: int
    low: int

    @property
    def divides(self) -> bool:
        """Whether parts of the pixels are parts of the outputs."""
        return self.pixels == self.stride * self.outputs > 0


class Split(NamedTuple):
    """How an array's axis is split over axes of the mesh.

    Args:
      names: of these axes, the slowest first.
      ranks: for each part, where `ppermute` counts its device: it takes several axes in the order
        of the mesh, whatever the order of the names.
    """

    names: tuple[str, ...] = ()
    ranks: tuple[int, ...] = (0,)

    @property
    def parts(self) -> int:
        """Into how many parts."""
        return len(self.ranks)


def axes_of(spatial: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> list[Axis]:
    """Each axis of a convolution of images of size `spatial`; kernel is (*k, c // g, f)."""
    extent = dilated(kernel[:-2], geometry.dilation)
    return [
        Axis(n, out_size(n, pads, e, s), s, e, pads[0])
        for n, pads, e, s in zip(spatial, geometry.pads, extent, geometry.strides, strict=True)
    ]


def window_of_pixels(
    x: Array, geometry: Geometry, axes: Sequence[Axis], splits: Sequence[Split]
) -> tuple[Array, Geometry]:
    """The pixels that a device's outputs see, and the geometry of its own convolution."""
    pads = list(geometry.pads)
    for i, (axis, split) in enumerate(zip(axes, splits, strict=True)):
        if split.parts > 1:
            x = _with_halo(x, i + 1, split, axis.low, axis.extent - axis.stride - axis.low)
            pads[i] = (0, 0)
    return x, geometry._replace(pads=tuple(pads))


def window_of_outputs(
    y: Array, geometry: Geometry, axes: Sequence[Axis], splits: Sequence[Split]
) -> tuple[Array, Geometry, tuple[int, ...]]:
    """The outputs that see a device's pixels, the geometry, and the size of its part in pixels.

    Pixel p is seen by the outputs from (p + low - extent + 1) / stride to (p + low) / stride.
    """
    pads, spatial = list(geometry.pads), [axis.pixels for axis in axes]
    for i, (axis, split) in enumerate(zip(axes, splits, strict=True)):
        if split.parts > 1:
            before, after = (axis.extent - 1 - axis.low) // axis.stride, -(-axis.low // axis.stride)
            y = _with_halo(y, i + 1, split, before, after)
            spatial[i] //= split.parts
            low = axis.low + before * axis.stride
            pads[i] = (low, (y.shape[i + 1] - 1) * axis.stride + axis.extent - spatial[i] - low)
    return y, geometry._replace(pads=tuple(pads)), tuple(spatial)


def over_devices(
    share: Callable[[Sequence[Split]], Callable[..., Array]],
    roles: str,
    axes: Sequence[Axis],
    *arrays: Array,
) -> Array:
    """Call share(splits)(*arrays), each device with its own parts.

    Args:
      share: takes a `Split` of the batch and of each spatial axis; gives what one device does.
        Split nowhere, that is the whole.
      roles: what the arrays are and the result, such as "xw->y": "x" images of pixels, "y" images
        of outputs, "w" weights. Weights as a result are to be summed over the splits.
      axes: the spatial axes.
      *arrays: images (b, *spatial, c) and weights.
    """
    whole = share([Split()] * (1 + len(axes)))
    mesh = jax.sharding.get_abstract_mesh()
    if any(kind != AxisType.Auto for kind in mesh.axis_types):  # not the compiler's to share
        return whole(*arrays)
    operands, result = roles.split("->")
    image = (operands + result).index("y" if result == "y" else "x")

    def partition(mesh: Mesh, arrays, out):
        mesh = _refined(mesh)
        splits = _splits(mesh, (*arrays, out)[image], axes)
        spec = [split.names or None for split in splits]
        images = NamedSharding(mesh, PartitionSpec(*spec, None))
        weights = NamedSharding(mesh, PartitionSpec())
        of = {"x": images, "y": images, "w": weights}
        return mesh, share(splits), of[result], tuple(of[role] for role in operands)

    call = custom_partitioning(jax.jit(whole))  # jit keeps constants, which are no operands
    rule = _rule(operands, result, axes)
    call.def_partition(partition, decode_shardings=False, sharding_rule=rule)
    call = custom_vmap(call)

    @call.def_vmap
    def _(size, batched, *arrays):
        if result != "w" and list(batched) == [role != "w" for role in operands]:
            folded = [
                array.reshape(size * array.shape[1], *array.shape[2:]) if is_batched else array
                for array, is_batched in zip(arrays, batched, strict=True)
            ]
            images = over_devices(share, roles, axes, *folded)
            return images.reshape(size, images.shape[0] // size, *images.shape[1:]), True
        in_axes = [0 if is_batched else None for is_batched in batched]
        return jax.vmap(whole, in_axes, axis_size=size)(*arrays), True

    return call(*arrays)


def _refined(mesh: Mesh) -> Mesh:
    """An axis for each prime factor, for the compiler also splits over a part of an axis."""
    sizes = [prime for n in mesh.devices.shape for prime in _primes(n)]
    return Mesh(mesh.devices.reshape(sizes), tuple(f"axis{i}" for i in range(len(sizes))))


def _primes(n: int) -> list[int]:
    least = next((p for p in range(2, n + 1) if n % p == 0), n)
    return [least, *_primes(n // least)] if n > 1 else []


def _splits(mesh: Mesh, image: jax.ShapeDtypeStruct, axes: Sequence[Axis]) -> list[Split]:
    """How an image is split along batch and space, but for what does not divide.

    The part that a device holds is to be linear in where the device stands along the mesh's axes.
    """
    sizes = [image.shape[0], *(axis.outputs if axis.divides else 0 for axis in axes)]
    try:
        part = image.sharding.shard_shape(image.shape)
        index = image.sharding.devices_indices_map(image.shape)
    except ValueError:  # uneven parts
        return [Split()] * len(sizes)
    grid, splits = np.indices(mesh.devices.shape), []
    for axis, size in enumerate(sizes):
        starts = [index[device][axis].start or 0 for device in mesh.devices.flat]
        place = np.reshape(starts, mesh.devices.shape) // max(part[axis], 1)
        steps = [int(place[tuple(unit)]) for unit in np.eye(place.ndim, dtype=int)]
        used = sorted((k for k, step in enumerate(steps) if step), key=lambda k: -steps[k])
        one = place[tuple(slice(None) if k in used else 0 for k in range(place.ndim))].ravel()
        regular = np.array_equal(place, np.tensordot(steps, grid, axes=1))
        if regular and size and size % one.size == 0:
            names = tuple(mesh.axis_names[k] for k in used)
            splits.append(Split(names, tuple(np.argsort(one).tolist())))
        else:
            splits.append(Split())
    return splits


def _rule(operands: str, result: str, axes: Sequence[Axis]) -> SdyShardingRule:
    """Which axes go together. Shared: the batch b, and the outputs o with their pixels (o, s)."""
    pixels, outputs, sizes = [], [], {}
    for i, axis in enumerate(axes):
        if axis.divides and axis.stride > 1:
            sizes[f"s{i}"] = axis.stride
            pixels.append(CompoundFactor(f"o{i}", f"s{i}"))
        else:
            pixels.append(f"o{i}" if axis.divides else f"p{i}")
        outputs.append(f"o{i}" if axis.divides else f"q{i}")
    weights = [f"k{i}" for i in range(len(axes) + 2)]
    of = {"x": ["b", *pixels, "c"], "y": ["b", *outputs, "f"], "w": weights}
    dims = [dim for role in operands + result for dim in of[role]]
    names = dict.fromkeys(n for dim in dims for n in ((dim,) if isinstance(dim, str) else dim))
    summed = [name for name in names if name[0] in "bo"] if result == "w" else []
    moved = [name for name in names if name[0] == "o" and not summed]
    return SdyShardingRule(
        tuple(ArrayMapping(*of[role]) for role in operands),
        (ArrayMapping(*of[result]),),
        reduction_factors=tuple(summed),
        permutation_factors=tuple(moved),
        need_replication_factors=tuple(name for name in names if name[0] not in "bo"),
        **sizes,
    )


def _with_halo(x: Array, axis: int, split: Split, before: int, after: int) -> Array:
    """A device's part of an axis with more of it at both ends, or less; zeros beyond the image."""
    n = x.shape[axis]
    pieces = []
    for away in range(-before // n, -(-(n + after) // n)):
        first, end = max(-before, away * n), min(n + after, (away + 1) * n)
        piece = lax.slice_in_dim(x, first - away * n, end - away * n, axis=axis)
        if away:
            sent = [(i, i - away) for i in range(split.parts) if 0 <= i - away < split.parts]
            ranks = [(split.ranks[i], split.ranks[j]) for i, j in sent]
            piece = lax.ppermute(piece, split.names, ranks)
        pieces.append(piece)
    return jnp.concatenate(pieces, axis) if len(pieces) > 1 else pieces[0]
