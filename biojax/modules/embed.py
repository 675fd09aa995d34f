"""From images to sequences of tokens."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from biojax.errors import ShapeError
from biojax.kernels.conv.geometry import per_axis
from biojax.modules.conv import Conv
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["PatchEmbed", "sincos_positions"]


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each made a token by one matrix, in raster order (z slowest).

    Args:
      features: size of a token.
      patch_size: one number for all spatial axes, or one each.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ShapeError: the patches do not divide the image, with the size that fits.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, section 3.1.
    """

    features: int
    patch_size: IntOrTuple
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, *spatial, c) to (b, t, features), t the number of patches."""
        size = per_axis("PatchEmbed", "patch_size", self.patch_size, x.ndim - 2)
        if any(n % k for n, k in zip(x.shape[1:-1], size, strict=True)):
            fits = tuple(-(-n // k) * k for n, k in zip(x.shape[1:-1], size, strict=True))
            raise ShapeError(
                "PatchEmbed",
                f"an image of {x.shape[1:-1]} with patches of {size}",
                "a size that the patches divide",
                "Pad or crop the image",
                f"{fits}",
            )
        tokens = Conv(
            self.features,
            size,
            strides=size,
            padding="VALID",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="proj",
        )(x)
        return tokens.reshape(x.shape[0], -1, self.features)


def sincos_positions(length: int, features: int) -> np.ndarray:
    """Fixed positions of a sequence.

    p[t, 2 i] = sin(t / 10000^(2 i / features)),   p[t, 2 i + 1] = cos(t / 10000^(2 i / features))

    Args:
      length: number of tokens t.
      features: size of a token.

    Returns:
      (length, features), float32.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.5.

    >>> sincos_positions(2, 4)[0]
    array([0., 1., 0., 1.], dtype=float32)
    """
    i = np.arange(features)
    angle = np.arange(length)[:, None] / 10_000.0 ** (2 * (i // 2) / features)
    return np.where(i % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)
