"""U-Mamba: nnU-Net's plan with residual blocks, and Mamba over the voxels of its encoder.

Source: Ma, Li and Wang, "U-Mamba: enhancing long-range dependency for biomedical image
segmentation", 2024; layers as in the authors' code, https://github.com/bowang-lab/U-Mamba, except
that layer norms add 1e-6 to the variance, there 1e-5. Six stages, 3-D, patches of
128 x 128 x 128 voxels, 1 -> 2:

| variant | Mamba after | with the heads of deep supervision | without |
| --- | --- | --- | --- |
| umamba_bot | the last stage | 42,120,394 | 42,118,850 |
| umamba_enc | every stage | 42,750,922 | 42,749,378 |

The counts are the sums of the layers in that code; neither it nor the paper states one.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ShapeError
from biojax.models.checks import check_image
from biojax.models.unet import UNet
from biojax.modules import Conv, ConvBlock, MambaBlock, make_norm
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["UMamba"]


class UMamba(UNet):
    """`UNet` of residual blocks with Mamba in its encoder; an image to logits of its own size.

    The deeper half of the encoder's stages has one block each, as has the upper half of the
    decoder's. As in the authors' code, networks of two spatial axes have no skip at full
    resolution, and where Mamba is in the encoder, only every second stage has it, the last among
    them.

    Args:
      num_convs: residual blocks in each stage of the other halves.
      mamba_in_encoder: have Mamba after every stage of the encoder. Where a stage has no more
        voxels than channels, the channels are its tokens: the parameters then fit images of one
        size only. False for Mamba after the last stage alone, over its voxels.
      state_size: states of each channel.
      out_channels, spatial_dims, features, strides, kernel_size, norm, deep_supervision, dtype,
        param_dtype: see `UNet`.
    """

    mamba_in_encoder: bool = False
    state_size: int = 16

    _where = "umamba"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array | tuple[Array, ...]:
        """(b, *spatial, c) to (b, *spatial, out_channels).

        While training with deep supervision: a tuple of such logits, from full resolution down.
        """
        check_image(self._where, x, self.spatial_dims, self.stride)
        strides, kind = self.stage_strides, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        skips = self._encode(x, train)
        x, logits = skips[-1], []
        last, half = len(skips) - 1, -(-len(skips) // 2)
        for i in reversed(range(last)):
            x = Conv(self.features[i], 1, name=f"up{i}", **kind)(x)
            for axis, n in enumerate(strides[i + 1], start=1):
                x = jnp.repeat(x, n, axis)
            if i or self.spatial_dims != 2:
                x = jnp.concatenate([x, skips[i]], axis=-1)
            x = self._blocks(x, i, 1, i >= last - half, f"decoder{i}", train)
            self.sow("intermediates", f"decoder{i}", x)
            # Every head owns parameters from the start, whichever way the model is first called.
            if i and self.deep_supervision and (train or self.is_initializing()):
                logits.append(Conv(self.out_channels, 1, name=f"head{i}", **kind)(x))
        logits.append(Conv(self.out_channels, 1, name="head", **kind)(x))
        logits = tuple(y.astype(jnp.promote_types(y.dtype, jnp.float32)) for y in reversed(logits))
        return logits if train and self.deep_supervision else logits[0]

    def _encode(self, x: Array, train: bool) -> list[Array]:
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        strides, skips = self.stage_strides, []
        last, half = len(strides) - 1, -(-len(strides) // 2)
        x = self._blocks(x, 0, 1, True, "stem", train)
        for i, stride in enumerate(strides):
            x = self._blocks(x, i, stride, i < half, f"encoder{i}", train)
            every = 2 if self.spatial_dims == 2 else 1
            if i == last or (self.mamba_in_encoder and (last - i) % every == 0):
                layer = MambaLayer(self.state_size, self.mamba_in_encoder, name=f"mamba{i}", **kind)
                x = layer(x)
            self.sow("intermediates", f"encoder{i}", x)
            skips.append(x)
        return skips

    def _blocks(
        self, x: Array, i: int, stride: IntOrTuple, several: bool, name: str, train: bool
    ) -> Array:
        """The blocks of stage i, the first of which changes channels and size."""
        for j in range(self.num_convs if several else 1):
            x = BasicBlock(
                self.features[i],
                self.stage_kernels[i],
                stride if j == 0 else 1,
                project=j == 0,
                norm=self.norm,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"{name}_block{j}",
            )(x, train)
        return x


class BasicBlock(nn.Module):
    """y = leaky_relu(norm(conv(block(x))) + shortcut(x)).

    Args:
      features: output channels.
      kernel_size: odd.
      strides: of the first convolution, and of the shortcut.
      project: whether the shortcut is a convolution of 1x1, or nothing.
      norm: see `make_norm`.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: IntOrTuple
    strides: IntOrTuple
    project: bool
    norm: str | None = "instance"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *out, features)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        size, options = self.kernel_size, {"norm": self.norm, **kind}
        y = ConvBlock(self.features, size, self.strides, name="conv1", **options)(x, train)
        y = ConvBlock(self.features, size, negative_slope=1.0, name="conv2", **options)(y, train)
        if self.project:
            x = Conv(self.features, 1, self.strides, padding=0, name="shortcut", **kind)(x)
        return checkpoint_name(nn.leaky_relu(x + y), "block")


class MambaLayer(nn.Module):
    """mamba(norm(tokens)), which the output is alone: there is no shortcut.

    Args:
      state_size: states of each channel.
      swap: take the channels for tokens where there are no more voxels than channels.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ShapeError: an image of another size than the first, where channels are the tokens.
    """

    state_size: int
    swap: bool
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, *spatial, c) to the same."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        swap = self.swap and tokens.shape[1] <= tokens.shape[2]
        tokens = tokens.swapaxes(1, 2) if swap else tokens
        self._check(x, tokens.shape[-1])
        tokens = make_norm("layer", **kind)(tokens)
        y = MambaBlock(state_size=self.state_size, name="mamba", **kind)(tokens)
        return (y.swapaxes(1, 2) if swap else y).reshape(x.shape)

    def _check(self, x: Array, features: int) -> None:
        known = self.get_variable("params", "norm")
        if known is not None and known["scale"].shape != (features,):
            raise ShapeError(
                "umamba",
                f"{x.shape[1:-1]} voxels after a stage",
                f"{known['scale'].shape[0]} features in each token, channels or voxels",
                "Use images of the size that the parameters were made for, or umamba_bot, whose "
                "parameters fit any",
            )
