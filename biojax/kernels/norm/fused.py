"""Normalisation in three passes over memory, two of them reading only; its gradient in two.

The mean is held in two parts: what is subtracted from every pixel, and the mean of the rest, which
is small and so has small errors. It corrects the variance too (Chan, Golub and LeVeque, "Algorithms
for computing the sample variance", The American Statistician, 1983, equation 1.7). For the gradient
x is kept and the statistics, and no other array of the image's size.

XLA on CPU writes down the differences from the mean before it adds up their squares. Where every
mean is small beside its deviation the squares of x itself serve as well, and nothing is written.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.dispatch import accumulator, platform
from biojax.kernels.meshes import varying
from biojax.typing import Array

__all__ = ["normalise"]

# Variances in the square of a mean, up to which it is small: the error of the variance grows by 1
# plus as much.
_FEW = 8


@partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
def normalise(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    axes: tuple[int, ...],
    groups: int,
    epsilon: float,
) -> tuple[Array, Array, Array]:
    """As the reference: y of x's dtype; mean and var in the dtype that sums are held in."""
    given = [array for array in (x, scale, bias) if array is not None]
    scale, bias = (a if a is None else varying(a, *given) for a in (scale, bias))
    return _normalise(varying(x, *given), scale, bias, axes, groups, epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalise(x, scale, bias, axes, groups, epsilon):
    return _normalise_fwd(x, scale, bias, axes, groups, epsilon)[0]


def _normalise_fwd(x, scale, bias, axes, groups, epsilon):
    c = x.shape[-1]
    wide = x.astype(accumulator(x.dtype))
    shift, rest, var = _statistics(wide, axes, groups)
    left = wide - _each(shift, c)
    rstd = lax.rsqrt(var + epsilon)

    slope, offset = _each(rstd, c), _each(-rest * rstd, c)
    if scale is not None:
        slope, offset = (part * scale.astype(wide.dtype) for part in (slope, offset))
    if bias is not None:
        offset = offset + bias.astype(wide.dtype)
    y = (left * slope + offset).astype(x.dtype)
    return (y, shift + rest, var), (x, scale, bias, shift, rest, rstd)


def _normalise_bwd(axes, groups, epsilon, saved, cotangents):
    del epsilon
    x, scale, bias, shift, rest, rstd = saved
    dy, dmean, dvar = cotangents
    c = x.shape[-1]
    dy = dy.astype(shift.dtype)
    left = x.astype(shift.dtype) - _each(shift, c)
    standard = left * _each(rstd, c) - _each(rest * rstd, c)

    # Of each channel, before channels of a group are added up.
    dbias = dy.sum(axes, keepdims=True)
    dscale = (dy * standard).sum(axes, keepdims=True)
    weight = jnp.ones(c, shift.dtype) if scale is None else scale.astype(shift.dtype)
    count = math.prod(x.shape[axis] for axis in axes) * (c // groups)
    on_mean = _sum(dbias, weight, groups) * rstd - dmean
    on_standard = _sum(dscale, weight, groups) * rstd - 2 * dvar / rstd
    dx = dy * (_each(rstd, c) * weight) - _each(on_mean, c) / count
    dx = dx - standard * (_each(on_standard, c) / count)

    others = tuple(range(x.ndim - 1))
    dscale = None if scale is None else dscale.sum(others).astype(scale.dtype)
    dbias = None if bias is None else dbias.sum(others).astype(bias.dtype)
    return dx.astype(x.dtype), dscale, dbias


_normalise.defvjp(_normalise_fwd, _normalise_bwd)


def _statistics(x: Array, axes: tuple[int, ...], groups: int) -> tuple[Array, Array, Array]:
    """What to subtract from every pixel, the mean of the rest, and the variance."""
    mean = _mean(x, axes, groups)

    def about_the_mean() -> tuple[Array, Array]:
        left = x - _each(mean, x.shape[-1])
        rest = _mean(left, axes, groups)
        return rest, jnp.maximum(_mean(jnp.square(left), axes, groups) - jnp.square(rest), 0)

    if platform() != "cpu":
        return mean, *about_the_mean()
    var = _mean(jnp.square(x), axes, groups) - jnp.square(mean)
    is_small = jnp.all(jnp.square(mean) <= _FEW * var)
    return mean, *lax.cond(is_small, lambda: (jnp.zeros_like(mean), var), about_the_mean)


def _mean(v: Array, axes: tuple[int, ...], groups: int) -> Array:
    """Over `axes`, which stay with length 1, and over the channels of each group."""
    v = v.mean(axes, keepdims=True)
    return v if groups == v.shape[-1] else _grouped(v, groups).mean(-1)


def _sum(v: Array, weight: Array, groups: int) -> Array:
    """(..., c) times weight (c,) to (..., groups), as a product: XLA's own sum is slow on CPU."""
    if groups == v.shape[-1]:
        return v * weight
    if groups == 1:
        return jnp.dot(v, weight[:, None], precision=lax.Precision.HIGHEST)
    v = _grouped(v * weight, groups)
    return jnp.dot(v, jnp.ones(v.shape[-1], v.dtype), precision=lax.Precision.HIGHEST)


def _grouped(v: Array, groups: int) -> Array:
    """(..., c) to (..., groups, c // groups), of an empty batch too."""
    return v.reshape(*v.shape[:-1], groups, v.shape[-1] // groups)


def _each(v: Array, c: int) -> Array:
    """(..., groups) to what broadcasts with (..., c)."""
    groups = v.shape[-1]
    return v if groups in (1, c) else jnp.repeat(v, c // groups, axis=-1)
