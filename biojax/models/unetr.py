"""UNETR: a vision transformer goes down at once, residual blocks go up and read its layers.

Source: Hatamizadeh et al., "UNETR: transformers for 3D medical image segmentation", WACV 2022,
section 3; layers as in MONAI's `UNETR` with its defaults. The paper reads the skips after blocks 3,
6 and 9, and its decoder is of plain blocks with batch normalisation; that code reads them one block
later, and its blocks are residual ones. Three-dimensional, for 96 x 96 x 96 voxels:

| | 1 -> 2 | 1 -> 14 | 4 -> 3 |
| --- | --- | --- | --- |
| unetr | 92,783,842 | 92,784,046 | 102,222,387 |

MONAI counts 18,432 more, the norms of an attention to other tokens that each block has and never
calls. Instance norms have no scale and bias. Matrices and kernels begin as LeCun normal; in MONAI
uniform, as PyTorch's layers do.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.kernels.axes import per_axis
from biojax.models.checks import check_image, patch_grid, patch_strides
from biojax.modules import (
    Conv,
    ConvTranspose,
    LearnedPositions,
    PatchEmbed,
    TransformerBlock,
    make_norm,
)
from biojax.typing import Array, Dtype, IntOrTuple, Precision

__all__ = ["UNETR", "UNETRBlock"]


class UNETR(nn.Module):
    """Patches and blocks of attention, then steps of two up with skips; an image to its logits.

    Patches of 2^s pixels make s steps up. The skip at the pixels reads the image; the one i steps
    below them reads the tokens i / s of the way through the transformer, and goes up by itself.

    Args:
      out_channels: classes.
      spatial_dims: 1, 2 or 3.
      image_size: pixels along each axis that the positions are made for. Other images read between
        the positions, see `biojax.modules.LearnedPositions`.
      patch_size: pixels that make one token; powers of two.
      features: channels at full resolution, doubled at each step down.
      hidden_features: size of a token.
      num_layers: blocks of attention.
      num_heads: heads of attention; must divide hidden_features.
      mlp_ratio: width of a block's hidden layer over hidden_features.
      qkv_bias: whether queries, keys and values have a bias.
      norm: of the convolutions: "instance" (without scale and bias), "layer", "group", "batch" or
        None; see `biojax.modules.make_norm`.
      dropout_rate: of every branch of the transformer, while training.
      precision: of all products.
      implementation: see `biojax.kernels.attention`.
      dtype: of the computation; the sum over blocks and the logits are float32 at least.
      param_dtype: of the parameters.
    """

    out_channels: int
    spatial_dims: int = 3
    image_size: IntOrTuple = 96
    patch_size: IntOrTuple = 16
    features: int = 16
    hidden_features: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    norm: str | None = "instance"
    dropout_rate: float = 0.0
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: the patch."""
        return per_axis("unetr", "patch_size", self.patch_size, self.spatial_dims)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis that the positions are made for."""
        return patch_grid("unetr", self.image_size, self.stride)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *spatial, out_channels)."""
        check_image("unetr", x, self.spatial_dims, self.stride)
        strides = patch_strides("unetr", self.stride)
        kind: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kind["precision"] = self.precision

        def up(x: Array, f: int, i: int, name: str) -> Array:
            options = {"strides": strides[i], "use_bias": False, "name": name, **kind}
            return ConvTranspose(f, strides[i], **options)(x)

        def block(x: Array, f: int, name: str) -> Array:
            return UNETRBlock(f, self.norm, name=name, **kind)(x, train)

        steps, width = len(strides), [self.features << i for i in range(len(strides))]
        *states, y = self._encode(x, steps, train)
        skips = [block(x, width[0], "skip0")]
        for i, skip in enumerate(states, start=1):
            for j in reversed(range(i, steps)):
                skip = up(skip, width[i], j, f"skip{i}_up{j}")
                if j < steps - 1:
                    skip = block(skip, width[i], f"skip{i}_block{j}")
            skips.append(skip)
        for i in reversed(range(steps)):
            y = jnp.concatenate([up(y, width[i], i, f"up{i}"), skips[i]], axis=-1)
            y = block(y, width[i], f"decoder{i}_block0")
            self.sow("intermediates", f"decoder{i}", y)
        y = Conv(self.out_channels, 1, name="head", **kind)(y)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    def _encode(self, x: Array, steps: int, train: bool) -> list[Array]:
        """Tokens (b, *grid, hidden_features) that each of the steps reads, the lowest last."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        grid = [n // k for n, k in zip(x.shape[1:-1], self.stride, strict=True)]
        f = self.hidden_features
        x = PatchEmbed(f, self.patch_size, self.precision, name="embed", **kind)(x)
        b, t, c = x.shape
        x = LearnedPositions(self.grid, name="positions", **kind)(x.reshape(b, *grid, c))
        kind["dtype"] = x.dtype
        # In bfloat16 the sum over blocks would forget what is less than a few thousandths of it.
        x = x.reshape(b, t, c).astype(jnp.promote_types(x.dtype, jnp.float32))
        states = []
        for i in range(self.num_layers):
            x = TransformerBlock(
                self.num_heads,
                self.mlp_ratio,
                qkv_bias=self.qkv_bias,
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.dropout_rate,
                epsilon=1e-5,
                precision=self.precision,
                implementation=self.implementation,
                name=f"block{i}",
                **kind,
            )(x, train=train)
            self.sow("intermediates", f"tokens{i}", x)
            states.append(x)
        read = [states[i * self.num_layers // steps] for i in range(1, steps)]
        last = make_norm("layer", epsilon=1e-5, **kind)(x)
        return [y.reshape(b, *grid, c).astype(last.dtype) for y in [*read, last]]


class UNETRBlock(nn.Module):
    """Two layers of 3, a leaky ReLU between and after them, and a shortcut.

    The shortcut is a convolution of 1x1 with a norm, where the channels change, or nothing.

    Args:
      features: output channels.
      norm: see `make_norm`; instance normalisation has no scale and bias.
      precision: of the products.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    norm: str | None = "instance"
    precision: Precision = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *spatial, features)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def layer(x: Array, size: int, name: str) -> Array:
            options = {"use_bias": False, "precision": self.precision, "name": name, **kind}
            y = Conv(self.features, size, **options)(x)
            affine = self.norm != "instance"
            return make_norm(self.norm, train, affine=affine, layer_name=f"{name}_norm", **kind)(y)

        y = layer(nn.leaky_relu(layer(x, 3, "conv1")), 3, "conv2")
        if x.shape[-1] != self.features:
            x = layer(x, 1, "shortcut")
        return checkpoint_name(nn.leaky_relu(x + y), "block")
