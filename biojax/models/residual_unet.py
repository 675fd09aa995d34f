"""U-Net of residual units, as MONAI defines it.

Sources: Kerfoot et al., "Left-ventricle quantification using residual U-Net", STACOM 2018, and
https://docs.monai.io, `monai.networks.nets.UNet`. Three-dimensional, 1 -> 2, five levels of 16 to
256 features, strides of 2, two convolutions in each unit:

| norm | parameters |
| --- | --- |
| "instance" (without scale and bias), the default | 4,806,481 |
| "batch" | 4,808,917 |
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError
from biojax.kernels.axes import per_axis
from biojax.models.checks import check_image
from biojax.modules import Conv, ConvTranspose, make_norm
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["ResidualUNet"]


class ResidualUNet(nn.Module):
    """Units with a shortcut go down and up; an image to logits of its own size.

    Sampling is the first thing of each unit: already the first level is smaller than the image.

    Args:
      out_channels: classes.
      spatial_dims: 1, 2 or 3.
      features: channels of each level.
      strides: of each level but the last, one number or one per axis; 2s if None.
      num_convs: convolutions in each unit on the way down.
      norm: "instance" (without scale and bias), "layer", "group", "batch" or None; see
        `biojax.modules.make_norm`.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.
    """

    out_channels: int
    spatial_dims: int = 3
    features: Sequence[int] = (16, 32, 64, 128, 256)
    strides: Sequence[IntOrTuple] | None = None
    num_convs: int = 2
    norm: str | None = "instance"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def level_strides(self) -> list[tuple[int, ...]]:
        """The stride of each level but the last along each axis."""
        levels = len(self.features)
        strides = self.strides or (2,) * (levels - 1)
        if levels < 2 or len(strides) != levels - 1:
            raise ConfigError(
                "residual_unet",
                f"{len(strides)} strides for {levels} levels",
                "two levels or more, and a stride for each but the last",
                "Change strides or features",
            )
        return [per_axis("residual_unet", "strides", s, self.spatial_dims) for s in strides]

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis."""
        return tuple(math.prod(axis) for axis in zip(*self.level_strides, strict=True))

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *spatial, out_channels)."""
        check_image("residual_unet", x, self.spatial_dims, self.stride)
        kind = {"norm": self.norm, "dtype": self.dtype, "param_dtype": self.param_dtype}
        strides, skips = self.level_strides, []
        for i, (features, stride) in enumerate(
            zip(self.features, [*strides, (1,) * self.spatial_dims], strict=True)
        ):
            x = ResidualUnit(features, self.num_convs, stride, name=f"encoder{i}", **kind)(x, train)
            self.sow("intermediates", f"encoder{i}_output", x)
            skips.append(x)
        skips.pop()
        for i in reversed(range(len(skips))):
            features = self.features[i - 1] if i else self.out_channels
            x = jnp.concatenate([skips[i], x], axis=-1)
            x = Layer(features, strides[i], transposed=True, name=f"up{i}", **kind)(x, train)
            # The last one ends in a convolution, whose output are the logits.
            x = ResidualUnit(features, 1, name=f"decoder{i}", plain=i == 0, **kind)(x, train)
            self.sow("intermediates", f"decoder{i}_output", x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class ResidualUnit(nn.Module):
    """y = layers(x) + shortcut(x).

    The shortcut is a convolution of 3 with the strides, one of 1 where only the channels change,
    or nothing.

    Args:
      features: output channels.
      num_convs: layers.
      strides: of the first layer.
      plain: whether the last layer is a convolution alone.
      norm: see `make_norm`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    num_convs: int
    strides: IntOrTuple = 1
    plain: bool = False
    norm: str | None = "instance"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *out, features)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        strides = per_axis("ResidualUnit", "strides", self.strides, x.ndim - 2)
        y = x
        for j in range(self.num_convs):
            step, name = strides if j == 0 else 1, f"layer{j}"
            if self.plain and j == self.num_convs - 1:
                y = Conv(self.features, 3, strides=step, padding=1, name=name, **kind)(y)
            else:
                y = Layer(self.features, step, norm=self.norm, name=name, **kind)(y, train)
        if max(strides) > 1:
            x = Conv(self.features, 3, strides=strides, padding=1, name="shortcut", **kind)(x)
        elif x.shape[-1] != self.features:
            x = Conv(self.features, 1, name="shortcut", **kind)(x)
        return checkpoint_name(x + y, "block")


class Layer(nn.Module):
    """Convolution of 3, normalisation, and a leaky ReLU whose one slope is learned (PReLU).

    Args:
      features: output channels.
      strides: down, or up if transposed.
      transposed: whether the convolution is.
      norm: see `make_norm`; instance normalisation has no scale and bias.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    strides: IntOrTuple = 1
    transposed: bool = False
    norm: str | None = "instance"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *out, features)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        strides = per_axis("Layer", "strides", self.strides, x.ndim - 2)
        layer, padding = Conv, [(1, 1)] * len(strides)
        if self.transposed:  # to n * stride pixels, the odd zero at the end
            layer, padding = ConvTranspose, [(1, s) for s in strides]
        x = layer(self.features, 3, strides, padding, name="conv", **kind)(x)
        x = make_norm(self.norm, train, affine=self.norm != "instance", **kind)(x)
        return nn.PReLU(self.param_dtype, negative_slope_init=0.25, name="prelu")(x)
