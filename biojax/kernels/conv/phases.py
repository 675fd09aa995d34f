"""Transposed convolution by phases, as the adjoint of a strided convolution.

Every output between two inputs sees only every s-th tap of the kernel. So the outputs are s
interleaved convolutions without stride, and no zeros between the inputs are ever multiplied.
"""

import math

from biojax.kernels.conv import blocked, depthwise, grouped, planes
from biojax.kernels.conv.geometry import Geometry
from biojax.typing import Array

__all__ = ["conv_transpose"]


def conv_transpose(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any groups, strides, dilation and padding."""
    if geometry.groups == 1:
        method = planes.METHOD
    elif depthwise.fits(w, geometry):
        method = depthwise.method(w.shape, geometry, x.size * math.prod(geometry.strides))
    else:
        method = grouped.method(geometry.groups)
    return blocked.conv_transpose(method, x, w, geometry)
