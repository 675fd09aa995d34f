"""Vision-LSTM's block: an mLSTM over the voxels of an image."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError
from biojax.kernels.scan.xlstm import mlstm
from biojax.modules.conv import Conv
from biojax.modules.dense import BlockDense
from biojax.modules.norm import make_norm
from biojax.typing import Array, Dtype

__all__ = ["ViLBlock"]


class ViLBlock(nn.Module):
    """x + down((norm(mlstm(q, k, v, i, f)) + skip * u) * silu(z)), over the voxels in raster order.

    v', z = split(up(norm(x))),   u = silu(conv(v')),   q, k = u W_q, u W_k,   v = v' W_v
    i, f  = [q, k, v] W_i, [q, k, v] W_f

    The convolution is depthwise, over space; W_q, W_k and W_v are block-diagonal; the second norm
    is that of each head. The forget gates start nearly open, wider from head to head.

    Args:
      num_heads: heads of the mLSTM; must divide the inner channels.
      block_size: channels in each block of W_q, W_k and W_v; must divide the inner channels.
      expansion_ratio: inner channels over those of the input.
      kernel_size: of the convolution, odd.
      reverse: see the image turned around, from its last voxel to the first.
      drop_path_rate: share of images whose branch is left out, while training.
      dtype: of the computation; states are float32 at least.
      param_dtype: of the parameters.

    Raises:
      ConfigError: heads or blocks that do not divide the inner channels.

    Sources: Alkin et al., "Vision-LSTM: xLSTM as generic vision backbone", ICLR 2025; Beck et al.,
    "xLSTM: extended long short-term memory", NeurIPS 2024, appendix A.4. All but the
    convolution starts as in the authors' code.
    """

    num_heads: int = 4
    block_size: int = 4
    expansion_ratio: int = 2
    kernel_size: int = 3
    reverse: bool = False
    drop_path_rate: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *spatial, c)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        c, space = x.shape[-1], range(1, x.ndim - 1)
        inner = self._inner(c)
        y = make_norm("layer", **kind)(x)
        y = jnp.flip(y, tuple(space)) if self.reverse else y
        y = nn.Dense(2 * inner, kernel_init=_normal(2 / (5 * c)), name="up", **kind)(y)
        v, z = jnp.split(y, 2, axis=-1)
        conv = Conv(
            inner,
            self.kernel_size,
            padding=self.kernel_size // 2,
            feature_group_count=inner,
            name="conv",
            **kind,
        )
        u = nn.silu(conv(v))
        skip = self.param("skip", nn.initializers.ones_init(), (inner,), self.param_dtype)
        y = (self._mlstm(u, v, c) + skip.astype(u.dtype) * u) * nn.silu(z)
        y = nn.Dense(c, kernel_init=_normal(4 / c), name="down", **kind)(y)
        y = jnp.flip(y, tuple(space)) if self.reverse else y
        drop = nn.Dropout(self.drop_path_rate, range(1, x.ndim), deterministic=not train)
        return checkpoint_name(x + drop(y), "block")

    def _mlstm(self, u: Array, v: Array, c: int) -> Array:
        """From (b, *spatial, inner) to the same: queries and keys read u, values v."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        shape, n = u.shape, self.num_heads

        def project(x, name):
            blocks, init = shape[-1] // self.block_size, _normal(2 / (5 * c))
            y = BlockDense(blocks, kernel_init=init, name=name, **kind)(x)
            return y.reshape(shape[0], -1, shape[-1])

        def gate(x, name, bias_init):
            zeros = nn.initializers.zeros_init()
            return nn.Dense(n, kernel_init=zeros, bias_init=bias_init, name=name, **kind)(x)

        q, k, v = project(u, "query"), project(u, "key"), project(v, "value")
        qkv = jnp.concatenate([q, k, v], axis=-1)
        i = gate(qkv, "input_gate", nn.initializers.normal(0.1))
        f = gate(qkv, "forget_gate", _from_3_to_6)
        q, k, v = (x.reshape(*x.shape[:2], n, -1) for x in (q, k, v))
        h, _ = mlstm(q, k, v, i, f)
        norm = make_norm("group", num_groups=n, layer_name="norm_heads", **kind)
        h = h.reshape(*h.shape[:2], -1)  # at once with what follows, Explicit axes would refuse it
        return norm(h.reshape(-1, shape[-1])).reshape(shape)

    def _inner(self, c: int) -> int:
        inner = self.expansion_ratio * c
        both = math.lcm(self.num_heads, self.block_size)
        if inner % both:
            raise ConfigError(
                "ViLBlock",
                f"num_heads={self.num_heads} and block_size={self.block_size} for {inner} inner "
                f"channels, {self.expansion_ratio} times those of the input",
                "numbers that divide the inner channels",
                "Change the features, the heads or the size of the blocks",
            )
        return inner


def _normal(variance: float):
    return nn.initializers.normal(math.sqrt(variance))


def _from_3_to_6(key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
    return jnp.linspace(3, 6, shape[0]).astype(dtype)
