"""Attention layers over images (b, *spatial, c): in the neighbourhood, and along an axis."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ShapeError
from biojax.kernels import axial_attention, neighborhood_attention, rotary, rotary_angles
from biojax.kernels.axes import per_axis
from biojax.modules.heads import self_attention
from biojax.modules.mlp import MLP
from biojax.modules.residual import add_branch
from biojax.typing import Array, Dtype, IntOrTuple, Precision

__all__ = ["AxialAttention", "NeighborhoodAttention", "NeighborhoodBlock"]


class NeighborhoodAttention(nn.Module):
    """Attention of each voxel to those around it: `biojax.kernels.neighborhood_attention`.

    y = W_proj neighborhood_attention(W_query x, W_key x, W_value x)

    Args:
      num_heads: n; must divide the features of x.
      kernel_size: keys along each axis, or one number for all. An axis that has fewer is seen
        whole.
      dilation: voxels from one key to the next, likewise.
      is_causal: whether keys after the query are hidden, for each axis or for all.
      rotary: turn queries and keys by where they are, see `biojax.kernels.rotary_angles`: without,
        a voxel does not know which of its neighbours is where.
      base: of the angles; the less, the shorter the waves.
      qkv_bias: whether queries, keys and values have a bias.
      dropout_rate: of the output, while training.
      precision: of all products.
      implementation: see `biojax.kernels.neighborhood_attention`.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ConfigError: the heads do not divide the features, or have fewer than two channels for each
        axis to be turned.

    Source: Hassani et al., "Neighborhood attention transformer", CVPR 2023, section 3.1. Positions
    are relative biases there.
    """

    num_heads: int
    kernel_size: IntOrTuple = 7
    dilation: IntOrTuple = 1
    is_causal: bool | Sequence[bool] = False
    rotary: bool = True
    base: float = 10_000.0
    qkv_bias: bool = True
    dropout_rate: float = 0.0
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to the same."""
        sizes = x.shape[1:-1]
        kernel_size, dilation = (
            per_axis("NeighborhoodAttention", name, getattr(self, name), len(sizes))
            for name in ("kernel_size", "dilation")
        )
        fit = zip(kernel_size, sizes, dilation, strict=True)
        kernel_size = tuple(max(1, min(k, n // d)) for k, n, d in fit)

        def attend(query: Array, key: Array, value: Array) -> Array:
            if self.rotary:
                axes = range(1, x.ndim - 1)
                query, key = (_turn(y, axes, self.base) for y in (query, key))
            return neighborhood_attention(
                query,
                key,
                value,
                kernel_size=kernel_size,
                dilation=dilation,
                is_causal=self.is_causal,
                precision=self.precision,
                implementation=self.implementation,
            )

        return self_attention(self, attend, x, train)


class AxialAttention(nn.Module):
    """Attention of each voxel to those of its line: `biojax.kernels.axial_attention`.

    y = W_proj axial_attention(W_query x, W_key x, W_value x)

    Args:
      num_heads: n; must divide the features of x.
      axis: of x, from 1 on: 1 is the first of the spatial ones.
      is_causal: whether a voxel sees only those before it.
      num_heads, rotary, base, qkv_bias, dropout_rate, precision, dtype, param_dtype: see
        `NeighborhoodAttention`.
      implementation: see `biojax.kernels.attention`.

    Raises:
      ShapeError: the axis is none of space.
      ConfigError: see `NeighborhoodAttention`.

    Source: Ho et al., "Axial attention in multidimensional transformers", 2019, section 3.1.
    """

    num_heads: int
    axis: int
    is_causal: bool = False
    rotary: bool = True
    base: float = 10_000.0
    qkv_bias: bool = True
    dropout_rate: float = 0.0
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to the same."""
        if self.axis not in range(1, x.ndim - 1):
            raise ShapeError(
                "AxialAttention",
                f"axis={self.axis} of an image of shape {x.shape}",
                f"an axis of space, 1 to {x.ndim - 2}",
                "Name one of these",
                f"axis={min(max(self.axis, 1), x.ndim - 2)}",
            )

        def attend(query: Array, key: Array, value: Array) -> Array:
            if self.rotary:
                query, key = (_turn(y, [self.axis], self.base) for y in (query, key))
            return axial_attention(
                query,
                key,
                value,
                axis=self.axis,
                is_causal=self.is_causal,
                precision=self.precision,
                implementation=self.implementation,
            )

        return self_attention(self, attend, x, train)


class NeighborhoodBlock(nn.Module):
    """Pre-norm block of neighbourhood attention and a perceptron.

    x = x + scale1 attention(norm1(x))
    x = x + scale2 mlp(norm2(x))

    Args:
      num_heads: n; must divide the features of the input.
      kernel_size: keys along each axis.
      dilation: voxels from one key to the next.
      is_causal: whether keys after the query are hidden.
      rotary: turn queries and keys by where they are.
      base: of the angles by which they are turned.
      mlp_ratio: width of the hidden layer over the features.
      mlp: "gelu" or "swiglu", see `biojax.modules.MLP`.
      qkv_bias: whether queries, keys and values have a bias.
      layer_scale: what learned scales of the branches start from; None for no such scales.
      drop_path_rate: share of images whose branches are left out, while training.
      dropout_rate: of both branches and the hidden layer, while training.
      epsilon: of the norms.
      precision: of all products.
      implementation: see `biojax.kernels.neighborhood_attention`.
      dtype: of the computation.
      param_dtype: of the parameters.

    Source: Hassani et al., "Neighborhood attention transformer", CVPR 2023, section 3.4.
    """

    num_heads: int
    kernel_size: IntOrTuple = 7
    dilation: IntOrTuple = 1
    is_causal: bool | Sequence[bool] = False
    rotary: bool = True
    base: float = 10_000.0
    mlp_ratio: float = 4.0
    mlp: str = "gelu"
    qkv_bias: bool = True
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    epsilon: float = 1e-6
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to the same."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        add = partial(
            add_branch,
            train=train,
            epsilon=self.epsilon,
            layer_scale=self.layer_scale,
            drop_path_rate=self.drop_path_rate,
            **kind,
        )
        attention = NeighborhoodAttention(
            self.num_heads,
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            is_causal=self.is_causal,
            rotary=self.rotary,
            base=self.base,
            qkv_bias=self.qkv_bias,
            dropout_rate=self.dropout_rate,
            precision=self.precision,
            implementation=self.implementation,
            name="attention",
            **kind,
        )
        mlp = MLP(
            int(x.shape[-1] * self.mlp_ratio),
            self.mlp,
            dropout_rate=self.dropout_rate,
            epsilon=self.epsilon,
            precision=self.precision,
            name="mlp",
            **kind,
        )
        x = add(x, partial(attention, train=train), "1")
        return checkpoint_name(add(x, partial(mlp, train=train), "2"), "block")


def _turn(x: Array, axes: Sequence[int], base: float) -> Array:
    """Heads (b, *spatial, n, k), turned by their places along axes."""
    *sizes, n, k = x.shape[1:]
    angles = rotary_angles([x.shape[axis] for axis in axes], k, base=base)
    others = [size if i in axes else 1 for i, size in enumerate(sizes, 1)]
    angles = jnp.broadcast_to(angles.reshape(*others, -1), (*sizes, angles.shape[-1]))
    turned = rotary(x.reshape(x.shape[0], -1, n, k), angles.reshape(-1, angles.shape[-1]))
    return turned.reshape(x.shape)
