"""Learned positions on a grid."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from biojax.errors import ShapeError
from biojax.kernels import resize
from biojax.typing import Array, Dtype

__all__ = ["LearnedPositions"]


class LearnedPositions(nn.Module):
    """Adds to the vector at each place of a grid one that is learned for that place.

    Images of another size read the vectors between the places by linear interpolation,
    `biojax.kernels.resize`.

    Args:
      grid: places along each spatial axis; those of the first image if None.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ShapeError: an image of another rank, or with other channels, than the table.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, sections 3.1 and 3.2.
    """

    grid: Sequence[int] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, *spatial, c) to the same."""
        known = self.get_variable("params", "table")
        own = (*(self.grid or x.shape[1:-1]), x.shape[-1])
        shape = own if known is None else known.shape
        if len(shape) != x.ndim - 1 or shape[-1] != x.shape[-1]:
            raise ShapeError(
                "LearnedPositions",
                f"tokens {x.shape} for positions {shape}",
                "as many axes and channels as those that the parameters were made for",
                "Initialise the parameters anew for such images",
            )
        table = self.param("table", nn.initializers.normal(0.02), shape, self.param_dtype)
        x, table = promote_dtype(x, table, dtype=self.dtype)
        if shape != x.shape[1:]:
            table = resize(table[None], x.shape[1:-1])[0]
        return x + table
