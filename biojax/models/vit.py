"""ViT: a transformer encoder over patches, with a class token.

Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, section 3.1 and table 1; the
two smaller ones: Touvron et al., "Training data-efficient image transformers", ICML 2021, table 1.
Parameters for 224 x 224 pixels, 3 -> 1000 classes, in patches of 16, `vit_h` in patches of 14, as
published with the models of PyTorch; and for 96 x 96 x 96 voxels, 1 -> 14, in patches of 16:

| variant | features | layers | heads | two dimensions | three dimensions |
| --- | --- | --- | --- | --- | --- |
| vit_ti | 192 | 12 | 3 | 5,717,416 | 6,169,934 |
| vit_s | 384 | 12 | 6 | 22,050,664 | 22,956,686 |
| vit_b | 768 | 12 | 12 | 86,567,656 | 88,380,686 |
| vit_l | 1024 | 24 | 16 | 304,326,632 | 306,744,334 |
| vit_h | 1280 | 32 | 16 | 632,045,800 | 635,221,774 |

Matrices begin as LeCun normal; those of PyTorch's models as truncated normal of 0.02.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ConfigError, nearest
from biojax.kernels.axes import per_axis
from biojax.models.checks import check_image, patch_grid
from biojax.modules import AttentionPool, LearnedPositions, PatchEmbed, TransformerBlock, make_norm
from biojax.typing import Array, Dtype, IntOrTuple, Precision

__all__ = ["ViT"]

POOLS = ("class", "mean", "attention")


class ViT(nn.Module):
    """Patches, learned positions, blocks of attention, a norm, one vector for the image, logits.

    Args:
      num_classes: logits; None for the tokens of the patches, to pretrain or to build upon.
      spatial_dims: 1, 2 or 3.
      image_size: pixels along each axis that the positions are made for; 224, or 96 for volumes, if
        None. Other images read between the positions, see `biojax.modules.LearnedPositions`.
      patch_size: pixels that make one token.
      features: size of a token.
      num_layers: blocks.
      num_heads: heads of attention; must divide features.
      mlp_ratio: width of a block's hidden layer over features.
      pool: what the logits are of: "class", a token that is there for it; "mean", the mean of all;
        "attention", what a learned query sees, `biojax.modules.AttentionPool`.
      pool_norm: whether the last norm is that of the pooled vector, not that of the tokens.
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

    num_classes: int | None
    spatial_dims: int = 2
    image_size: IntOrTuple | None = None
    patch_size: IntOrTuple = 16
    features: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    pool: str = "class"
    pool_norm: bool = False
    qk_norm: bool = False
    layer_scale: float | None = None
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
        return per_axis("vit", "patch_size", self.patch_size, self.spatial_dims)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis that the positions are made for."""
        size = self.image_size or (96 if self.spatial_dims == 3 else 224)
        return patch_grid("vit", size, self.stride)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, num_classes), or to tokens (b, t, features) in raster order."""
        check_image("vit", x, self.spatial_dims, self.stride)
        if self.pool not in POOLS:
            raise ConfigError(
                "vit",
                f"pool={self.pool!r}",
                f"one of {', '.join(map(repr, POOLS))}",
                "Name one of these",
                nearest(self.pool, POOLS),
            )
        x = self._tokens(x)
        first = int(self.pool == "class")  # of the patches
        kind = {"dtype": x.dtype, "param_dtype": self.param_dtype}
        # In bfloat16 the sum over blocks would forget what is less than a few thousandths of it.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for i in range(self.num_layers):
            x = TransformerBlock(
                self.num_heads,
                self.mlp_ratio,
                qk_norm=self.qk_norm,
                layer_scale=self.layer_scale,
                drop_path_rate=self.drop_path_rate * i / max(1, self.num_layers - 1),
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.attention_dropout_rate,
                precision=self.precision,
                implementation=self.implementation,
                name=f"block{i}",
                **kind,
            )(x, train=train)
            self.sow("intermediates", f"tokens{i}", x[:, first:])
        norm = make_norm("layer", **kind)
        if self.num_classes is None:
            return norm(x)[:, first:]
        x = x if self.pool_norm else norm(x)
        if self.pool == "attention":
            x = AttentionPool(
                self.num_heads,
                mlp_ratio=self.mlp_ratio,
                precision=self.precision,
                implementation=self.implementation,
                name="pool",
                **kind,
            )(x)[:, 0]
        else:
            x = x[:, 0] if self.pool == "class" else x.mean(axis=1)
        x = norm(x) if self.pool_norm else x
        options: dict[str, Any] = {"precision": self.precision, **kind}
        y = nn.Dense(self.num_classes, name="head", **options)(x)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    def _tokens(self, x: Array) -> Array:
        """The patches with their positions, behind the class token if there is one."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        grid = [n // k for n, k in zip(x.shape[1:-1], self.stride, strict=True)]
        x = PatchEmbed(self.features, self.patch_size, self.precision, name="embed", **kind)(x)
        b, t, c = x.shape
        positions = LearnedPositions(self.grid, name="positions", **kind)
        x = positions(x.reshape(b, *grid, c)).reshape(b, t, c)
        if self.pool != "class":
            return x
        # A position of its own adds nothing to the class token, but the authors' has one.
        init = nn.initializers.normal(0.02)
        token, position = (
            self.param(name, init, (c,), self.param_dtype)
            for name in ("class_token", "class_position")
        )
        token = jnp.broadcast_to((token + position).astype(x.dtype), (b, 1, c))
        return jnp.concatenate([token, x], axis=1)
