"""MedNeXt: a U-Net of depthwise convolutions with large kernels.

Source: Roy et al., "MedNeXt: transformer-driven scaling of ConvNets for medical image
segmentation", MICCAI 2023, section 2 and table 1; numbers of blocks and expansion ratios as in the
authors' code, https://github.com/MIC-DKFZ/MedNeXt. Three-dimensional, 1 -> 2, 32 features, without
the heads of deep supervision:

| variant | blocks in each stage | expansion ratios | kernel 3 | kernel 5 |
| --- | --- | --- | --- | --- |
| mednext_s | 2 2 2 2 2 2 2 2 2 | 2 2 2 2 2 2 2 2 2 | 5,550,914 | 5,980,546 |
| mednext_b | 2 2 2 2 2 2 2 2 2 | 2 3 4 4 4 4 4 3 2 | 10,526,306 | 10,955,938 |
| mednext_m | 3 4 4 4 4 4 4 4 3 | 2 3 4 4 4 4 4 3 2 | 17,548,962 | 18,260,834 |
| mednext_l | 3 4 8 8 8 8 8 4 3 | 3 4 8 8 8 8 8 4 3 | 61,779,266 | 62,992,898 |

The authors' code counts one more, a dummy that is never used. MONAI's B, M and L are others
(10,510,850, 17,533,506 and 61,726,754): on the way down their blocks have the expansion ratio of
the stage above, here and in the authors' code that of the stage below.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError, ShapeError
from biojax.models.checks import check_image
from biojax.modules import Conv, ConvTranspose, make_norm
from biojax.typing import Array, Dtype

__all__ = ["MedNeXt", "upkern"]


class MedNeXt(nn.Module):
    """Encoder and decoder of MedNeXt blocks, skips added; an image to logits of its own size.

    Stages are listed in the order they run: down to the middle one, the bottleneck, and up again.
    Each step down doubles the channels and halves the image.

    Args:
      out_channels: classes.
      spatial_dims: 1, 2 or 3.
      features: channels at full resolution.
      num_blocks: in each stage; an odd number of stages.
      expansion_ratio: width of a block's hidden layer over its input, in each stage.
      kernel_size: odd; of the depthwise convolutions.
      deep_supervision: give every lower stage from the bottleneck on a 1x1 head, trained too.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.
    """

    out_channels: int
    spatial_dims: int = 3
    features: int = 32
    num_blocks: Sequence[int] = (2,) * 9
    expansion_ratio: Sequence[int] = (2,) * 9
    kernel_size: int = 3
    deep_supervision: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis."""
        return (2 ** (len(self.num_blocks) // 2),) * self.spatial_dims

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array | tuple[Array, ...]:
        """(b, *spatial, c) to (b, *spatial, out_channels).

        While training with deep supervision: a tuple of such logits, from full resolution down.
        """
        self._check()
        check_image("mednext", x, self.spatial_dims, self.stride)
        depth = len(self.num_blocks) // 2
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = [self.features * 2 ** min(s, 2 * depth - s) for s in range(2 * depth + 1)]

        def stage(x, s, name):
            for j in range(self.num_blocks[s]):
                block = self._block(width[s], s, name=f"{name}_block{j}")
                x = checkpoint_name(x + block(x), "block")
            self.sow("intermediates", name, x)
            return x

        x = Conv(self.features, 1, name="stem", **kind)(x)
        skips, logits = [], []
        for i in range(depth):
            skips.append(stage(x, i, f"encoder{i}"))
            shortcut = Conv(width[i + 1], 1, strides=2, name=f"down{i}_shortcut", **kind)
            down = self._block(width[i + 1], i + 1, resample="down", name=f"down{i}")
            x = checkpoint_name(down(skips[i]) + shortcut(skips[i]), "block")
        x = stage(x, depth, "bottleneck")
        for i in reversed(range(depth)):
            if self.deep_supervision and (train or self.is_initializing()):
                logits.append(Conv(self.out_channels, 1, name=f"head{i + 1}", **kind)(x))
            s = 2 * depth - i
            padding = [(1, 0)] * self.spatial_dims
            shortcut = ConvTranspose(
                width[s], 1, strides=2, padding=padding, name=f"up{i}_shortcut", **kind
            )
            up = self._block(width[s], s, resample="up", name=f"up{i}")
            y = up(x) + shortcut(x)
            y = jnp.where(_behind_first(y), y, 0)
            x = stage(checkpoint_name(y, "block") + skips[i], s, f"decoder{i}")
        logits.append(Conv(self.out_channels, 1, name="head", **kind)(x))
        logits = tuple(y.astype(jnp.promote_types(y.dtype, jnp.float32)) for y in reversed(logits))
        return logits if train and self.deep_supervision else logits[0]

    def _block(self, features: int, stage: int, **options) -> "MedNeXtBlock":
        return MedNeXtBlock(
            features,
            self.kernel_size,
            self.expansion_ratio[stage],
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **options,
        )

    def _check(self) -> None:
        stages = len(self.num_blocks)
        if stages % 2 == 0 or len(self.expansion_ratio) != stages:
            raise ConfigError(
                "mednext",
                f"num_blocks for {stages} stages and expansion_ratio for "
                f"{len(self.expansion_ratio)}",
                "an odd number of stages, the same in both",
                "Change either",
            )
        if self.kernel_size % 2 == 0:
            raise ConfigError(
                "mednext",
                f"kernel_size={self.kernel_size}",
                "an odd number, so that the padding is the same on both sides",
                "Make it odd",
                f"kernel_size={self.kernel_size + 1}",
            )


class MedNeXtBlock(nn.Module):
    """Depthwise convolution, a norm of each channel, and two layers of 1x1 with GELU between them.

    The norm is group normalisation with as many groups as channels, which is instance
    normalisation. What is added to the output is the caller's affair.

    Args:
      features: output channels.
      kernel_size: of the depthwise convolution, odd.
      expansion_ratio: channels of the hidden layer over those of the input.
      resample: None, "down" by a stride of 2, or "up" by a transposed one. That makes 2 n - 1
        pixels of n: what stands in front of them, to make them 2 n, means nothing and is not seen
        by the norm. So an image spread over devices has parts of one size at every resolution.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: int
    expansion_ratio: int
    resample: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, *spatial, c) to (b, *out, features)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        c, half, is_up = x.shape[-1], self.kernel_size // 2, self.resample == "up"
        layer = ConvTranspose if is_up else Conv
        x = layer(
            c,
            self.kernel_size,
            strides=2 if self.resample else 1,
            padding=[(half + is_up, half)] * (x.ndim - 2),
            feature_group_count=c,
            name="depthwise",
            **kind,
        )(x)
        if is_up:
            norm = nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False, name="norm", **kind)
            x = norm(x, mask=_behind_first(x))
        else:
            x = make_norm("instance", **kind)(x)
        x = nn.gelu(Conv(self.expansion_ratio * c, 1, name="expand", **kind)(x), approximate=False)
        return Conv(self.features, 1, name="project", **kind)(x)


def _behind_first(x: Array) -> Array:
    """Whether each pixel of (b, *spatial, c) is behind the first along every axis."""
    behind = [lax.broadcasted_iota(jnp.int32, x.shape, axis) > 0 for axis in range(1, x.ndim - 1)]
    return functools.reduce(jnp.logical_and, behind)


def upkern(params: Mapping[str, Any], larger: Mapping[str, Any]) -> dict[str, Any]:
    """Start a model of larger kernels from a trained one of smaller kernels (UpKern).

    Kernels of another size are resized by linear interpolation along each spatial axis, half-pixel
    centres, edges repeated; everything else is taken as it is.

    Args:
      params: parameters of the model with the smaller kernels.
      larger: parameters, or their shapes, of the same model with larger `kernel_size`.

    Returns:
      Parameters of the larger model.

    Raises:
      ShapeError: the two differ in more than the size of kernels.

    Source: Roy et al., MICCAI 2023, section 2.3.

    >>> small = {"kernel": jnp.arange(3.0).reshape(3, 1, 1), "bias": jnp.ones(1)}
    >>> large = upkern(small, {"kernel": jnp.zeros((5, 1, 1)), "bias": jnp.zeros(1)})
    >>> [round(float(w), 2) for w in large["kernel"][:, 0, 0]]
    [0.0, 0.4, 1.0, 1.6, 2.0]
    """
    if jax.tree.structure(params) != jax.tree.structure(larger):
        raise _different("other names of parameters")

    def resized(path, small, large):
        if small.shape == large.shape:
            return small
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if len(small.shape) < 3 or small.shape[-2:] != large.shape[-2:]:
            raise _different(f"{name} of {small.shape} and {large.shape}")
        # No smoothing where a kernel shrinks: this is interpolation, not a change of resolution.
        return jax.image.resize(small, large.shape, "linear", antialias=False)

    return jax.tree_util.tree_map_with_path(resized, params, larger)


def _different(got: str) -> ShapeError:
    return ShapeError(
        "upkern",
        got,
        "two models that differ in kernel_size alone",
        "Create both with the same fields but kernel_size",
    )
