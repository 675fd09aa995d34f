"""Transposed convolution by phases, as the adjoint of a strided convolution.

Every output between two inputs sees only every s-th tap of the kernel. So the outputs are s
interleaved convolutions without stride, and no zeros between the inputs are ever multiplied.
"""

from biojax.errors import UnsupportedError
from biojax.kernels.conv import depthwise, planes
from biojax.kernels.conv.blocked import adjoint, lifted, transposed
from biojax.kernels.conv.geometry import Geometry, dilated
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
    rank = x.ndim - 2
    method = planes.METHOD if geometry.groups == 1 else depthwise.METHOD
    x, w, geometry = lifted(x, w, geometry)
    extent = dilated(w.shape[:3], geometry.dilation)
    spatial, pads = [], []
    for n, s, e, (low, high) in zip(
        x.shape[1:4], geometry.strides, extent, geometry.pads, strict=True
    ):
        size = (n - 1) * s + 1 + low + high - (e - 1)
        before = e - 1 - low
        spatial.append(size)
        pads.append((before, (n - 1) * s + e - size - before))
    forward = geometry._replace(pads=tuple(pads))
    y = transposed(method, x, adjoint(w, geometry.groups), forward, tuple(spatial))
    return y.reshape(y.shape[0], *y.shape[4 - rank :])
