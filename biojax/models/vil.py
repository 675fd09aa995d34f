"""Vision-LSTM (ViL): blocks of mLSTM over patches, every second one from the last to the first.

Source: Alkin et al., "Vision-LSTM: xLSTM as generic vision backbone", ICLR 2025; layers as in the
authors' second version, https://github.com/NX-AI/vision-lstm, with the norm before the head that
their published weights have. Layer norms add 1e-6 to the variance; there those inside of blocks and
before the head add 1e-5. For 224 x 224 pixels, 3 -> 1000 classes:

| variant | features | parameters | stated |
| --- | --- | --- | --- |
| vil_t | 192 | 6,391,528 | 6M |
| vil_s | 384 | 23,398,696 | 23M |
| vil_b | 768 | 89,263,528 | 89M |

The authors' training logs print the same numbers; of vil_s only that for 192 x 192 pixels.
"""

import flax.linen as nn
import jax.numpy as jnp

from biojax.kernels.axes import per_axis
from biojax.models.checks import check_image
from biojax.modules import LearnedPositions, PatchEmbed, ViLBlock, make_norm
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["ViL"]


class ViL(nn.Module):
    """Patches, learned positions, blocks in alternating directions, the first and last token.

    Args:
      num_classes: logits; None for the tokens themselves, to pretrain or to build upon.
      spatial_dims: 1, 2 or 3.
      patch_size: pixels that make one token.
      features: size of a token.
      num_layers: blocks; the second, fourth, ... see the image turned around.
      num_heads: heads of each mLSTM; must divide twice the features, as must 4.
      drop_path_rate: share of images that leave out a block, while training.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int | None
    spatial_dims: int = 2
    patch_size: IntOrTuple = 16
    features: int = 192
    num_layers: int = 24
    num_heads: int = 4
    drop_path_rate: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: the patch."""
        return per_axis("vil", "patch_size", self.patch_size, self.spatial_dims)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, num_classes), or to tokens (b, t, features) in raster order."""
        check_image("vil", x, self.spatial_dims, self.stride)
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        grid = [n // k for n, k in zip(x.shape[1:-1], self.stride, strict=True)]
        x = PatchEmbed(self.features, self.patch_size, name="embed", **kind)(x)
        x = x.reshape(x.shape[0], *grid, self.features)
        x = LearnedPositions(name="positions", **kind)(x)
        for i in range(self.num_layers):
            x = ViLBlock(
                self.num_heads,
                reverse=i % 2 == 1,
                drop_path_rate=self.drop_path_rate,
                name=f"block{i}",
                **kind,
            )(x, train)
            self.sow("intermediates", f"tokens{i}", x.reshape(x.shape[0], -1, self.features))
        x = make_norm("layer", **kind)(x).reshape(x.shape[0], -1, self.features)
        if self.num_classes is None:
            return x
        x = jnp.concatenate([x[:, 0], x[:, -1]], axis=-1)
        x = make_norm("layer", layer_name="head_norm", **kind)(x)
        init = nn.initializers.normal(2e-5)
        y = nn.Dense(self.num_classes, kernel_init=init, name="head", **kind)(x)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))
