"""U-Net in two and three dimensions.

Sources: Ronneberger et al., "U-Net", MICCAI 2015; Cicek et al., "3D U-Net", MICCAI 2016; the
plain variant of Isensee et al., "nnU-Net", Nature Methods 18, 2021, which the defaults follow:
strided convolutions go down, transposed ones whose kernel is their stride go up, two blocks of
convolution, instance normalisation and leaky ReLU at each of six stages.

| variant | 1 -> 2 | 1 -> 14 |
| --- | --- | --- |
| six stages, 3-D, without the heads of deep supervision | 31,194,050 | 31,194,446 |

nnU-Net publishes 31,195,594 and 31,205,254: there, four more 1x1 heads (1,544 and 10,808
parameters), used in training only, lie at the lower stages of the decoder.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ConfigError
from biojax.kernels.conv.geometry import per_axis
from biojax.models.checks import check_image
from biojax.modules import Conv, ConvBlock, ConvTranspose
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["UNet"]


class UNet(nn.Module):
    """Encoder and decoder with skip connections; an image to logits of its own size.

    Args:
      out_channels: classes.
      spatial_dims: 1, 2 or 3.
      features: channels of each stage, the first at full resolution.
      strides: of each stage, one number or one per axis; 1 then 2s if None.
      kernel_size: odd; of every block.
      num_convs: blocks in each stage.
      norm: "instance", "layer", "group", "batch" or None; see `biojax.modules.make_norm`.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.
    """

    out_channels: int
    spatial_dims: int = 3
    features: Sequence[int] = (32, 64, 128, 256, 320, 320)
    strides: Sequence[IntOrTuple] | None = None
    kernel_size: IntOrTuple = 3
    num_convs: int = 2
    norm: str | None = "instance"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stage_strides(self) -> list[tuple[int, ...]]:
        """The stride of each stage along each axis."""
        strides = self.strides or (1, *[2] * (len(self.features) - 1))
        if len(strides) != len(self.features):
            raise ConfigError(
                "unet",
                f"{len(strides)} strides for {len(self.features)} stages",
                "one stride for each entry of features, the first of them 1",
                "Change strides or features",
            )
        strides = [per_axis("unet", "strides", s, self.spatial_dims) for s in strides]
        if max(strides[0]) > 1:
            raise ConfigError(
                "unet",
                f"strides that begin with {strides[0]}",
                "a first stage at full resolution, which the logits have",
                "Begin with 1",
            )
        return strides

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis."""
        return tuple(math.prod(axis) for axis in zip(*self.stage_strides, strict=True))

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *spatial, out_channels)."""
        check_image("unet", x, self.spatial_dims, self.stride)
        strides = self.stage_strides
        skips = []
        for i, (features, stride) in enumerate(zip(self.features, strides, strict=True)):
            x = self._stage(x, features, stride, f"encoder{i}", train)
            skips.append(x)
        for i in reversed(range(len(skips) - 1)):
            up = strides[i + 1]
            x = ConvTranspose(
                self.features[i],
                up,
                strides=up,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                kernel_init=nn.initializers.he_normal(),
                name=f"up{i}",
            )(x)
            x = jnp.concatenate([x, skips[i]], axis=-1)
            x = self._stage(x, self.features[i], 1, f"decoder{i}", train)
        head = Conv(
            self.out_channels, 1, dtype=self.dtype, param_dtype=self.param_dtype, name="head"
        )
        return head(x).astype(jnp.promote_types(x.dtype, jnp.float32))

    def _stage(self, x: Array, features: int, stride: IntOrTuple, name: str, train: bool) -> Array:
        for j in range(self.num_convs):
            x = ConvBlock(
                features,
                self.kernel_size,
                strides=stride if j == 0 else 1,
                norm=self.norm,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"{name}_block{j}",
            )(x, train)
        self.sow("intermediates", name, x)
        return x
