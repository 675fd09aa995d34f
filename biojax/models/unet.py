"""U-Net in two and three dimensions.

Sources: Ronneberger et al., "U-Net", MICCAI 2015; Cicek et al., "3D U-Net", MICCAI 2016; the
plain variant of Isensee et al., "nnU-Net", Nature Methods 18, 2021, which the defaults follow:
strided convolutions go down, transposed ones whose kernel is their stride go up, two blocks of
convolution, instance normalisation and leaky ReLU at each of six stages.

| six stages, 3-D | 1 -> 2 | 1 -> 14 |
| --- | --- | --- |
| with the heads of deep supervision, as nnU-Net publishes it | 31,195,594 | 31,205,254 |
| without | 31,194,050 | 31,194,446 |
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ConfigError
from biojax.kernels.axes import per_axis
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
      kernel_size: odd; of every block, or a tuple of one per axis for each stage.
      num_convs: blocks in each stage.
      norm: "instance", "layer", "group", "batch" or None; see `biojax.modules.make_norm`.
      deep_supervision: give every stage of the decoder a 1x1 head, whose logits are trained too.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.
    """

    out_channels: int
    spatial_dims: int = 3
    features: Sequence[int] = (32, 64, 128, 256, 320, 320)
    strides: Sequence[IntOrTuple] | None = None
    kernel_size: IntOrTuple | Sequence[Sequence[int]] = 3
    num_convs: int = 2
    norm: str | None = "instance"
    deep_supervision: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    _where = "unet"

    @property
    def stage_strides(self) -> list[tuple[int, ...]]:
        """The stride of each stage along each axis."""
        strides = self.strides or (1, *[2] * (len(self.features) - 1))
        if len(strides) != len(self.features):
            raise ConfigError(
                self._where,
                f"{len(strides)} strides for {len(self.features)} stages",
                "one stride for each entry of features, the first of them 1",
                "Change strides or features",
            )
        strides = [per_axis(self._where, "strides", s, self.spatial_dims) for s in strides]
        if max(strides[0]) > 1:
            raise ConfigError(
                self._where,
                f"strides that begin with {strides[0]}",
                "a first stage at full resolution, which the logits have",
                "Begin with 1",
            )
        return strides

    @property
    def stage_kernels(self) -> list[tuple[int, ...]]:
        """The size of the kernels in each stage along each axis."""
        size, stages = self.kernel_size, len(self.features)
        one = isinstance(size, int) or isinstance(size[0], int)
        sizes: Any = [size] * stages if one else size
        if len(sizes) != stages:
            raise ConfigError(
                self._where,
                f"kernel_size for {len(sizes)} stages and features for {stages}",
                "one size for all, or one for each stage",
                "Change kernel_size or features",
            )
        return [per_axis(self._where, "kernel_size", k, self.spatial_dims) for k in sizes]

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis."""
        return tuple(math.prod(axis) for axis in zip(*self.stage_strides, strict=True))

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array | tuple[Array, ...]:
        """(b, *spatial, c) to (b, *spatial, out_channels).

        While training with deep supervision: a tuple of such logits, from full resolution down.
        """
        check_image(self._where, x, self.spatial_dims, self.stride)
        strides, kind = self.stage_strides, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        skips = self._encode(x, train)
        x, logits = skips[-1], []
        for i in reversed(range(len(skips) - 1)):
            up = strides[i + 1]
            init = nn.initializers.he_normal()
            x = ConvTranspose(
                self.features[i], up, strides=up, kernel_init=init, name=f"up{i}", **kind
            )(x)
            x = jnp.concatenate([x, skips[i]], axis=-1)
            x = self._stage(x, i, 1, f"decoder{i}", train)
            # Every head owns parameters from the start, whichever way the model is first called.
            if i and self.deep_supervision and (train or self.is_initializing()):
                logits.append(Conv(self.out_channels, 1, name=f"head{i}", **kind)(x))
        logits.append(Conv(self.out_channels, 1, name="head", **kind)(x))
        logits = tuple(y.astype(jnp.promote_types(y.dtype, jnp.float32)) for y in reversed(logits))
        return logits if train and self.deep_supervision else logits[0]

    def _encode(self, x: Array, train: bool) -> list[Array]:
        """The output of every stage on the way down."""
        skips = []
        for i, stride in enumerate(self.stage_strides):
            x = self._stage(x, i, stride, f"encoder{i}", train)
            skips.append(x)
        return skips

    def _stage(self, x: Array, i: int, stride: IntOrTuple, name: str, train: bool) -> Array:
        for j in range(self.num_convs):
            x = ConvBlock(
                self.features[i],
                self.stage_kernels[i],
                strides=stride if j == 0 else 1,
                norm=self.norm,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"{name}_block{j}",
            )(x, train)
        self.sow("intermediates", name, x)
        return x
