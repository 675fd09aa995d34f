"""Griffin's recurrent residual block."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biojax.kernels.scan.rglru import rg_lru
from biojax.modules.conv import Conv
from biojax.modules.dense import BlockDense
from biojax.typing import Array, Dtype

__all__ = ["GriffinBlock"]

# The power to which the recurrence gate raises the decays: how these start depends on it, so that
# the kernel is told, whatever its default.
_EXPONENT = 8.0


class GriffinBlock(nn.Module):
    """x + recurrent(norm(x)), then x + mlp(norm(x)), as in Griffin and Hawk.

    recurrent(x) = (gelu(x W_gate) rg_lru(conv(x W_in))) W_out
    mlp(x)       = (gelu(x W_1) (x W_2)) W_3

    The norm is that of the root mean square, the convolution short, causal and depthwise, and the
    gates of `biojax.kernels.rg_lru` are block-diagonal matrices of what it reads. The decays start
    between 0.9 and 0.999 where the recurrence gate is open, which keeps memory: so the paper; in
    the code published with it their eighth roots start there.

    Args:
      state_features: width of the recurrence; that of the input if None.
      num_heads: blocks of the gates' matrices; must divide the width of the recurrence.
      kernel_size: of the convolution.
      mlp_ratio: width of the hidden layer over that of the input.
      reverse: run from the last step to the first.
      dtype: of the computation; the state is float32 at least.
      param_dtype: of the parameters.

    Raises:
      ConfigError: the heads do not divide the width of the recurrence.

    Source: De et al., "Griffin: mixing gated linear recurrences with local attention for efficient
    language models", 2024, sections 2.1 to 2.4.
    """

    state_features: int | None = None
    num_heads: int = 1
    kernel_size: int = 4
    mlp_ratio: float = 3.0
    reverse: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, t, c) to (b, t, c)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        c, hidden = x.shape[-1], int(self.mlp_ratio * x.shape[-1])
        x = x + self._recurrent(nn.RMSNorm(name="norm1", **kind)(x))
        y = nn.RMSNorm(name="norm2", **kind)(x)
        gate = nn.gelu(nn.Dense(hidden, name="mlp1", **kind)(y))
        y = nn.Dense(c, name="mlp3", **kind)(gate * nn.Dense(hidden, name="mlp2", **kind)(y))
        return checkpoint_name(x + y, "block")

    def _recurrent(self, x: Array) -> Array:
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        c, f, k = x.shape[-1], self.state_features or x.shape[-1], self.kernel_size
        gate = nn.gelu(nn.Dense(f, name="gate", **kind)(x))
        u = nn.Dense(f, name="in", **kind)(x)
        conv = Conv(
            f,
            k,
            padding=[(0, k - 1) if self.reverse else (k - 1, 0)],
            feature_group_count=f,
            name="conv",
            **kind,
        )
        u = conv(u)
        r = BlockDense(self.num_heads, name="recurrence_gate", **kind)(u)
        i = BlockDense(self.num_heads, name="input_gate", **kind)(u)
        a = self.param("a_param", _decays, (f,), self.param_dtype)
        h, _ = rg_lru(u, r, i, a, c=_EXPONENT, reverse=self.reverse)
        return nn.Dense(c, name="out", **kind)(gate * h)


def _decays(key, shape, dtype) -> Array:
    """With an open gate, exp(-8 softplus) makes of them decays uniform between 0.9 and 0.999."""
    decays = jax.random.uniform(key, shape, minval=0.9, maxval=0.999)
    return jnp.log(jnp.expm1(-jnp.log(decays) / _EXPONENT)).astype(dtype)
