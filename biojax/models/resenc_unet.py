"""U-Net with a residual encoder, as nnU-Net's presets configure it.

Sources: Isensee et al., "nnU-Net revisited", MICCAI 2024; the residual block is that of He et al.,
"Bag of tricks for image classification with convolutional neural networks", CVPR 2019, figure 2 c.

| variant | 1 -> 2 | 1 -> 14 |
| --- | --- | --- |
| resenc_unet_m, resenc_unet_l, resenc_unet_xl | 102,349,770 | 102,359,430 |

The counts include the heads of deep supervision, as nnU-Net's do. M, L and XL are one rule for
three budgets of memory (8, 24 and 40 GB), not three sets of layers: nnU-Net's planner enlarges the
patch and the batch until the budget is used, and takes as many stages as the patch can be halved.
For large isotropic images that is a patch of 128 x 128 x 128, 192 x 192 x 192 and 256 x 224 x 224
voxels, all of six stages, which the three names give. Plans of other images are had by `features`,
`strides`, `kernel_size` and `num_blocks`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError
from biojax.kernels import avg_pool
from biojax.kernels.axes import per_axis
from biojax.models.unet import UNet
from biojax.modules import ConvBlock
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["ResEncUNet"]


class ResEncUNet(UNet):
    """`UNet` whose encoder is a stem and residual blocks; an image to logits of its own size.

    Args:
      num_convs: blocks in each stage of the decoder.
      num_blocks: residual blocks in each stage of the encoder.
      out_channels, spatial_dims, features, strides, kernel_size, norm, deep_supervision, dtype,
        param_dtype: see `UNet`.
    """

    num_convs: int = 1
    num_blocks: Sequence[int] = (1, 3, 4, 6, 6, 6)

    _where = "resenc_unet"

    def _encode(self, x: Array, train: bool) -> list[Array]:
        if len(self.num_blocks) != len(self.features):
            raise ConfigError(
                self._where,
                f"num_blocks for {len(self.num_blocks)} stages and features for "
                f"{len(self.features)}",
                "one number for each stage",
                "Change num_blocks or features",
            )
        kind = {"norm": self.norm, "dtype": self.dtype, "param_dtype": self.param_dtype}
        kernels = self.stage_kernels
        x = ConvBlock(self.features[0], kernels[0], name="stem", **kind)(x, train)
        skips = []
        for i, stride in enumerate(self.stage_strides):
            for j in range(self.num_blocks[i]):
                x = ResidualBlock(
                    self.features[i],
                    kernels[i],
                    strides=stride if j == 0 else 1,
                    name=f"encoder{i}_block{j}",
                    **kind,
                )(x, train)
            self.sow("intermediates", f"encoder{i}", x)
            skips.append(x)
        return skips


class ResidualBlock(nn.Module):
    """y = leaky_relu(norm(conv(block(x))) + shortcut(x)).

    The shortcut averages over the strides, where there are some, and projects by 1x1 without a
    bias, where the channels change. The last norm starts at zero: the block begins as its shortcut.

    Args:
      features: output channels.
      kernel_size: odd.
      strides: of the first convolution.
      norm: see `make_norm`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: IntOrTuple = 3
    strides: IntOrTuple = 1
    norm: str | None = "instance"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *out, features)."""
        kind = {"norm": self.norm, "dtype": self.dtype, "param_dtype": self.param_dtype}
        linear = {"negative_slope": 1.0, **kind}
        strides = per_axis("ResidualBlock", "strides", self.strides, x.ndim - 2)
        y = ConvBlock(self.features, self.kernel_size, strides, name="conv1", **kind)(x, train)
        y = ConvBlock(
            self.features,
            self.kernel_size,
            scale_init=nn.initializers.zeros_init(),
            name="conv2",
            **linear,
        )(y, train)
        if max(strides) > 1:
            x = avg_pool(x, strides)
        if x.shape[-1] != self.features:
            x = ConvBlock(self.features, 1, use_bias=False, name="shortcut", **linear)(x, train)
        return checkpoint_name(nn.leaky_relu(x + y), "block")
