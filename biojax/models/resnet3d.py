"""Residual networks for classification, in three dimensions or fewer.

Sources: He et al., "Deep residual learning for image recognition", CVPR 2016, table 1; Hara et
al., "Can spatiotemporal 3D CNNs retrace the history of 2D CNNs and ImageNet?", CVPR 2018. Layers
as MONAI defines them: a first convolution of 7 without a stride, and a shortcut of 1x1 (type B).

| variant | block | blocks in each stage | 1 -> 2 classes | 3 -> 400 classes |
| --- | --- | --- | --- | --- |
| resnet3d_18 | two of 3 | 2 2 2 2 | 33,161,922 | 33,410,000 |
| resnet3d_34 | two of 3 | 3 4 6 3 | 63,471,554 | 63,719,632 |
| resnet3d_50 | 1, 3, 1 | 3 4 6 3 | 46,163,010 | 47,022,416 |

The bias of the shortcuts is idle, since a norm follows; Hara's networks have none.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError
from biojax.kernels import max_pool
from biojax.models.checks import check_image
from biojax.modules import ConvBlock
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["ResNet3D"]


class ResNet3D(nn.Module):
    """A stem, four stages of residual blocks, the mean over space, logits.

    Any size of image will do. Every stage but the first halves it, and so does the pool after the
    stem.

    Args:
      num_classes: logits.
      spatial_dims: 1, 2 or 3.
      features: channels of each stage; of its 3x3 convolutions, where there are bottlenecks.
      num_blocks: in each stage.
      bottleneck: blocks of 1, 3, 1 to four times the features, in place of two of 3.
      stem_strides: of the first convolution.
      shortcut_bias: give the convolutions of shortcuts a bias.
      norm: "batch", "instance", "layer", "group" or None; see `biojax.modules.make_norm`.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int
    spatial_dims: int = 3
    features: Sequence[int] = (64, 128, 256, 512)
    num_blocks: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    stem_strides: IntOrTuple = 1
    shortcut_bias: bool = True
    norm: str | None = "batch"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: 1."""
        return (1,) * self.spatial_dims

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, num_classes)."""
        check_image("resnet3d", x, self.spatial_dims, self.stride)
        if len(self.num_blocks) != len(self.features):
            raise ConfigError(
                "resnet3d",
                f"num_blocks for {len(self.num_blocks)} stages and features for "
                f"{len(self.features)}",
                "one number for each stage",
                "Change num_blocks or features",
            )
        x = self._layer(self.features[0], 7, self.stem_strides, "stem")(x, train)
        x = max_pool(x, 3, strides=2, padding=1)
        for i, (features, blocks) in enumerate(zip(self.features, self.num_blocks, strict=True)):
            for j in range(blocks):
                x = self._block(x, features, 2 if i and j == 0 else 1, f"stage{i}_block{j}", train)
            self.sow("intermediates", f"stage{i}", x)
        x = x.mean(axis=range(1, x.ndim - 1))
        x = nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype, name="head")(
            x
        )
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _block(self, x: Array, features: int, stride: int, name: str, train: bool) -> Array:
        """Layers, a shortcut around them, ReLU of the sum; the first layer of 3 has the stride."""
        if self.bottleneck:
            layers = [(features, 1, 1), (features, 3, stride), (4 * features, 1, 1)]
        else:
            layers = [(features, 3, stride), (features, 3, 1)]
        y = x
        for j, layer in enumerate(layers):
            last = j == len(layers) - 1
            y = self._layer(*layer, f"{name}_conv{j + 1}", linear=last)(y, train)
        if stride > 1 or x.shape[-1] != y.shape[-1]:
            shortcut = self._layer(
                y.shape[-1], 1, stride, f"{name}_shortcut", linear=True, use_bias=self.shortcut_bias
            )
            x = shortcut(x, train)
        return checkpoint_name(nn.relu(x + y), "block")

    def _layer(
        self,
        features: int,
        kernel_size: int,
        strides: IntOrTuple,
        name: str,
        *,
        linear: bool = False,
        use_bias: bool = False,
    ) -> ConvBlock:
        return ConvBlock(
            features,
            kernel_size,
            strides,
            use_bias=use_bias,
            norm=self.norm,
            negative_slope=1.0 if linear else 0.0,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
