"""Normalisation of channels-last arrays: instance, group, layer and batch."""

from collections.abc import Callable

import jax.numpy as jnp

from biojax.errors import ShapeError, nearest_divisor
from biojax.kernels.dispatch import select
from biojax.kernels.norm import fused
from biojax.typing import Array

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm"]


def instance_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-5,
    implementation: str | None = None,
) -> Array:
    """Every channel of every image brought to mean 0 and variance 1.

    y[b, p, c] = (x[b, p, c] - mean[b, c]) / sqrt(var[b, c] + epsilon) * scale[c] + bias[c]

    with mean and var over all pixels p; var is the mean square distance from the mean.

    Args:
      x: images, (b, *spatial, c) with at least one spatial axis.
      scale: (c,); ones if None.
      bias: (c,); zeros if None.
      epsilon: added to the variance.
      implementation: "fused", or None to choose.

    Returns:
      (b, *spatial, c), of x's dtype.

    Raises:
      ShapeError: x has no spatial axis, no pixel or no channel, scale or bias does not fit it, or
        an array is not floating. (It may have no image.)
      ConfigError: there is no implementation of that name.

    Statistics are held in at least float32, and the variance is that of what is left without the
    mean: an offset of 10 000 standard deviations costs four digits of seven. Differentiates in
    reverse only, and keeps x and the statistics for it.
    Source: Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016, equation 3.

    >>> instance_norm(jnp.array([1.0, 3.0]).reshape(1, 2, 1), epsilon=0.0)[0, :, 0]
    Array([-1.,  1.], dtype=float32)
    """
    axes = tuple(range(1, x.ndim - 1))
    _check("instance_norm", x, scale, bias, axes, "(b, *spatial, c)", 3)
    return _run("instance_norm", implementation)(x, scale, bias, axes, x.shape[-1], epsilon)[0]


def group_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    implementation: str | None = None,
) -> Array:
    """Every group of neighbouring channels of every image brought to mean 0 and variance 1.

    As `instance_norm`, with mean and var over all pixels and over c / num_groups channels.

    Args:
      x: images, (b, *spatial, c); or (b, c).
      scale: (c,); ones if None.
      bias: (c,); zeros if None.
      num_groups: must divide c.
      epsilon: added to the variance.
      implementation: "fused", or None to choose.

    Returns:
      (b, *spatial, c), of x's dtype.

    Raises:
      ShapeError: x has no pixel or no channel, scale, bias or the groups do not fit it, or an array
        is not floating. (It may have no image.)
      ConfigError: there is no implementation of that name.

    Source: Wu and He, "Group normalization", ECCV 2018, section 3.1.

    >>> group_norm(jnp.array([[1.0, 3.0, 5.0, 5.0]]), num_groups=2, epsilon=1e-12)
    Array([[-1.,  1.,  0.,  0.]], dtype=float32)
    """
    axes = tuple(range(1, x.ndim - 1))
    _check("group_norm", x, scale, bias, axes, "(b, *spatial, c)", 2)
    c = x.shape[-1]
    if num_groups < 1 or c % num_groups:
        raise ShapeError(
            "group_norm",
            f"num_groups={num_groups} for {c} channels",
            "a number of groups that divides the channels",
            "Change either",
            f"num_groups={nearest_divisor(num_groups, c)}",
        )
    return _run("group_norm", implementation)(x, scale, bias, axes, num_groups, epsilon)[0]


def layer_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-6,
    implementation: str | None = None,
) -> Array:
    """The channels of every pixel or token brought to mean 0 and variance 1.

    As `instance_norm`, with mean and var over the channels, at each position alone.

    Args:
      x: (..., c).
      scale: (c,); ones if None.
      bias: (c,); zeros if None.
      epsilon: added to the variance.
      implementation: "fused", or None to choose.

    Returns:
      (..., c), of x's dtype.

    Raises:
      ShapeError: x has no channel, scale or bias does not fit it, or an array is not floating.
      ConfigError: there is no implementation of that name.

    Source: Ba, Kiros and Hinton, "Layer normalization", 2016, section 3.

    >>> layer_norm(jnp.array([[1.0, 3.0]]), jnp.array([2.0, 2.0]), epsilon=0.0)
    Array([[-2.,  2.]], dtype=float32)
    """
    _check("layer_norm", x, scale, bias, (), "(..., c)", 1)
    return _run("layer_norm", implementation)(x, scale, bias, (), 1, epsilon)[0]


def batch_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-5,
    implementation: str | None = None,
) -> tuple[Array, Array, Array]:
    """Every channel of the batch brought to mean 0 and variance 1, as in training.

    As `instance_norm`, with mean and var over all pixels of all images. Under `pmap` and
    `shard_map` the batch is what a device holds; under `jit` it is the whole one.

    Args:
      x: images, (b, *spatial, c); or (b, c).
      scale: (c,); ones if None.
      bias: (c,); zeros if None.
      epsilon: added to the variance.
      implementation: "fused", or None to choose.

    Returns:
      y: (b, *spatial, c), of x's dtype. mean, var: (c,), of at least float32, for running averages;
      var is divided by the number of pixels, as in Flax (PyTorch remembers one pixel fewer).

    Raises:
      ShapeError: x is empty, scale or bias does not fit it, or an array is not floating.
      ConfigError: there is no implementation of that name.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015, algorithm 1.

    >>> batch_norm(jnp.array([[1.0], [3.0]]))[1:]
    (Array([2.], dtype=float32), Array([1.], dtype=float32))
    """
    axes = tuple(range(x.ndim - 1))
    _check("batch_norm", x, scale, bias, axes, "(b, *spatial, c)", 2)
    run = _run("batch_norm", implementation)
    y, mean, var = run(x, scale, bias, axes, x.shape[-1], epsilon)
    return y, mean.reshape(-1), var.reshape(-1)


def _run(kernel: str, implementation: str | None) -> Callable:
    return select(
        kernel,
        {"fused": fused.normalise},
        implementation,
        lambda: ("fused", "the only one"),
    )


def _check(
    where: str,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    axes: tuple[int, ...],
    shape: str,
    least: int,
) -> None:
    if x.ndim < least or any(x.shape[axis] == 0 for axis in (*axes, -1)):
        raise ShapeError(
            where,
            f"x of shape {x.shape}",
            f"{shape} with at least {least} axes, none of {(*axes, -1)} empty",
            "Add a batch axis in front or a channel axis at the end",
        )
    c = x.shape[-1]
    for name, array in (("scale", scale), ("bias", bias)):
        if array is not None and array.shape != (c,):
            raise ShapeError(
                where,
                f"{name} of shape {array.shape} for {c} channels",
                f"one number for each channel: ({c},)",
                f"Change {name}, or leave it out",
            )
    for name, array in (("x", x), ("scale", scale), ("bias", bias)):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ShapeError(
                where,
                f"{name} of {array.dtype}",
                "a floating dtype",
                f"Convert it: {name}.astype(jnp.float32)",
            )
