"""Residual branches, and what they pass on their way back to the sum."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from biojax.modules.norm import make_norm
from biojax.typing import Array, Dtype

__all__ = ["DropPath", "LayerScale", "add_branch"]


class DropPath(nn.Module):
    """Leaves out the branch of some images, while training; the others count for those.

    y = x / (1 - rate) for an image that is kept, 0 for one that is not

    Args:
      rate: share of images left out. Drawn from the random numbers "dropout".

    Source: Huang et al., "Deep networks with stochastic depth", ECCV 2016, section 3.
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, ...) to the same."""
        return nn.Dropout(self.rate, range(1, x.ndim), deterministic=not train)(x)


class LayerScale(nn.Module):
    """x times a learned scale (c,) that starts near nothing.

    Args:
      start: the scale before training.
      dtype: of the computation.
      param_dtype: of the scale.

    Source: Touvron et al., "Going deeper with image transformers", ICCV 2021, equation 4.
    """

    start: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., c) to the same."""
        init = nn.initializers.constant(self.start)
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        x, scale = promote_dtype(x, scale, dtype=self.dtype)
        return x * scale


def add_branch(
    x: Array,
    branch: Callable[[Array], Array],
    suffix: str,
    train: bool,
    *,
    epsilon: float,
    layer_scale: float | None = None,
    drop_path_rate: float = 0.0,
    dtype: Dtype | None,
    param_dtype: Dtype,
) -> Array:
    """Adds a pre-norm branch, within the call of a block, whose fields the options are.

    y = x + scale branch(norm(x))

    Its parameters are those of "norm" and "scale", each with the suffix behind its name.
    """
    kind = {"dtype": dtype, "param_dtype": param_dtype}
    y = branch(make_norm("layer", epsilon=epsilon, layer_name=f"norm{suffix}", **kind)(x))
    if layer_scale is not None:
        y = LayerScale(layer_scale, name=f"scale{suffix}", **kind)(y)
    return x + DropPath(drop_path_rate)(y, train)
