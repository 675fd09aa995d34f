"""A classifier by self-attention over a sequence of tokens.

Sources: Vaswani et al., "Attention is all you need", NeurIPS 2017, sections 3.2 and 3.5;
Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, section 3.1, with the mean of the
tokens in place of a class token.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from biojax.kernels.axes import per_axis
from biojax.models.checks import check_image
from biojax.modules import PatchEmbed, TransformerBlock, make_norm, sincos_positions
from biojax.typing import Array, Dtype, IntOrTuple, Precision

__all__ = ["AttentionClassifier"]


class AttentionClassifier(nn.Module):
    """Tokens, blocks of self-attention, the mean token, logits.

    Positions are fixed, `biojax.modules.sincos_positions`: each axis of an image has its share of
    the features.

    Args:
      num_classes: logits.
      spatial_dims: 1 for sequences (b, t, c); images of 2 or 3 are cut into patches.
      patch_size: pixels that make one token.
      features: size of a token.
      num_heads: heads of attention; must divide features.
      num_layers: blocks.
      mlp_ratio: width of a block's hidden layer over features.
      dropout_rate: while training.
      precision: of all products.
      implementation: see `biojax.kernels.attention`.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.

    Raises:
      ConfigError: fewer than two features for each axis, or heads that do not divide them.
      ShapeError: an image of another rank, or that the patches do not divide.
    """

    num_classes: int
    spatial_dims: int = 1
    patch_size: IntOrTuple = 1
    features: int = 64
    num_heads: int = 4
    num_layers: int = 2
    mlp_ratio: float = 4.0
    dropout_rate: float = 0.0
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: the patch."""
        return per_axis("attention_classifier", "patch_size", self.patch_size, self.spatial_dims)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, num_classes)."""
        check_image("attention_classifier", x, self.spatial_dims, self.stride)
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        grid = [n // k for n, k in zip(x.shape[1:-1], self.stride, strict=True)]
        x = PatchEmbed(self.features, self.patch_size, self.precision, name="embed", **kind)(x)
        x = x + sincos_positions(grid, self.features).astype(x.dtype)
        for i in range(self.num_layers):
            x = TransformerBlock(
                self.num_heads,
                mlp_ratio=self.mlp_ratio,
                dropout_rate=self.dropout_rate,
                precision=self.precision,
                implementation=self.implementation,
                name=f"block{i}",
                **kind,
            )(x, train=train)
            self.sow("intermediates", f"tokens{i}", x)
        x = make_norm("layer", **kind)(x).mean(axis=1)
        options: dict[str, Any] = {"precision": self.precision, **kind}
        y = nn.Dense(self.num_classes, name="head", **options)(x)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))
