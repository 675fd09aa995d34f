"""A linear layer whose matrix is block-diagonal."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from biojax.errors import ConfigError, nearest_divisor
from biojax.typing import Array, Dtype

__all__ = ["BlockDense"]


class BlockDense(nn.Module):
    """x W + bias with W block-diagonal: each block of channels is mixed with itself alone.

    Args:
      num_blocks: n; must divide the channels.
      dtype: of the computation.
      param_dtype: of the parameters.
      kernel_init: initialiser of the blocks (n, c // n, c // n).

    Raises:
      ConfigError: the blocks do not divide the channels.
    """

    num_blocks: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Callable = nn.initializers.lecun_normal(batch_axis=0)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., c) to (..., c)."""
        c, n = x.shape[-1], self.num_blocks
        if n < 1 or c % n:
            raise ConfigError(
                "BlockDense",
                f"num_blocks={n} for {c} channels",
                "a number of blocks that divides the channels",
                "Change either",
                f"num_blocks={nearest_divisor(n, c)}",
            )
        kernel = self.param("kernel", self.kernel_init, (n, c // n, c // n), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (c,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.einsum("...ni,nij->...nj", x.reshape(*x.shape[:-1], n, -1), kernel)
        return y.reshape(x.shape) + bias
