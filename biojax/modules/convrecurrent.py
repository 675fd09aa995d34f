"""Recurrent layers over images in order: frames of a clip, slices of a volume."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from biojax.kernels.axes import per_axis
from biojax.kernels.scan.convolutional import conv_gru, conv_lstm
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["ConvGRU", "ConvLSTM"]


class ConvLSTM(nn.Module):
    """`biojax.kernels.conv_lstm` with parameters `w_x`, `w_h`, `bias`; gates i, f, g, o.

    Images without channels, (b, t, *spatial, 0), let it go on by itself; then there is no `w_x`.

    Args:
      features: channels of the state f.
      kernel_size: of both convolutions; one number for all spatial axes, or one each.
      forget_bias: what the forget gate's bias starts from; 1 keeps memory at first.
      reverse: run from the last image to the first.
      chunk: images whose states and gates are kept together for gradients; all if None.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: IntOrTuple = 3
    forget_bias: float = 1.0
    reverse: bool = False
    chunk: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Array, h0: Array | None = None) -> tuple[Array, Array]:
        """(b, t, *spatial, c) to every state (b, t, *spatial, f) and the last in the order run."""
        h, (h_last, _) = self.run(x, h0)
        return h, h_last

    @nn.compact
    def run(
        self, x: Array, h0: Array | None = None, c0: Array | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """The same from a whole state to a whole state: h, (h_last, c_last)."""
        f = self.features

        def bias_init(key, shape, dtype):
            return jnp.zeros(shape, dtype).at[f : 2 * f].set(self.forget_bias)

        x, w_x, w_h, bias, h0, c0 = _parameters(self, 4, x, (h0, c0), bias_init)
        return conv_lstm(x, w_x, w_h, bias, h0, c0, reverse=self.reverse, chunk=self.chunk)


class ConvGRU(nn.Module):
    """`biojax.kernels.conv_gru` with parameters `w_x`, `w_h`, `bias`; gates r, z, n.

    Images without channels, (b, t, *spatial, 0), let it go on by itself; then there is no `w_x`.

    Args:
      features: channels of the state f.
      kernel_size: of both convolutions; one number for all spatial axes, or one each.
      reverse: run from the last image to the first.
      chunk: images whose states and gates are kept together for gradients; all if None.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: IntOrTuple = 3
    reverse: bool = False
    chunk: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, h0: Array | None = None) -> tuple[Array, Array]:
        """(b, t, *spatial, c) to every state (b, t, *spatial, f) and the last in the order run."""
        x, w_x, w_h, bias, h0 = _parameters(self, 3, x, (h0,), nn.initializers.zeros_init())
        return conv_gru(x, w_x, w_h, bias, h0, reverse=self.reverse, chunk=self.chunk)


def _parameters(
    module: ConvLSTM | ConvGRU,
    gates: int,
    x: Array,
    state0: tuple[Array | None, ...],
    bias_init: Callable,
) -> list:
    """The input, w_x, w_h, bias and state in one dtype; w_h starts orthogonal, gate by gate."""
    f, dtype = module.features, module.param_dtype
    name = type(module).__name__
    kernel = per_axis(name, "kernel_size", module.kernel_size, x.ndim - 3)

    def orthogonal(key, shape, dtype):
        make = nn.initializers.orthogonal()
        keys = jax.random.split(key, gates)
        return jnp.concatenate([make(k, (*kernel, f, f), dtype) for k in keys], axis=-1)

    shape = (*kernel, x.shape[-1], gates * f)
    if x.shape[-1]:
        w_x = module.param("w_x", nn.initializers.lecun_normal(), shape, dtype)
    else:
        w_x = jnp.zeros(shape, dtype)
    w_h = module.param("w_h", orthogonal, (*kernel, f, gates * f), dtype)
    bias = module.param("bias", bias_init, (gates * f,), dtype)
    return promote_dtype(x, w_x, w_h, bias, *state0, dtype=module.dtype)
