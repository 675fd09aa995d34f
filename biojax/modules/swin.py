"""The layers of Swin transformers, on images of one to three spatial axes."""

import itertools
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError, nearest
from biojax.kernels import relative_bias, window_attention
from biojax.kernels.axes import per_axis
from biojax.modules.heads import self_attention
from biojax.modules.mlp import MLP
from biojax.modules.norm import make_norm
from biojax.modules.residual import add_branch
from biojax.typing import Array, Dtype, IntOrTuple, Precision

__all__ = ["PatchMerging", "SwinBlock", "WindowAttention"]

ORDERS = ("axes", "raster", "repeated")


class WindowAttention(nn.Module):
    """Attention in several heads among the voxels of each window, with a bias for each offset.

    Zeros behind the image make windows whole; their voxels are seen like others, as published. An
    axis no longer than its window is one window, and is not shifted.

    Images smaller than a window take the first rows and columns of the whole window's matrix of
    biases, as in MONAI, whose weights rely on it. Unless only the first axis is short, the bias of
    two voxels is then not that of their offset, as it is in whole windows.

    Args:
      num_heads: n; must divide the features of the input.
      window_size: voxels along each axis; one number for all or one each. A table trained for one
        size becomes that of another by `biojax.kernels.resize_relative_table`.
      shifted: whether the grid of windows is moved by half a window.
      qkv_bias: whether queries, keys and values have a bias.
      dropout_rate: of the output, while training.
      precision: of all products.
      implementation: see `biojax.kernels.window_attention`.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ConfigError: the heads do not divide the features.
      ShapeError: window_size is not one number for each axis.

    Source: Liu et al., "Swin Transformer", ICCV 2021, section 3.2.
    """

    num_heads: int
    window_size: IntOrTuple = 7
    shifted: bool = False
    qkv_bias: bool = True
    dropout_rate: float = 0.0
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to the same."""
        spatial = x.shape[1:-1]
        whole = per_axis("WindowAttention", "window_size", self.window_size, len(spatial))
        window = tuple(min(n, w) for n, w in zip(spatial, whole, strict=True))
        shift = tuple(
            w // 2 if self.shifted and n > w else 0 for n, w in zip(spatial, whole, strict=True)
        )
        behind = [(0, -n % w) for n, w in zip(spatial, window, strict=True)]

        def attend(query: Array, key: Array, value: Array) -> Array:
            y = window_attention(
                query,
                key,
                value,
                self._bias(whole, window),
                window_size=window,
                shift=shift,
                precision=self.precision,
                implementation=self.implementation,
            )
            return y[:, *(slice(n) for n in spatial)]

        return self_attention(self, attend, jnp.pad(x, [(0, 0), *behind, (0, 0)]), train)

    def _bias(self, whole: tuple[int, ...], window: tuple[int, ...]) -> Array:
        """The bias of this window, which may be smaller than the one that the table is for."""
        rows = math.prod(2 * w - 1 for w in whole)
        init = nn.initializers.truncated_normal(0.02)
        table = self.param("table", init, (rows, self.num_heads), self.param_dtype)
        voxels = math.prod(window)
        return relative_bias(table, whole)[:, :voxels, :voxels]


class SwinBlock(nn.Module):
    """Pre-norm block of attention within windows and a perceptron.

    x = x + attention(norm1(x))
    x = x + mlp(norm2(x))

    Args:
      num_heads: n; must divide the features of the input.
      window_size: see `WindowAttention`.
      shifted: whether the grid of windows is moved by half a window, as in every second block.
      mlp_ratio: width of the hidden layer over the features.
      qkv_bias: whether queries, keys and values have a bias.
      drop_path_rate: share of images whose branches are left out, while training.
      dropout_rate: of both branches and the hidden layer, while training.
      epsilon: of the norms.
      precision: of all products.
      implementation: see `biojax.kernels.window_attention`.
      dtype: of the computation.
      param_dtype: of the parameters.

    Source: Liu et al., "Swin Transformer", ICCV 2021, section 3.2, equation 3.
    """

    num_heads: int
    window_size: IntOrTuple = 7
    shifted: bool = False
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    epsilon: float = 1e-5
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to the same."""
        kind: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"epsilon": self.epsilon, "drop_path_rate": self.drop_path_rate, **kind}
        add = partial(add_branch, train=train, **options)
        attention = WindowAttention(
            self.num_heads,
            window_size=self.window_size,
            shifted=self.shifted,
            qkv_bias=self.qkv_bias,
            dropout_rate=self.dropout_rate,
            precision=self.precision,
            implementation=self.implementation,
            name="attention",
            **kind,
        )
        mlp = MLP(
            int(x.shape[-1] * self.mlp_ratio),
            dropout_rate=self.dropout_rate,
            precision=self.precision,
            name="mlp",
            **kind,
        )
        x = add(x, partial(attention, train=train), "1")
        return checkpoint_name(add(x, partial(mlp, train=train), "2"), "block")


class PatchMerging(nn.Module):
    """Half the size and twice the channels: the voxels of each block of 2, a norm, and a matrix.

    Zeros behind the image make odd sizes even. The order in which the channels of the 2^d voxels
    of a block lie side by side is that of the weights at hand:

    | order | voxels, as offsets along z, y and x | of |
    | --- | --- | --- |
    | axes | 000 100 010 001 110 101 011 111 | MONAI's "merging", from 1.6 on |
    | raster | 000 001 010 011 100 101 110 111 | its "mergingv2" |
    | repeated | 000 100 010 001 101 010 001 111 | its "merging" before: two of them never seen |

    In fewer than three dimensions every order is "axes".

    Args:
      order: one of the above.
      epsilon: of the norm.
      precision: of the product.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ConfigError: no order of that name.

    Source: Liu et al., "Swin Transformer", ICCV 2021, section 3.1.
    """

    order: str = "axes"
    epsilon: float = 1e-5
    precision: Precision = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, *spatial, c) to (b, *spatial / 2, 2 c)."""
        kind: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        *spatial, c = x.shape[1:]
        x = jnp.pad(x, [(0, 0), *((0, n % 2) for n in spatial), (0, 0)])
        corners = self._corners(len(spatial))
        parts = [x[:, *(slice(start, None, 2) for start in corner)] for corner in corners]
        x = make_norm("layer", epsilon=self.epsilon, **kind)(jnp.concatenate(parts, axis=-1))
        dense = partial(nn.Dense, use_bias=False, precision=self.precision, name="reduce", **kind)
        return dense(2 * c)(x)

    def _corners(self, rank: int) -> list[tuple[int, ...]]:
        if self.order not in ORDERS:
            raise ConfigError(
                "PatchMerging",
                f"order={self.order!r}",
                f"one of {', '.join(map(repr, ORDERS))}",
                "Name the order that the weights were trained with",
                nearest(self.order, ORDERS),
            )
        if rank == 3 and self.order == "repeated":
            z, y, x = (1, 0, 0), (0, 1, 0), (0, 0, 1)
            return [(0, 0, 0), z, y, x, (1, 0, 1), y, x, (1, 1, 1)]
        corners = itertools.product((0, 1), repeat=rank)
        if rank == 3 and self.order == "raster":
            return list(corners)
        return sorted(corners, key=lambda corner: (sum(corner), [-start for start in corner]))
