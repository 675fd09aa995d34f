"""Named shapes, as data: what the kernels are tested on and, where large, timed on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["SPECS", "Spec"]


class Spec(NamedTuple):
    """One call of a kernel.

    Args:
      name: what is particular about it.
      shapes: the shapes of the positional arrays.
      options: the keyword arguments.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    options: Mapping[str, Any] = {}


_CONV = [
    Spec("1d", ((2, 9, 3), (3, 3, 4))),
    Spec("2d", ((2, 6, 7, 3), (3, 3, 3, 4))),
    Spec("2d_groups", ((1, 6, 5, 4), (3, 3, 2, 6)), {"feature_group_count": 2}),
    Spec("2d_depthwise_7x7", ((1, 9, 8, 3), (7, 7, 1, 3)), {"feature_group_count": 3}),
    Spec("3d", ((2, 5, 6, 4, 3), (3, 3, 3, 3, 4))),
    Spec("3d_many_channels", ((1, 4, 4, 5, 20), (3, 3, 3, 20, 5))),
    Spec("3d_one_channel", ((1, 5, 5, 5, 1), (3, 3, 3, 1, 4))),
    Spec("3d_pointwise", ((1, 3, 4, 5, 6), (1, 1, 1, 6, 2))),
    Spec("3d_even_kernel", ((1, 4, 5, 6, 2), (2, 4, 2, 2, 3))),
    Spec("3d_flat_kernel", ((1, 4, 5, 6, 2), (1, 3, 3, 2, 3))),
    Spec("3d_strided", ((1, 7, 6, 5, 3), (3, 3, 3, 3, 4)), {"strides": 2}),
    Spec("3d_strided_in_plane", ((1, 5, 6, 8, 3), (3, 3, 3, 3, 2)), {"strides": (1, 2, 3)}),
    Spec("3d_dilated", ((1, 7, 8, 9, 2), (3, 3, 3, 2, 3)), {"kernel_dilation": (2, 1, 3)}),
    Spec("3d_valid", ((1, 5, 6, 7, 2), (3, 3, 3, 2, 3)), {"padding": "VALID"}),
    Spec(
        "3d_uneven_padding",
        ((1, 5, 4, 6, 2), (3, 3, 3, 2, 3)),
        {"padding": ((0, 2), (1, 0), (3, 1))},
    ),
    Spec("3d_cropping", ((1, 7, 7, 7, 2), (3, 3, 3, 2, 3)), {"padding": -1, "strides": 2}),
    Spec("3d_depthwise", ((1, 5, 5, 5, 4), (3, 3, 3, 1, 4)), {"feature_group_count": 4}),
]

_CONV_TRANSPOSE = [
    Spec("1d_kernel_is_stride", ((2, 5, 3), (2, 3, 4)), {"strides": 2}),
    Spec("2d_overlap", ((1, 4, 5, 3), (3, 3, 3, 2)), {"strides": 2}),
    Spec("2d_valid", ((1, 4, 3, 2), (4, 3, 2, 2)), {"strides": (2, 3), "padding": "VALID"}),
    Spec("3d_kernel_is_stride", ((2, 3, 2, 4, 3), (2, 2, 2, 3, 4)), {"strides": 2}),
    Spec("3d_flat", ((1, 3, 2, 4, 3), (1, 2, 2, 3, 2)), {"strides": (1, 2, 2)}),
    Spec("3d_overlap", ((1, 3, 4, 2, 3), (3, 3, 3, 3, 2)), {"strides": 2}),
    Spec("3d_dilated", ((1, 3, 3, 3, 2), (2, 2, 2, 2, 2)), {"strides": 2, "kernel_dilation": 2}),
    Spec("3d_explicit", ((1, 3, 3, 3, 2), (3, 3, 3, 2, 2)), {"strides": 2, "padding": 1}),
]

_POOL = [
    Spec("1d", ((2, 8, 3),), {"window": 2}),
    Spec("2d_overlap", ((2, 7, 6, 3),), {"window": 3, "strides": 2, "padding": "SAME"}),
    Spec("3d", ((1, 4, 6, 5, 2),), {"window": 2}),
    Spec("3d_uneven", ((1, 5, 6, 7, 2),), {"window": (1, 3, 2), "strides": (1, 2, 2)}),
    Spec(
        "3d_padded",
        ((1, 5, 4, 5, 2),),
        {"window": 3, "strides": 2, "padding": ((1, 1), (0, 1), (1, 0))},
    ),
]

_LINEAR_SCAN = [
    Spec("one_step", ((2, 1, 3), (2, 1, 3), (2, 3))),
    Spec("odd", ((2, 7, 3), (2, 7, 3), (2, 3))),
    Spec("shared_decay", ((3,), (2, 8, 3), (2, 3))),
    Spec("reverse", ((2, 5, 3), (2, 5, 3), (2, 3)), {"reverse": True}),
    Spec("last_axis", ((2, 3, 6), (2, 3, 6), (2, 3)), {"axis": -1}),
    Spec("first_axis_reverse", ((6, 2), (6, 2), (2,)), {"axis": 0, "reverse": True}),
]

_RNN = [
    Spec("tanh", ((2, 5, 3), (3, 4), (4, 4), (4,), (2, 4))),
    Spec("relu", ((2, 5, 3), (3, 4), (4, 4), (4,), (2, 4)), {"activation": "relu"}),
    Spec("reverse", ((2, 5, 3), (3, 4), (4, 4), (4,), (2, 4)), {"reverse": True}),
]
_LSTM = [
    Spec("forward", ((2, 5, 3), (3, 16), (4, 16), (16,), (2, 4), (2, 4))),
    Spec("reverse", ((2, 5, 3), (3, 16), (4, 16), (16,), (2, 4), (2, 4)), {"reverse": True}),
]
_GRU = [
    Spec("after", ((2, 5, 3), (3, 12), (4, 12), (12,), (2, 4))),
    Spec("before", ((2, 5, 3), (3, 12), (4, 12), (12,), (2, 4)), {"reset": "before"}),
    Spec("reverse", ((2, 5, 3), (3, 12), (4, 12), (12,), (2, 4)), {"reverse": True}),
]

_ATTENTION = [
    Spec("self", ((2, 5, 2, 4),) * 3),
    Spec("causal", ((1, 5, 2, 4),) * 3, {"is_causal": True}),
    Spec("cross", ((1, 3, 2, 4), (1, 6, 2, 4), (1, 6, 2, 5))),
    Spec("cross_causal", ((1, 3, 2, 4), (1, 6, 2, 4), (1, 6, 2, 4)), {"is_causal": True}),
    Spec("grouped_heads", ((1, 4, 6, 4), (1, 5, 2, 4), (1, 5, 2, 4))),
    Spec("bias", ((1, 4, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4), (1, 2, 4, 5))),
    Spec("bias_per_head", ((2, 4, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4), (2, 1, 1)), {"scale": 1.0}),
]

SPECS: Mapping[str, list[Spec]] = {
    "conv": _CONV,
    "conv_transpose": _CONV_TRANSPOSE,
    "max_pool": _POOL,
    "avg_pool": _POOL,
    "linear_scan": _LINEAR_SCAN,
    "rnn": _RNN,
    "lstm": _LSTM,
    "gru": _GRU,
    "attention": _ATTENTION,
}
