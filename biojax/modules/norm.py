"""Normalisation layers by name."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ConfigError, nearest
from biojax.typing import Array, Dtype

__all__ = ["make_norm"]

NORMS = ("batch", "group", "instance", "layer")


def make_norm(
    name: str | None,
    train: bool = False,
    *,
    num_groups: int = 8,
    affine: bool = True,
    scale_init: Callable = nn.initializers.ones,
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
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
      scale_init: initialiser of the scale.
      dtype: of the output.
      param_dtype: of scale and bias.

    Raises:
      ConfigError: no normalisation of that name, or groups that do not divide the channels.
    """
    kind = {
        "use_scale": affine,
        "use_bias": affine,
        "scale_init": scale_init,
        "dtype": dtype,
        "param_dtype": param_dtype,
    }
    if name is None:
        return lambda x: x
    if name == "batch":
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, name="norm", **kind
        )
    if name == "group":
        return lambda x: nn.GroupNorm(_divisor(num_groups, x), epsilon=1e-5, name="norm", **kind)(x)
    if name == "instance":
        return nn.InstanceNorm(epsilon=1e-5, name="norm", **kind)
    if name == "layer":
        return nn.LayerNorm(epsilon=1e-6, name="norm", **kind)
    raise ConfigError(
        "make_norm",
        f"{name!r}",
        f"one of {', '.join(map(repr, NORMS))}, or None",
        "Name one of these",
        nearest(name, NORMS),
    )


def _divisor(num_groups: int, x: Array) -> int:
    c = x.shape[-1]
    if num_groups < 1 or c % num_groups:
        divisors = [n for n in range(1, c + 1) if c % n == 0]
        raise ConfigError(
            "make_norm",
            f"num_groups={num_groups} for {c} channels",
            "a number of groups that divides the channels",
            "Change either",
            f"num_groups={min(divisors, key=lambda n: abs(n - num_groups))}",
        )
    return num_groups
