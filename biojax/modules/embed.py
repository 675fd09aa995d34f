"""From images to sequences of tokens, and back."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.axes import per_axis
from biojax.kernels.meshes import left_to_compiler
from biojax.typing import Array, Dtype, IntOrTuple, Precision

__all__ = ["PatchEmbed", "sincos_positions", "unpatch"]


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each made a token by one matrix, in raster order (z slowest).

    Args:
      features: size of a token.
      patch_size: one number for all spatial axes, or one each.
      precision: of the product.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ShapeError: the patches do not divide the image, with the size that fits.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, section 3.1.
    """

    features: int
    patch_size: IntOrTuple
    precision: Precision = None
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
        # Not a convolution, whose compilation may write out every tap: 4,096 in patches of 16.
        patches = left_to_compiler(partial(_cut, size), x)
        options: dict[str, Any] = {"precision": self.precision, "dtype": self.dtype}
        options |= {"param_dtype": self.param_dtype, "name": "proj"}
        tokens = nn.DenseGeneral(self.features, range(-len(size) - 1, 0), **options)(patches)
        return tokens.reshape(x.shape[0], -1, self.features)


def _cut(size: tuple[int, ...], x: Array) -> Array:
    """(b, *spatial, c) to patches (b, *grid, *size, c)."""
    rank = len(size)
    cut = zip(x.shape[1:-1], size, strict=True)
    x = x.reshape(x.shape[0], *(m for n, k in cut for m in (n // k, k)), x.shape[-1])
    return x.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)


def unpatch(tokens: Array, grid: IntOrTuple, patch_size: IntOrTuple) -> Array:
    """An image of its patches: what `PatchEmbed` cuts up, put together again.

    A token holds the pixels of its patch in raster order, each with its channels, as they meet the
    kernel of `PatchEmbed`. A linear layer to as many features before it is the inverse projection,
    a transposed convolution whose strides are its kernel.

    Args:
      tokens: (b, t, p * c) with p the pixels of a patch.
      grid: patches along each axis, t in all; an integer for a sequence.
      patch_size: pixels of a patch, one number for all axes or one each.

    Returns:
      (b, *spatial, c), each axis of grid times patch_size pixels.

    Raises:
      ShapeError: as many tokens as the grid has not, or features that patches do not divide.

    >>> unpatch(jnp.arange(8).reshape(1, 2, 4), (1, 2), 2)[0, ..., 0]
    Array([[0, 1, 4, 5],
           [2, 3, 6, 7]], dtype=int32)
    """
    grid = (grid,) if isinstance(grid, int) else tuple(grid)
    size = per_axis("unpatch", "patch_size", patch_size, len(grid))
    pixels, rank = math.prod(size), len(grid)
    if tokens.ndim != 3 or tokens.shape[1] != math.prod(grid) or tokens.shape[2] % pixels:
        raise ShapeError(
            "unpatch",
            f"tokens {tokens.shape} for a grid {grid} of patches {size}",
            f"(b, {math.prod(grid)}, {pixels} * c)",
            "Leave out class tokens, and project to the pixels of a patch times their channels",
        )
    x = tokens.reshape(-1, *grid, *size, tokens.shape[2] // pixels)
    between = (axis for i in range(rank) for axis in (1 + i, 1 + rank + i))
    x = x.transpose(0, *between, 1 + 2 * rank)
    return x.reshape(-1, *(n * k for n, k in zip(grid, size, strict=True)), x.shape[-1])


def sincos_positions(grid: int | Sequence[int], features: int) -> np.ndarray:
    """Fixed positions of a sequence, or of a grid.

    p[t, 2 i] = sin(t / 10000^(2 i / f)),   p[t, 2 i + 1] = cos(t / 10000^(2 i / f)),   2 i < f

    with t the place on an axis and f its share of the features, features // axes: the first share
    tells the place along the first axis, and so on. Features that are left over are 0.

    Args:
      grid: tokens along each axis; an integer for a sequence.
      features: size of a token, at least a sine and a cosine for each axis.

    Returns:
      (t, features), float32; t places in raster order, the last axis fastest.

    Raises:
      ShapeError: no axis, or one that is empty.
      ConfigError: fewer than two features for each axis.

    Sources: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.5; on a grid
    after Chen, Xie and He, "An empirical study of training self-supervised vision transformers",
    ICCV 2021, whose code lists all sines of an axis before its cosines.

    >>> sincos_positions(2, 4)[0]
    array([0., 1., 0., 1.], dtype=float32)
    >>> sincos_positions((2, 2), 4)[1].round(2)
    array([0.  , 1.  , 0.84, 0.54], dtype=float32)
    """
    grid = (grid,) if isinstance(grid, int) else tuple(grid)
    if not grid or min(grid) < 1:
        raise ShapeError(
            "sincos_positions",
            f"grid={grid}",
            "at least one axis, each with at least one token",
            "Give the number of tokens along each axis",
        )
    share = features // len(grid)
    if share < 2:
        raise ConfigError(
            "sincos_positions",
            f"features={features} for {len(grid)} axes",
            "at least two features for each axis",
            "Take more features",
            f"features={2 * len(grid)}",
        )
    i = np.arange(share)
    positions = np.zeros((*grid, features), np.float32)
    for axis, length in enumerate(grid):
        angle = np.arange(length)[:, None] / 10_000.0 ** (2 * (i // 2) / share)
        waves = np.where(i % 2 == 0, np.sin(angle), np.cos(angle))
        along = [1] * len(grid)
        along[axis] = length
        positions[..., axis * share : (axis + 1) * share] = waves.reshape(*along, share)
    return positions.reshape(-1, features)
