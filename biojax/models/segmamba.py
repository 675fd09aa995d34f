"""SegMamba: a pyramid of tri-orientated Mamba, and the decoder of UNETR.

Source: Xing et al., "SegMamba: long-range sequential modeling Mamba for 3D medical image
segmentation", MICCAI 2024, section 2; layers as in the authors' code,
https://github.com/ge-xing/SegMamba, except that layer norms add 1e-6 to the variance, there 1e-5.
That code departs from the paper, where the stem is a depthwise convolution, every Mamba has a gated
convolution before it and a residual perceptron behind it, and skips are weighted by an estimate of
their uncertainty. Three-dimensional, as many slices at each stage as the code is set to for
128 x 128 x 128 voxels:

| | 1 -> 2 | 4 -> 4 |
| --- | --- | --- |
| segmamba | 67,362,674 | 67,416,196 |

The counts are the sums of the layers in that code. Neither paper nor code states one; Das et al.,
"SegResMamba", 2025, table 7, measured 67.36M, with one channel in: the same to all its digits.
Instance norms have no scale and bias, so that the bias of a convolution before one is idle.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError
from biojax.kernels.scan import TRI_ORIENTATED
from biojax.models.checks import check_image
from biojax.models.unetr import UNETRBlock
from biojax.modules import Conv, ConvTranspose, MambaBlock, make_norm
from biojax.typing import Array, Dtype

__all__ = ["SegMamba"]


class SegMamba(nn.Module):
    """Stages of gated convolution and Mamba go down, residual blocks up; an image to its logits.

    The first stage is half as large as the image, each later one half as large as the one before.

    Args:
      out_channels: classes.
      spatial_dims: 1, 2 or 3.
      features: channels of each stage.
      num_blocks: of Mamba in each stage.
      hidden_features: channels between encoder and decoder.
      state_size: states of each channel.
      norm: "instance" (without scale and bias), "layer", "group", "batch" or None; see
        `biojax.modules.make_norm`.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.
    """

    out_channels: int
    spatial_dims: int = 3
    features: Sequence[int] = (48, 96, 192, 384)
    num_blocks: Sequence[int] = (2, 2, 2, 2)
    hidden_features: int = 768
    state_size: int = 16
    norm: str | None = "instance"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis."""
        return (2 ** len(self.features),) * self.spatial_dims

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *spatial, out_channels)."""
        check_image("segmamba", x, self.spatial_dims, self.stride)
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"norm": self.norm, **kind}
        width = [*self.features, self.hidden_features]
        skips = [
            UNETRBlock(f, name=f"skip{i}", **options)(y, train)
            for i, (f, y) in enumerate(zip(width, [x, *self._encode(x, train)], strict=True))
        ]
        x = skips.pop()
        for i in reversed(range(len(skips))):
            f = self.features[i]
            x = ConvTranspose(f, 2, strides=2, use_bias=False, name=f"up{i}", **kind)(x)
            x = jnp.concatenate([x, skips[i]], axis=-1)
            x = UNETRBlock(f, name=f"decoder{i}_block0", **options)(x, train)
            if i == 0:
                x = UNETRBlock(f, name="decoder0_block1", **options)(x, train)
            self.sow("intermediates", f"decoder{i}", x)
        y = Conv(self.out_channels, 1, name="head", **kind)(x)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    def _encode(self, x: Array, train: bool) -> list[Array]:
        """The output of every stage."""
        if len(self.num_blocks) != len(self.features):
            raise ConfigError(
                "segmamba",
                f"num_blocks for {len(self.num_blocks)} stages and features for "
                f"{len(self.features)}",
                "one number for each stage",
                "Change num_blocks or features",
            )
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"norm": self.norm, **kind}
        # Images of fewer axes too are made of slices across the first one.
        n = self.spatial_dims
        letters = str.maketrans("zyx"[:n], "zyx"[-n:], "zyx"[n:])
        orders, outputs = tuple(order.translate(letters) for order in TRI_ORIENTATED), []
        for i, (f, blocks) in enumerate(zip(self.features, self.num_blocks, strict=True)):
            if i == 0:
                x = Conv(f, 7, strides=2, padding=3, name="down0", **kind)(x)
            else:
                x = _norm(self, train, f"down{i}_norm")(x)
                x = Conv(f, 2, strides=2, padding=0, name=f"down{i}", **kind)(x)
            x = GatedConv(name=f"gate{i}", **options)(x, train)
            for j in range(blocks):
                y = make_norm("layer", layer_name=f"stage{i}_norm{j}", **kind)(x)
                name = f"stage{i}_mamba{j}"
                y = MambaBlock(orders, "sum", state_size=self.state_size, name=name, **kind)(y)
                x = checkpoint_name(x + y, "block")
            self.sow("intermediates", f"stage{i}", x)
            y = _norm(self, train, f"mlp{i}_norm")(x)
            y = nn.gelu(Conv(2 * f, 1, name=f"mlp{i}_expand", **kind)(y), approximate=False)
            outputs.append(Conv(f, 1, name=f"mlp{i}_project", **kind)(y))
        return outputs


class GatedConv(nn.Module):
    """x + layer(layers(x) + layer(x)), the gated spatial convolution.

    The two `layers` have kernels of 3, the others of 1. The paper multiplies the branches, like a
    gate; the authors' code adds them, and so does this. There too the long branch is one layer, the
    last kernel is of 3, and norms come before their convolutions.

    Args:
      norm: see `make_norm`; instance normalisation has no scale and bias.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    norm: str | None = "instance"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to the same."""

        def layer(x: Array, size: int, name: str) -> Array:
            kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            y = Conv(x.shape[-1], size, name=name, **kind)(x)
            return nn.relu(_norm(self, train, f"{name}_norm")(y))

        y = layer(layer(x, 3, "conv1"), 3, "conv2") + layer(x, 1, "gate")
        return checkpoint_name(x + layer(y, 1, "fuse"), "block")


def _norm(module: SegMamba | GatedConv, train: bool, name: str):
    return make_norm(
        module.norm,
        train,
        affine=module.norm != "instance",
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        layer_name=name,
    )
