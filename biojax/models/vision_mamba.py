"""Vision Mamba (Vim): blocks of bidirectional Mamba over patches, a class token in their middle.

Source: Zhu et al., "Vision Mamba: efficient visual representation learning with bidirectional
state space model", ICML 2024, section 3 and table 1; layers as in the authors' code,
https://github.com/hustvl/Vim. For 224 x 224 pixels, 3 -> 1000 classes:

| variant | features | parameters | stated |
| --- | --- | --- | --- |
| vision_mamba_t | 192 | 7,148,008 | 7M |
| vision_mamba_s | 384 | 25,796,584 | 26M |
| vision_mamba_b | 768 | 97,598,440 | 98M |

`vision_mamba` is the smallest by the name of the family, as a start for networks of other sizes.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.kernels.axes import per_axis
from biojax.models.checks import check_image
from biojax.modules import LearnedPositions, MambaBlock, PatchEmbed
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["VisionMamba"]

_EPSILON = 1e-5  # of the norms


class VisionMamba(nn.Module):
    """Patches, learned positions, a class token, blocks of x + mamba(norm(x)), logits of the token.

    The norm is that of the root mean square. Each block reads the tokens forwards and backwards,
    and takes the mean of both, as the authors' code does; the paper has the sum.

    Args:
      num_classes: logits; None for the tokens themselves, to pretrain or to build upon.
      spatial_dims: 1, 2 or 3.
      patch_size: pixels that make one token.
      features: size of a token.
      num_layers: blocks.
      state_size: states of each channel.
      drop_path_rate: share of images that leave out the last block, while training; from block to
        block it rises to that linearly, beginning with none.
      dtype: of the computation; the sum over blocks and the logits are float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int | None
    spatial_dims: int = 2
    patch_size: IntOrTuple = 16
    features: int = 192
    num_layers: int = 24
    state_size: int = 16
    drop_path_rate: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: the patch."""
        return per_axis("vision_mamba", "patch_size", self.patch_size, self.spatial_dims)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, num_classes), or to tokens (b, t, features) in raster order."""
        check_image("vision_mamba", x, self.spatial_dims, self.stride)
        x, middle = self._tokens(x)
        kind = {"dtype": x.dtype, "param_dtype": self.param_dtype}
        # What the blocks add up is float32, as it is for the authors: in bfloat16 a sum forgets
        # what is less than a few thousandths of it, and there are many blocks.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for i in range(self.num_layers):
            rate = self.drop_path_rate * i / max(1, self.num_layers - 1)
            drop = nn.Dropout(rate, (1, 2), deterministic=not train)
            y = nn.RMSNorm(_EPSILON, name=f"norm{i}", **kind)(x)
            mamba = MambaBlock(("x", "-x"), state_size=self.state_size, name=f"mamba{i}", **kind)
            x = checkpoint_name(x + drop(mamba(y)), "block")
            self.sow("intermediates", f"tokens{i}", jnp.delete(x, middle, axis=1))
        x = nn.RMSNorm(_EPSILON, name="norm", **kind)(x)
        if self.num_classes is None:
            return jnp.delete(x, middle, axis=1)
        y = nn.Dense(self.num_classes, name="head", **kind)(x[:, middle])
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    def _tokens(self, x: Array) -> tuple[Array, int]:
        """The patches with their positions, the class token among them, and where it stands."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        grid = [n // k for n, k in zip(x.shape[1:-1], self.stride, strict=True)]
        x = PatchEmbed(self.features, self.patch_size, name="embed", **kind)(x)
        b, t, c = x.shape
        x = LearnedPositions(name="positions", **kind)(x.reshape(b, *grid, c)).reshape(b, t, c)
        # A position of its own adds nothing to the class token, but the authors' has one.
        init = nn.initializers.normal(0.02)
        token, position = (
            self.param(name, init, (c,), self.param_dtype)
            for name in ("class_token", "class_position")
        )
        token = jnp.broadcast_to((token + position).astype(x.dtype), (b, 1, c))
        middle = t // 2
        return jnp.concatenate([x[:, :middle], token, x[:, middle:]], axis=1), middle
