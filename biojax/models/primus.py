"""Primus: a transformer over small patches, which a few transposed convolutions make an image.

Source: Wald et al., "Primus: enforcing attention usage for 3D medical image segmentation", 2025,
section 4; layers as in the authors' code in dynamic_network_architectures. They train with a
drop_path_rate of 0.2. Three-dimensional, for 96 x 96 x 96 voxels in patches of 8:

| variant | features | layers | heads | 1 -> 2 | 1 -> 14 |
| --- | --- | --- | --- | --- | --- |
| primus_s | 396 | 12 | 6 | 23,868,062 | 24,174,098 |
| primus_b | 792 | 12 | 12 | 93,206,570 | 94,131,038 |
| primus_m | 864 | 16 | 12 | 146,602,394 | 147,661,030 |
| primus_l | 1056 | 24 | 16 | 325,554,722 | 326,989,622 |

Matrices and kernels begin as LeCun normal; the authors' as truncated normal of 0.02 in attention
and as He normal in convolutions.
"""

import flax.linen as nn
import jax.numpy as jnp

from biojax.kernels import rotary_angles
from biojax.kernels.axes import per_axis
from biojax.models.checks import check_image, patch_grid, patch_strides
from biojax.modules import ConvTranspose, LearnedPositions, PatchEmbed, TransformerBlock, make_norm
from biojax.typing import Array, Dtype, IntOrTuple, Precision

__all__ = ["Primus"]


class Primus(nn.Module):
    """Patches, blocks of attention with rotary positions, steps of two up; an image to its logits.

    Blocks are those of EVA-02: SwiGLU, norms inside of attention and perceptron, learned scales of
    both branches. No convolution looks beyond a patch: what lies around is seen by attention alone.

    Args:
      out_channels: classes.
      spatial_dims: 1, 2 or 3.
      image_size: pixels along each axis that the learned positions are made for. Other images read
        between them, see `biojax.modules.LearnedPositions`; rotary positions are whole numbers.
      patch_size: pixels that make one token; powers of two.
      features: size of a token.
      num_layers: blocks of attention.
      num_heads: heads of attention; must divide features, into two channels for each axis or more.
      mlp_ratio: width of a block's hidden layer over features.
      learned_positions: whether there are any beside the rotary ones.
      attention_norm: whether what the heads found is normalised, see `MultiHeadAttention`.
      qk_norm: whether queries and keys are normalised.
      layer_scale: what learned scales of the branches start from; None for no such scales.
      drop_path_rate: share of images that leave out the last block, while training; from block to
        block it rises to that linearly, beginning with none.
      dropout_rate: of every branch, while training.
      attention_dropout_rate: of the attention weights, while training.
      precision: of all products.
      implementation: see `biojax.kernels.attention`.
      dtype: of the computation; the sum over blocks and the logits are float32 at least.
      param_dtype: of the parameters.
    """

    out_channels: int
    spatial_dims: int = 3
    image_size: IntOrTuple = 96
    patch_size: IntOrTuple = 8
    features: int = 396
    num_layers: int = 12
    num_heads: int = 6
    mlp_ratio: float = 8 / 3
    learned_positions: bool = True
    attention_norm: bool = True
    qk_norm: bool = False
    layer_scale: float | None = 0.1
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: the patch."""
        return per_axis("primus", "patch_size", self.patch_size, self.spatial_dims)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis that the learned positions are made for."""
        return patch_grid("primus", self.image_size, self.stride)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *spatial, out_channels)."""
        check_image("primus", x, self.spatial_dims, self.stride)
        strides = patch_strides("primus", self.stride)
        x = self._encode(x, train)
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"precision": self.precision, **kind}
        for i, f in reversed(list(enumerate(self._widths(len(strides))))):
            name = f"up{i}" if i else "head"
            x = ConvTranspose(f, strides[i], strides=strides[i], name=name, **options)(x)
            if i:
                x = make_norm("layer", layer_name=f"up{i}_norm", **kind)(x)
                x = nn.gelu(x, approximate=False)
                self.sow("intermediates", f"decoder{i}", x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _encode(self, x: Array, train: bool) -> Array:
        """Tokens (b, *grid, features) that have seen each other."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        grid = [n // k for n, k in zip(x.shape[1:-1], self.stride, strict=True)]
        x = PatchEmbed(self.features, self.patch_size, self.precision, name="embed", **kind)(x)
        b, t, c = x.shape
        if self.learned_positions:
            x = LearnedPositions(self.grid, name="positions", **kind)(x.reshape(b, *grid, c))
        angles = rotary_angles(grid, c // self.num_heads)
        kind["dtype"] = x.dtype
        # In bfloat16 the sum over blocks would forget what is less than a few thousandths of it.
        x = x.reshape(b, t, c).astype(jnp.promote_types(x.dtype, jnp.float32))
        for i in range(self.num_layers):
            x = TransformerBlock(
                self.num_heads,
                self.mlp_ratio,
                "swiglu",
                mlp_norm=True,
                attention_norm=self.attention_norm,
                key_bias=False,
                qk_norm=self.qk_norm,
                layer_scale=self.layer_scale,
                drop_path_rate=self.drop_path_rate * i / max(1, self.num_layers - 1),
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.attention_dropout_rate,
                epsilon=1e-5,
                precision=self.precision,
                implementation=self.implementation,
                name=f"block{i}",
                **kind,
            )(x, angles=angles, train=train)
            self.sow("intermediates", f"tokens{i}", x)
        x = make_norm("layer", epsilon=1e-5, **kind)(x)
        return x.reshape(b, *grid, c)

    def _widths(self, steps: int) -> list[int]:
        """Channels after each step up, the last step first: fewer by one factor at each of them.

        It would end at twice the classes; the last step is the head. Rounded to multiples of 8.
        """
        factor = (self.features / (2 * self.out_channels)) ** (1 / steps)
        widths = [self.features / factor ** (steps - i) for i in range(1, steps)]
        return [self.out_channels, *(max(8, round((f + 1e-6) / 8) * 8) for f in widths)]
