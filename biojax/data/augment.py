"""Augmentation on the device: pure functions of a key and ONE sample, under `jit` and `vmap`.

A sample is a dict with `image` (*spatial, c) and, where there is one, `label`. Geometry moves the
label with the image if it covers the same `*spatial` (with or without channels); a label of lower
rank, such as a class, stays. Other entries are left alone.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.typing import Array, Key

__all__ = ["augment", "random_flip", "random_intensity", "random_rot90"]

_Sample = Mapping[str, Array]


def augment(
    key: Key, batch: _Sample, transforms: Sequence[Callable[[Key, _Sample], _Sample]], *, first=0
) -> _Sample:
    """Apply transforms in order to every sample of a batch, each with a key of its own.

    Sample i has the key fold_in(key, first + i), and transform j of it fold_in(that, j). What
    becomes of a sample therefore does not depend on how the batch is split over devices.

    Args:
      key: one key for the (global) batch; use a new one every step.
      batch: a dict of arrays that share their first axis: image (b, *spatial, c), label (b, ...).
      transforms: functions of (key, sample); give options with `functools.partial`.
      first: position of this batch's first sample in the global batch, where a device or a host
        is handed its own part, as inside `jax.shard_map`; an integer, traced or not.

    Returns:
      A dict of the same shapes and dtypes.

    >>> batch = {"image": jnp.arange(6.0).reshape(2, 3, 1), "label": jnp.arange(6).reshape(2, 3)}
    >>> augment(jax.random.key(0), batch, [random_flip])["label"]
    Array([[2, 1, 0],
           [3, 4, 5]], dtype=int32)
    """

    def one(i, sample):
        sample_key = jax.random.fold_in(key, i)
        for j, transform in enumerate(transforms):
            sample = transform(jax.random.fold_in(sample_key, j), sample)
        return sample

    return jax.vmap(one)(first + jnp.arange(batch["image"].shape[0]), dict(batch))


def random_flip(key: Key, sample: _Sample, axes: Sequence[int] | None = None) -> _Sample:
    """Mirror along each of the spatial axes, independently, with probability 1/2.

    Args:
      key: random key.
      sample: image (*spatial, c) and maybe label.
      axes: spatial axes, negative ones counted from the last (-1 is x); all of them if None.

    Raises:
      ShapeError: an axis that is not spatial, or a label that does not fit the image.
    """
    axes = _spatial_axes("random_flip", sample, axes)
    flips = jax.random.bernoulli(key, shape=(len(axes),))

    def move(x):
        for flip, axis in zip(flips, axes, strict=True):
            x = jnp.where(flip, jnp.flip(x, axis), x)
        return x

    return _move(sample, move)


def random_rot90(key: Key, sample: _Sample, plane: tuple[int, int] = (-2, -1)) -> _Sample:
    """Turn by 0, 90, 180 or 270 degrees in a plane, each with probability 1/4.

    Args:
      key: random key.
      sample: image (*spatial, c) and maybe label.
      plane: two spatial axes of equal length, negative ones counted from the last; the turn is
        from the first towards the second, as in `jnp.rot90`.

    Raises:
      ShapeError: the plane is not square or not two spatial axes, or a label does not fit.
    """
    axes = _spatial_axes("random_rot90", sample, plane)
    sides = tuple(sample["image"].shape[axis] for axis in axes)
    if len(axes) != 2 or sides[0] != sides[1]:
        raise ShapeError(
            "random_rot90",
            f"plane {tuple(plane)} of sides {sides}",
            "two spatial axes of equal length",
            "Crop patches square in the plane, or use random_flip",
        )
    turns = jax.random.randint(key, (), 0, 4)
    rotations = [lambda x, k=k: jnp.rot90(x, k, (axes[0], axes[1])) for k in range(4)]
    return _move(sample, lambda x: jax.lax.switch(turns, rotations, x))


def random_intensity(
    key: Key,
    sample: _Sample,
    scale: float = 0.1,
    shift: float = 0.1,
    gamma: float = 0.0,
    noise: float = 0.0,
) -> _Sample:
    """Change the image's intensities and never the label's.

        y = a r(x) + b + noise n,    r(x) = l + (h - l) ((x - l) / (h - l))^g

    with l and h the least and greatest value of each channel; one a ~ U(1 - scale, 1 + scale),
    b ~ U(-shift, shift) and log g ~ U(-gamma, gamma) for the sample, so that ratios of channels
    survive; and n ~ N(0, 1) for every value. `shift` and `noise` are in units of the image, which
    is taken to be normalised. An option of 0 costs nothing.

    Args:
      key: random key.
      sample: image (*spatial, c), floating.
      scale: greatest relative change of contrast.
      shift: greatest change of brightness.
      gamma: greatest logarithm of the exponent; 0.4 gives exponents in [0.67, 1.5].
      noise: standard deviation of Gaussian noise.

    Raises:
      ShapeError: the image is not floating.
    """
    image = sample["image"]
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ShapeError(
            "random_intensity",
            f"an image of dtype {image.dtype}",
            "a floating dtype",
            "Normalise first, e.g. with biojax.data.zscore",
        )
    scale_key, shift_key, gamma_key, noise_key = jax.random.split(key, 4)
    x = image.astype(jnp.float32)
    if gamma:
        axes = tuple(range(x.ndim - 1))
        low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
        span = jnp.where(high > low, high - low, 1.0)
        exponent = jnp.exp(jax.random.uniform(gamma_key, (), minval=-gamma, maxval=gamma))
        x = low + span * ((x - low) / span) ** exponent
    if scale:
        x = x * jax.random.uniform(scale_key, (), minval=1 - scale, maxval=1 + scale)
    if shift:
        x = x + jax.random.uniform(shift_key, (), minval=-shift, maxval=shift)
    if noise:
        x = x + noise * jax.random.normal(noise_key, x.shape)
    return {**sample, "image": x.astype(image.dtype)}


def _spatial_axes(where: str, sample: _Sample, axes: Sequence[int] | None) -> tuple[int, ...]:
    rank = sample["image"].ndim - 1
    wanted = tuple(range(rank)) if axes is None else tuple(axes)
    found = tuple(axis + rank if axis < 0 else axis for axis in wanted)
    if any(not 0 <= axis < rank for axis in found) or len(set(found)) != len(found):
        raise ShapeError(
            where,
            f"axes {wanted} for an image of shape {sample['image'].shape}",
            f"different spatial axes, from {-rank} to {rank - 1}",
            "Leave out the channel axis; give one sample (*spatial, c), or a batch to augment()",
        )
    return found


def _move(sample: _Sample, move: Callable[[Array], Array]) -> _Sample:
    image, label = sample["image"], sample.get("label")
    moved = {**sample, "image": move(image)}
    spatial = image.shape[:-1]
    if label is None or label.ndim < len(spatial):
        return moved
    if label.shape[: len(spatial)] != spatial:
        raise ShapeError(
            "augment",
            f"an image of shape {image.shape} and a label of shape {label.shape}",
            f"a label of shape {spatial}, or one number for the sample",
            "Crop image and label alike",
        )
    return {**moved, "label": move(label)}
