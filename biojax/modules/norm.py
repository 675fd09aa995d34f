"""Normalisation layers by name."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import lax

from biojax.errors import ConfigError, nearest, nearest_divisor
from biojax.kernels import batch_norm, group_norm, instance_norm, layer_norm
from biojax.typing import Array, Dtype

__all__ = ["make_norm"]

NORMS = ("batch", "group", "instance", "layer")

# What each step leaves of the running averages of batch normalisation.
MOMENTUM = 0.9


def make_norm(
    name: str | None,
    train: bool = False,
    *,
    num_groups: int = 8,
    affine: bool = True,
    epsilon: float | None = None,
    scale_init: Callable = nn.initializers.ones,
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
    layer_name: str = "norm",
) -> Callable:
    """A normalisation layer for (b, *spatial, c), to be called inside of a compact module.

    | name | mean and variance over | source |
    | --- | --- | --- |
    | batch | batch and space; running averages when not training | Ioffe and Szegedy 2015 |
    | group | space and c / num_groups channels | Wu and He 2018 |
    | instance | space | Ulyanov et al. 2016 |
    | layer | channels, at each pixel alone | Ba et al. 2016 |
    | None | nothing: the identity | |

    Instance and group normalisation depend on what else lies in a window, such as how much of it
    is background; layer normalisation looks at each pixel alone. Statistics are held in float32.

    Args:
      name: one of the above.
      train: whether batch statistics are those of this batch.
      num_groups: of group normalisation; must divide the channels.
      affine: multiply by a learned scale and add a learned bias, each (c,).
      epsilon: added to the variance; if None, 1e-6 for "layer" and 1e-5 for the others.
      scale_init: initialiser of the scale.
      dtype: of the output.
      param_dtype: of scale and bias.
      layer_name: under which the module keeps them.

    Raises:
      ConfigError: no normalisation of that name, or groups that do not divide the channels.
    """
    if name is None:
        return lambda x: x
    if name in NORMS:
        return _Norm(
            name,
            not train,
            num_groups,
            affine,
            (1e-6 if name == "layer" else 1e-5) if epsilon is None else epsilon,
            scale_init,
            dtype=dtype,
            param_dtype=param_dtype,
            name=layer_name,
        )
    raise ConfigError(
        "make_norm",
        f"{name!r}",
        f"one of {', '.join(map(repr, NORMS))}, or None",
        "Name one of these",
        nearest(name, NORMS),
    )


class _Norm(nn.Module):
    """A kernel of `biojax.kernels` with a scale and a bias, named and laid out as in Flax.

    The arguments are those of `make_norm`. Batch normalisation keeps its running averages in the
    collection "batch_stats", each step counting a tenth.
    """

    kind: str
    use_running_average: bool
    num_groups: int
    affine: bool
    epsilon: float
    scale_init: Callable
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, *spatial, c) to the same."""
        c, scale, bias = x.shape[-1], None, None
        if self.affine:
            scale = self.param("scale", self.scale_init, (c,), self.param_dtype)
            bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        x = x.astype(jnp.promote_types(x.dtype, dtype))
        if self.kind == "batch":
            y = self._batch_norm(x, scale, bias)
        elif self.kind == "group":
            groups = _divisor(self.num_groups, c)
            y = group_norm(x, scale, bias, num_groups=groups, epsilon=self.epsilon)
        elif self.kind == "instance":
            y = instance_norm(x, scale, bias, epsilon=self.epsilon)
        else:
            y = layer_norm(x, scale, bias, epsilon=self.epsilon)
        return y.astype(dtype)

    def _batch_norm(self, x: Array, scale: Array | None, bias: Array | None) -> Array:
        """By the batch's own statistics, which are remembered, or by those remembered."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not self.use_running_average:
            y, *seen = batch_norm(x, scale, bias, epsilon=self.epsilon)
            if not self.is_initializing():
                for average, value in zip((mean, var), seen, strict=True):
                    average.value = MOMENTUM * average.value + (1 - MOMENTUM) * value
            return y
        slope = lax.rsqrt(var.value + self.epsilon)
        slope = slope if scale is None else slope * scale
        y = (x - mean.value) * slope
        return y if bias is None else y + bias


def _divisor(num_groups: int, c: int) -> int:
    if num_groups < 1 or c % num_groups:
        raise ConfigError(
            "make_norm",
            f"num_groups={num_groups} for {c} channels",
            "a number of groups that divides the channels",
            "Change either",
            f"num_groups={nearest_divisor(num_groups, c)}",
        )
    return num_groups
