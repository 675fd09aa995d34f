"""U-Net whose encoder is neighbourhood attention: a model of this library.

Stages, heads and perceptrons as in Hassani et al., "Neighborhood attention transformer", CVPR 2023,
table 2, for their Mini (s) and Small (b); each second block sees as far as the image reaches, as in
Hassani and Shi, "Dilated neighborhood attention transformer", 2022, section 3.3. In front of them
is a stage of convolutions at full resolution, after them the decoder of `UNet`. No paper states a
number of parameters. Three-dimensional:

| variant | features | blocks | heads | 1 -> 2 | 1 -> 14 |
| --- | --- | --- | --- | --- | --- |
| nat_unet_t | 24, 48, 96, 192, 384 | 2, 2, 6, 2 | 3, 6, 12, 24 | 12,831,170 | 12,831,470 |
| nat_unet_s | 32, 64, 128, 256, 512 | 3, 4, 6, 5 | 2, 4, 8, 16 | 31,052,290 | 31,052,686 |
| nat_unet_b | 48, 96, 192, 384, 768 | 3, 4, 18, 5 | 3, 6, 12, 24 | 76,024,610 | 76,025,198 |
"""

from collections.abc import Sequence

from biojax.errors import ConfigError
from biojax.kernels.axes import per_axis
from biojax.models.unet import UNet
from biojax.modules import Conv, NeighborhoodBlock, make_norm
from biojax.typing import Array, IntOrTuple, Precision

__all__ = ["NATUNet"]


class NATUNet(UNet):
    """`UNet` whose stages, from the second on, are neighbourhood attention on their way down.

    Overlapping convolutions of 3 go from one to the next. Positions are rotary, with the base of
    Heo et al., "Rotary position embedding for vision transformer", ECCV 2024, section 3: of heads
    of 16 channels two waves are left to each of three axes, and the longer has to tell neighbours.

    Args:
      num_convs: blocks of convolution in the first stage, and in each of the decoder's.
      num_blocks: of attention, in each stage but the first.
      num_heads: likewise; must divide its features, into two channels for each axis or more.
      attention_kernel_size: keys that a voxel sees along each axis, the `kernel_size` of
        `biojax.kernels.neighborhood_attention`; all of them where there are fewer.
      dilated: let the keys of each second block be as far apart as the image allows.
      base: of the rotary positions, see `biojax.kernels.rotary_angles`.
      mlp_ratio: width of a block's hidden layer over its features.
      layer_scale: what learned scales of the branches start from; None for no such scales.
      drop_path_rate: share of images that leave out the last block, while training; from block to
        block it rises to that linearly, beginning with none.
      precision: of the products in blocks of attention.
      implementation: see `biojax.kernels.neighborhood_attention`.
      out_channels, spatial_dims, features, strides, kernel_size, norm, deep_supervision, dtype,
        param_dtype: see `UNet`. `kernel_size` is that of convolutions.
    """

    features: Sequence[int] = (24, 48, 96, 192, 384)
    num_blocks: Sequence[int] = (2, 2, 6, 2)
    num_heads: Sequence[int] = (3, 6, 12, 24)
    attention_kernel_size: IntOrTuple = 7
    dilated: bool = True
    base: float = 100.0
    mlp_ratio: float = 3.0
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    precision: Precision = None
    implementation: str | None = None

    _where = "nat_unet"

    def _encode(self, x: Array, train: bool) -> list[Array]:
        stages = len(self.features) - 1
        if not len(self.num_blocks) == len(self.num_heads) == stages:
            raise ConfigError(
                self._where,
                f"num_blocks for {len(self.num_blocks)} and num_heads for {len(self.num_heads)} "
                f"stages, and features for {len(self.features)}",
                "one number for each stage but the first",
                "Change num_blocks, num_heads or features",
            )
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        strides = self.stage_strides
        x = self._stage(x, 0, strides[0], "encoder0", train)
        skips, blocks = [x], 0
        for i in range(1, len(self.features)):
            x = Conv(self.features[i], 3, strides[i], use_bias=False, name=f"down{i}", **kind)(x)
            x = make_norm("layer", layer_name=f"down{i}_norm", **kind)(x)
            for j in range(self.num_blocks[i - 1]):
                x = NeighborhoodBlock(
                    self.num_heads[i - 1],
                    self.attention_kernel_size,
                    self._dilation(x, j),
                    base=self.base,
                    mlp_ratio=self.mlp_ratio,
                    layer_scale=self.layer_scale,
                    drop_path_rate=self.drop_path_rate * blocks / max(1, sum(self.num_blocks) - 1),
                    precision=self.precision,
                    implementation=self.implementation,
                    name=f"encoder{i}_block{j}",
                    **kind,
                )(x, train)
                blocks += 1
            self.sow("intermediates", f"encoder{i}", x)
            skips.append(x)
        return skips

    def _dilation(self, x: Array, j: int) -> tuple[int, ...]:
        """Of block j: alternately one, and the largest that the image has room for."""
        size = per_axis(
            self._where, "attention_kernel_size", self.attention_kernel_size, self.spatial_dims
        )
        wide = self.dilated and j % 2
        fit = zip(x.shape[1:-1], size, strict=True)
        return tuple(max(1, n // k) if wide else 1 for n, k in fit)
