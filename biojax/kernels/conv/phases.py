"""Transposed convolution by phases, as the adjoint of a strided convolution.

Every output between two inputs sees only every s-th tap of the kernel. So the outputs are s
interleaved convolutions without stride, and no zeros between the inputs are ever multiplied.
"""

from biojax.errors import UnsupportedError
from biojax.kernels.conv import blocked, depthwise, planes
from biojax.kernels.conv.blocked import lifted
from biojax.kernels.conv.geometry import Geometry
from biojax.typing import Array

__all__ = ["conv_transpose", "fits"]


def fits(w: Array, geometry: Geometry) -> bool:
    """One group, or depthwise."""
    return geometry.groups == 1 or depthwise.fits(w, geometry)


def conv_transpose(x: Array, w: Array, geometry: Geometry) -> Array:
    """Any strides, dilation and padding."""
    if not fits(w, geometry):
        raise UnsupportedError(
            "conv_transpose",
            f"implementation='phases' for a kernel {w.shape} in {geometry.groups} groups",
            "one group, or one input and one output channel for each",
            "Use implementation='xla', or None to choose",
        )
    method = planes.METHOD if geometry.groups == 1 else depthwise.METHOD
    y = blocked.conv_transpose(method, *lifted(x, w, geometry))
    return y.reshape(y.shape[0], *y.shape[5 - x.ndim + 1 :])
