"""XLA's own convolution: the best there is on GPU and TPU."""

from jax import lax

from biojax.kernels.conv.geometry import Geometry, cropped
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array

__all__ = ["accumulated", "conv", "conv_transpose"]

LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(x: Array, w: Array, geometry: Geometry) -> Array:
    """`jax.lax.conv_general_dilated`, summed in at least float32."""
    return accumulated(x, w, geometry).astype(x.dtype)


def accumulated(x: Array, w: Array, geometry: Geometry) -> Array:
    """The same before it is rounded to x's dtype, for sums of several."""
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
        preferred_element_type=accumulator(x.dtype),
    )


def conv_transpose(x: Array, w: Array, geometry: Geometry) -> Array:
    """The same with the image dilated by the strides, which XLA does not materialise."""
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(1,) * (x.ndim - 2),
        padding=geometry.pads,
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.dilation,
        dimension_numbers=LAYOUTS[x.ndim - 2],
        feature_group_count=geometry.groups,
        precision=geometry.precision,
        preferred_element_type=accumulator(x.dtype),
    ).astype(x.dtype)
