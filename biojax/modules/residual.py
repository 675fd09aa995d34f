"""What a residual branch passes on its way back to the sum."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from biojax.typing import Array, Dtype

__all__ = ["DropPath", "LayerScale"]


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
