"""Convolutions with parameters, and the block that most models repeat."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError
from biojax.kernels import conv, conv_transpose
from biojax.kernels.axes import per_axis
from biojax.modules.norm import make_norm
from biojax.typing import Array, Dtype, IntOrTuple, Padding, Precision

__all__ = ["Conv", "ConvBlock", "ConvTranspose"]


class Conv(nn.Module):
    """`biojax.kernels.conv` with a kernel and a bias, named and laid out as in `flax.linen.Conv`.

    Args:
      features: output channels f.
      kernel_size: one number for all spatial axes, or one each.
      strides: step between outputs.
      padding: "SAME", "VALID", an integer or pairs.
      kernel_dilation: distance between the kernel's taps.
      feature_group_count: groups of channels; equal to the input's for depthwise.
      use_bias: add (f,) to the output.
      dtype: of the computation; that of the input and parameters together if None.
      param_dtype: of the parameters.
      precision: of the products.
      kernel_init: initialiser of the kernel (*k, c // groups, f).
      bias_init: initialiser of the bias (f,).

    Raises:
      ConfigError: the groups do not divide the channels.
    """

    features: int
    kernel_size: IntOrTuple
    strides: IntOrTuple = 1
    padding: Padding = "SAME"
    kernel_dilation: IntOrTuple = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: Precision = None
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, *spatial, c) to (b, *out, f)."""
        size = per_axis("Conv", "kernel_size", self.kernel_size, x.ndim - 2)
        groups = _check_groups("Conv", self, x.shape[-1])
        shape = (*size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = _bias(self, self.features)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=groups,
            precision=self.precision,
        )
        return y if bias is None else y + bias


class ConvTranspose(nn.Module):
    """`biojax.kernels.conv_transpose` with parameters, as in `flax.linen.ConvTranspose`.

    Args:
      features: output channels f.
      kernel_size: one number for all spatial axes, or one each.
      strides: how many outputs for each input.
      padding: "SAME", "VALID", an integer or pairs, of zeros around the spread-out input.
      feature_group_count: groups of channels; equal to the input's for depthwise.
      use_bias: add (f,) to the output.
      dtype: of the computation; that of the input and parameters together if None.
      param_dtype: of the parameters.
      precision: of the products.
      kernel_init: initialiser of the kernel (*k, c // groups, f).
      bias_init: initialiser of the bias (f,).

    Raises:
      ConfigError: the groups do not divide the channels.
    """

    features: int
    kernel_size: IntOrTuple
    strides: IntOrTuple = 1
    padding: Padding = "SAME"
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: Precision = None
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, *spatial, c) to (b, *out, f)."""
        size = per_axis("ConvTranspose", "kernel_size", self.kernel_size, x.ndim - 2)
        groups = _check_groups("ConvTranspose", self, x.shape[-1])
        shape = (*size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = _bias(self, self.features)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv_transpose(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            feature_group_count=groups,
            precision=self.precision,
        )
        return y if bias is None else y + bias


class ConvBlock(nn.Module):
    """Convolution, normalisation, leaky ReLU; padded by k // 2 on both sides, as in PyTorch.

    Its output is tagged "block" for `jax.checkpoint` policies.

    Args:
      features: output channels.
      kernel_size: odd; one number for all spatial axes, or one each.
      strides: step between outputs.
      use_bias: of the convolution.
      norm: see `make_norm`.
      scale_init: initialiser of the norm's scale; zeros let a residual branch begin as nothing.
      negative_slope: of the leaky ReLU; 0 is ReLU, and 1 leaves the normalised output as it is.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ConfigError: an even kernel.
    """

    features: int
    kernel_size: IntOrTuple = 3
    strides: IntOrTuple = 1
    use_bias: bool = True
    norm: str | None = "instance"
    scale_init: Callable = nn.initializers.ones_init()
    negative_slope: float = 0.01
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *out, features)."""
        size = per_axis("ConvBlock", "kernel_size", self.kernel_size, x.ndim - 2)
        if any(k % 2 == 0 for k in size):
            raise ConfigError(
                "ConvBlock",
                f"kernel_size={self.kernel_size}",
                "odd numbers, so that the padding is the same on both sides",
                "Make it odd",
                f"kernel_size={tuple(k + 1 - k % 2 for k in size)}",
            )
        x = Conv(
            self.features,
            size,
            strides=self.strides,
            padding=[(k // 2, k // 2) for k in size],
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.he_normal(),
            name="conv",
        )(x)
        norm = make_norm(
            self.norm,
            train,
            scale_init=self.scale_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        x = nn.leaky_relu(norm(x), self.negative_slope)
        return checkpoint_name(x, "block")


def _check_groups(where: str, module: Conv | ConvTranspose, channels: int) -> int:
    groups = module.feature_group_count
    if groups < 1 or channels % groups or module.features % groups:
        raise ConfigError(
            where,
            f"feature_group_count={groups} for {channels} channels in and {module.features} out",
            "a number of groups that divides both",
            "Change the groups or the features",
            f"feature_group_count={math.gcd(channels, module.features)}",
        )
    return groups


def _bias(module: Conv | ConvTranspose, features: int) -> Array | None:
    if not module.use_bias:
        return None
    return module.param("bias", module.bias_init, (features,), module.param_dtype)
