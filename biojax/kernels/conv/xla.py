"""XLA's own convolution: the best there is on GPU and TPU.

Its partitioner shares it over devices. But it gathers images in groups of several inputs or
outputs, and for the weights' gradient of a transposed convolution with strides (jaxlib 0.10.2). So
these two are shared as `bilinear` says, and differentiate in reverse only.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.conv import bilinear
from biojax.kernels.conv.geometry import Geometry, cropped
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import left_to_compiler, varying
from biojax.typing import Array

__all__ = ["accumulated", "conv", "conv_transpose"]

LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """`jax.lax.conv_general_dilated`, summed in at least float32."""
    if _in_groups(w, geometry):
        return bilinear.convolve(_MAPS, x, w, geometry)
    return left_to_compiler(lambda x, w: _conv(x, w, geometry), x, w)


def accumulated(x: Array, w: Array, geometry: Geometry) -> Array:
    """The same before it is rounded to x's dtype, for sums of several."""
    return _returning(accumulator(x.dtype), x, w, geometry)


def _returning(dtype: jnp.dtype, x: Array, w: Array, geometry: Geometry) -> Array:
    x, pads = cropped(x, geometry.pads)
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=geometry.strides,
        padding=pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=LAYOUTS[x.ndim - 2],
        feature_group_count=geometry.groups,
        precision=geometry.precision,
        preferred_element_type=dtype,
    )


def conv_transpose(x: Array, w: Array, geometry: Geometry) -> Array:
    """The same with the image dilated by the strides, which XLA does not materialise."""
    if _in_groups(w, geometry) or max(geometry.strides) > 1:
        return bilinear.conv_transpose(_MAPS, x, w, geometry)
    return conv(x, w, geometry)


def _in_groups(w: Array, geometry: Geometry) -> bool:
    return geometry.groups > 1 and (w.shape[-2] > 1 or w.shape[-1] > geometry.groups)


def _conv(x: Array, w: Array, geometry: Geometry) -> Array:
    if accumulator(x.dtype) == x.dtype:
        return accumulated(x, w, geometry)
    return _narrow(varying(x, w), varying(w, x), geometry)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _narrow(x: Array, w: Array, geometry: Geometry) -> Array:
    """In bfloat16 or float16, gradients included: JAX's own rule widens all operands of theirs."""
    return accumulated(x, w, geometry).astype(x.dtype)


def _narrow_bwd(geometry, saved, dy):
    x, w = saved
    return jax.vjp(lambda x, w: _returning(x.dtype, x, w, geometry), x, w)[1](dy)


_narrow.defvjp(lambda x, w, geometry: (_narrow(x, w, geometry), (x, w)), _narrow_bwd)


def _transposed(y: Array, w: Array, geometry: Geometry, spatial: tuple[int, ...]) -> Array:
    x = jnp.zeros((y.shape[0], *spatial, w.shape[-2] * geometry.groups), y.dtype)
    return jax.vjp(lambda x: _conv(x, w, geometry), varying(x, y))[1](y)[0]


def _weight_gradient(
    x: Array, y: Array, after: Array, kernel: tuple[int, ...], geometry: Geometry
) -> Array:
    del after
    w = varying(jnp.zeros(kernel, x.dtype), x)
    return jax.vjp(lambda w: _conv(x, w, geometry), w)[1](y)[0].astype(accumulator(x.dtype))


_MAPS = bilinear.Maps(_conv, _transposed, _weight_gradient)
