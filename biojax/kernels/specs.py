"""Named shapes, as data: what the kernels are tested on and, where large, timed on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["LARGE", "SPECS", "Spec"]


class Spec(NamedTuple):
    """One call of a kernel.

    Args:
      name: what is particular about it.
      shapes: the shapes of the positional arrays.
      options: the keyword arguments.
      dtype: of every array, where the tests do not choose one themselves.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    options: Mapping[str, Any] = {}
    dtype: str = "float32"


_CONV = [
    Spec("1d", ((2, 9, 3), (3, 3, 4))),
    Spec("2d", ((2, 6, 7, 3), (3, 3, 3, 4))),
    Spec("2d_shifted", ((1, 4, 5, 2), (3, 3, 2, 3)), {"padding": ((1, 1), (-1, 3))}),
    Spec("2d_groups", ((1, 6, 5, 4), (3, 3, 2, 6)), {"feature_group_count": 2}),
    Spec("2d_depthwise_7x7", ((1, 9, 8, 3), (7, 7, 1, 3)), {"feature_group_count": 3}),
    Spec("3d", ((2, 5, 6, 4, 3), (3, 3, 3, 3, 4))),
    Spec("3d_many_channels", ((1, 4, 4, 5, 20), (3, 3, 3, 20, 5))),
    Spec("3d_one_channel", ((1, 5, 5, 5, 1), (3, 3, 3, 1, 4))),
    Spec("3d_one_channel_strided", ((1, 7, 6, 5, 1), (3, 3, 3, 1, 4)), {"strides": 2}),
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
    Spec("3d_depthwise_5", ((2, 6, 7, 8, 3), (5, 5, 5, 1, 3)), {"feature_group_count": 3}),
    Spec("3d_depthwise_7", ((1, 9, 8, 9, 2), (7, 5, 4, 1, 2)), {"feature_group_count": 2}),
    Spec(
        "3d_depthwise_9_strided",
        ((1, 9, 10, 11, 2), (9, 4, 5, 1, 2)),
        {"feature_group_count": 2, "strides": (1, 2, 2)},
    ),
]

_CONV_TRANSPOSE = [
    Spec("1d_kernel_is_stride", ((2, 5, 3), (2, 3, 4)), {"strides": 2}),
    Spec("2d_overlap", ((1, 4, 5, 3), (3, 3, 3, 2)), {"strides": 2}),
    Spec("2d_valid", ((1, 4, 3, 2), (4, 3, 2, 2)), {"strides": (2, 3), "padding": "VALID"}),
    Spec("3d_kernel_is_stride", ((2, 3, 2, 4, 3), (2, 2, 2, 3, 4)), {"strides": 2}),
    Spec("3d_flat", ((1, 3, 2, 4, 3), (1, 2, 2, 3, 2)), {"strides": (1, 2, 2)}),
    Spec("3d_overlap", ((1, 3, 4, 2, 3), (3, 3, 3, 3, 2)), {"strides": 2}),
    Spec("3d_dilated", ((1, 3, 3, 3, 2), (2, 2, 2, 2, 2)), {"strides": 2, "kernel_dilation": 2}),
    Spec(
        "3d_depthwise",
        ((1, 3, 2, 4, 4), (3, 3, 3, 1, 4)),
        {"strides": 2, "feature_group_count": 4},
    ),
    Spec("3d_explicit", ((1, 3, 3, 3, 2), (3, 3, 3, 2, 2)), {"strides": 2, "padding": 1}),
]

_POOL = [
    Spec("1d", ((2, 8, 3),), {"window": 2}),
    Spec("2d_overlap", ((2, 7, 6, 3),), {"window": 3, "strides": 2, "padding": "SAME"}),
    Spec("3d", ((1, 4, 6, 5, 2),), {"window": 2}),
    Spec("3d_tiles", ((2, 4, 6, 3, 2),), {"window": (2, 3, 1)}),
    Spec("3d_uneven", ((1, 5, 6, 7, 2),), {"window": (1, 3, 2), "strides": (1, 2, 2)}),
    Spec(
        "3d_padded",
        ((1, 5, 4, 5, 2),),
        {"window": 3, "strides": 2, "padding": ((1, 1), (0, 1), (1, 0))},
    ),
]

_RESIZE = [
    Spec("1d", ((2, 4, 3),), {"size": 7}),
    Spec("1d_one_pixel", ((1, 1, 2),), {"size": 40}),
    Spec("2d_nearest", ((2, 5, 3, 2),), {"size": (3, 7), "method": "nearest"}),
    Spec("2d_nearest_a_lot", ((1, 2, 3, 1),), {"size": (70, 1), "method": "nearest"}),
    Spec("3d_doubled", ((1, 2, 3, 4, 2),), {"size": (4, 6, 8)}),
    Spec("3d_halved", ((1, 4, 6, 2, 3),), {"size": (2, 3, 1)}),
    Spec("3d_uneven", ((2, 3, 4, 5, 2),), {"size": (3, 9, 2)}),
]

_NORM = [
    Spec("2d", ((2, 4, 3, 6), (6,), (6,))),
    Spec("3d", ((2, 3, 2, 4, 4), (4,), (4,))),
    Spec("3d_unscaled", ((1, 3, 4, 2, 6),)),
]

_LINEAR_SCAN = [
    Spec("odd", ((2, 7, 3), (2, 7, 3), (2, 3))),
    Spec("one_step", ((2, 1, 3), (2, 1, 3), (2, 3))),
    Spec("shared_decay", ((3,), (2, 8, 3), (2, 3))),
    Spec("reverse", ((2, 5, 3), (2, 5, 3), (2, 3)), {"reverse": True}),
    Spec("last_axis", ((2, 3, 6), (2, 3, 6), (2, 3)), {"axis": -1}),
    Spec("first_axis_reverse", ((6, 2), (6, 2), (2,)), {"axis": 0, "reverse": True}),
    Spec("decay_of_each_step", ((5, 1), (2, 5, 3), (2, 3))),
]

_SELECTIVE_SCAN = [
    Spec("odd", ((2, 7, 3), (2, 7, 3), (3, 2), (2, 7, 2), (2, 7, 2)), {"chunk": 3}),
    Spec("one_step", ((2, 1, 3), (2, 1, 3), (3, 2), (2, 1, 2), (2, 1, 2))),
    Spec(
        "groups_reverse",
        ((1, 5, 4), (1, 5, 4), (4, 3), (1, 5, 2, 3), (1, 5, 2, 3), (4,), (1, 5, 4)),
        {"reverse": True, "delta_softplus": True},
    ),
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

_SSD = [
    Spec(
        "odd",
        ((2, 5, 4, 3), (2, 5, 4), (4,), (2, 5, 2, 2), (2, 5, 2, 2), (4,)),
        {"chunk": 2},
    ),
    Spec(
        "reverse",
        ((1, 5, 2, 3), (1, 5, 2), (2,), (1, 5, 1, 4), (1, 5, 1, 4)),
        {"chunk": 3, "reverse": True},
    ),
    Spec("one_step", ((2, 1, 2, 3), (2, 1, 2), (2,), (2, 1, 1, 2), (2, 1, 1, 2))),
]

_RG_LRU = [
    Spec("odd", ((2, 7, 3), (2, 7, 3), (2, 7, 3), (3,))),
    Spec("reverse", ((2, 7, 3), (2, 7, 3), (2, 7, 3), (3,)), {"reverse": True}),
    Spec("one_step", ((2, 1, 3), (2, 1, 3), (2, 1, 3), (3,))),
]

_MLSTM = [
    Spec("odd", ((2, 5, 2, 4), (2, 5, 2, 4), (2, 5, 2, 3), (2, 5, 2), (2, 5, 2)), {"chunk": 2}),
    Spec(
        "reverse",
        ((1, 5, 2, 3), (1, 5, 2, 3), (1, 5, 2, 4), (1, 5, 2), (1, 5, 2)),
        {"chunk": 3, "reverse": True, "scale": 0.3},
    ),
    Spec("one_step", ((2, 1, 1, 4), (2, 1, 1, 4), (2, 1, 1, 3), (2, 1, 1), (2, 1, 1))),
]
_SLSTM = [
    Spec("odd", ((2, 5, 2, 4, 3), (2, 3, 4, 3))),
    Spec("reverse", ((2, 5, 2, 4, 3), (2, 3, 4, 3)), {"reverse": True, "chunk": 2}),
    Spec("one_step", ((2, 1, 2, 4, 3), (2, 3, 4, 3))),
]


def _conv_cell(
    x: tuple[int, ...], f: int, gates: int, k_x: int = 3, k_h: int = 3
) -> tuple[tuple[int, ...], ...]:
    """Of images x (b, t, *spatial, c) and f features: x, w_x, w_h, bias, h0, and c0 of the LSTM."""
    rank, state = len(x) - 3, (x[0], *x[2:-1], f)
    kernels = (*[k_x] * rank, x[-1], gates * f), (*[k_h] * rank, f, gates * f)
    return x, *kernels, (gates * f,), *[state] * (2 if gates == 4 else 1)


def _conv_cells(gates: int) -> list[Spec]:
    uneven = _conv_cell((2, 3, 5, 2), 3, gates, 2, 4)
    return [
        Spec("2d", _conv_cell((2, 3, 3, 4, 1), 3, gates)),
        Spec("1d_even_kernels_reverse", uneven, {"reverse": True, "chunk": 2}),
        Spec("2d_one_step_pointwise", _conv_cell((1, 1, 4, 5, 2), 2, gates, 1, 3)),
        Spec("3d", _conv_cell((1, 2, 3, 4, 3, 1), 2, gates)),
    ]


_ATTENTION = [
    Spec("self", ((2, 5, 2, 4),) * 3),
    Spec("causal", ((1, 5, 2, 4),) * 3, {"is_causal": True}),
    Spec("cross", ((1, 3, 2, 4), (1, 6, 2, 4), (1, 6, 2, 5))),
    Spec("cross_causal", ((1, 3, 2, 4), (1, 6, 2, 4), (1, 6, 2, 4)), {"is_causal": True}),
    Spec("grouped_heads", ((1, 4, 6, 4), (1, 5, 2, 4), (1, 5, 2, 4))),
    Spec("bias", ((1, 4, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4), (1, 2, 4, 5))),
    Spec("bias_per_head", ((2, 4, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4), (2, 1, 1)), {"scale": 1.0}),
    # Its first query sees nothing.
    Spec(
        "masked",
        ((2, 3, 2, 4), (2, 4, 2, 4), (2, 4, 2, 3)),
        {"mask": ((False,) * 4, (True, False) * 2, (True, True, True, False))},
    ),
    Spec(
        "lengths_capped",
        ((2, 5, 2, 4), (2, 7, 2, 4), (2, 7, 2, 4)),
        {"query_lengths": (5, 3), "key_lengths": (2, 7), "soft_cap": 1.5},
    ),
    Spec(
        "all_together",
        ((1, 7, 4, 3), (1, 5, 2, 3), (1, 5, 2, 2), (4, 7, 5)),
        {
            "mask": (True, False, True, True, True),
            "is_causal": True,
            "key_lengths": (4,),
            "soft_cap": 2.0,
        },
    ),
]

_AXIAL_ATTENTION = [
    Spec(
        "3d_grouped_bias",
        ((2, 2, 3, 1, 4, 3), (2, 2, 5, 1, 2, 3), (2, 2, 5, 1, 2, 2), (4, 3, 5)),
        {"axis": 2},
    ),
    Spec(
        "2d_causal_masked",
        ((1, 5, 2, 2, 3),) * 3,
        {"axis": 1, "is_causal": True, "mask": (True, False, True, True, True)},
    ),
    Spec("2d_last", ((1, 2, 4, 1, 4),) * 3, {"axis": -3, "scale": 0.3}),
]
_LINEAR_ATTENTION = [
    Spec("grouped_heads", ((2, 5, 4, 3), (2, 6, 2, 3), (2, 6, 2, 4))),
    Spec("causal", ((1, 7, 4, 3), (1, 7, 2, 3), (1, 7, 2, 4)), {"is_causal": True, "chunk": 3}),
    Spec("causal_cross", ((2, 5, 1, 3), (2, 3, 1, 3), (2, 3, 1, 2)), {"is_causal": True}),
    Spec(
        "masked",
        ((2, 4, 2, 3), (2, 5, 1, 3), (2, 5, 1, 3)),
        {"mask": (True, False, True, True, True), "key_lengths": (5, 3), "is_causal": True},
    ),
]
_NEIGHBORHOOD = [
    Spec(
        "3d_dilated",
        ((1, 3, 5, 4, 2, 3), (1, 3, 5, 4, 2, 3), (1, 3, 5, 4, 2, 2)),
        {"kernel_size": (2, 2, 3), "dilation": (1, 2, 1)},
    ),
    Spec("2d_strided", ((2, 5, 6, 1, 4),) * 3, {"kernel_size": (3, 4), "stride": (2, 3)}),
    Spec(
        "1d_causal",
        ((1, 9, 2, 3),) * 3,
        {"kernel_size": 3, "dilation": 2, "stride": 2, "is_causal": True, "scale": 0.3},
    ),
]
_WINDOW_ATTENTION = [
    Spec(
        "3d_shifted",
        (*((1, 4, 2, 6, 2, 3),) * 2, (1, 4, 2, 6, 2, 4), (2, 6, 6)),
        {"window_size": (2, 1, 3), "shift": (1, 0, 2)},
    ),
    Spec("2d", ((2, 4, 6, 1, 3),) * 3, {"window_size": 2, "scale": 0.3}),
    Spec("1d_shifted", ((2, 6, 2, 3),) * 3, {"window_size": 3, "shift": 1}),
]

# What the tests of every implementation run: small.
SPECS: Mapping[str, list[Spec]] = {
    "conv": _CONV,
    "conv_transpose": _CONV_TRANSPOSE,
    "max_pool": _POOL,
    "avg_pool": _POOL,
    "resize": _RESIZE,
    "instance_norm": _NORM,
    "group_norm": [spec._replace(options={"num_groups": 2}) for spec in _NORM],
    "layer_norm": _NORM,
    "batch_norm": _NORM,
    "linear_scan": _LINEAR_SCAN,
    "selective_scan": _SELECTIVE_SCAN,
    "rnn": _RNN,
    "lstm": _LSTM,
    "gru": _GRU,
    "ssd": _SSD,
    "rg_lru": _RG_LRU,
    "mlstm": _MLSTM,
    "slstm": _SLSTM,
    "conv_lstm": _conv_cells(4),
    "conv_gru": _conv_cells(3),
    "attention": _ATTENTION,
    "axial_attention": _AXIAL_ATTENTION,
    "linear_attention": _LINEAR_ATTENTION,
    "window_attention": _WINDOW_ATTENTION,
    "neighborhood_attention": _NEIGHBORHOOD,
}

_LARGE_CONV = [
    Spec("3d_64_c32", ((1, 64, 64, 64, 32), (3, 3, 3, 32, 32))),
    Spec("3d_32_c128", ((1, 32, 32, 32, 128), (3, 3, 3, 128, 128))),
    Spec("3d_96_c1_to_32", ((1, 96, 96, 96, 1), (3, 3, 3, 1, 32))),
    Spec(
        "3d_48_c64_strided",
        ((1, 48, 48, 48, 64), (3, 3, 3, 64, 64)),
        {"strides": 2, "padding": 1},
    ),
    Spec("3d_16_c320", ((1, 16, 16, 16, 320), (3, 3, 3, 320, 320))),
    Spec(
        "3d_48_depthwise_5",
        ((1, 48, 48, 48, 64), (5, 5, 5, 1, 64)),
        {"feature_group_count": 64},
    ),
    Spec(
        "3d_48_depthwise_7",
        ((1, 48, 48, 48, 64), (7, 7, 7, 1, 64)),
        {"feature_group_count": 64},
    ),
    Spec("3d_64_pointwise_c32_to_3", ((1, 64, 64, 64, 32), (1, 1, 1, 32, 3))),
    Spec("2d_256_c64", ((1, 256, 256, 64), (3, 3, 64, 64))),
    Spec("2d_256_depthwise_7", ((1, 256, 256, 64), (7, 7, 1, 64)), {"feature_group_count": 64}),
]

_LARGE_POOL = [
    Spec("3d_64_c32", ((1, 64, 64, 64, 32),), {"window": 2}),
    Spec("3d_64_c32_overlap", ((1, 64, 64, 64, 32),), {"window": 3, "strides": 2, "padding": 1}),
    Spec("2d_256_c64", ((1, 256, 256, 64),), {"window": 2}),
]

_LARGE_NORM = [Spec("3d_64_c32", ((1, 64, 64, 64, 32), (32,), (32,)))]


def _tokens(t: int, n: int) -> Spec:
    return Spec(f"t{t}_n{n}", ((1, t, n, 64),) * 3)


# Volumes of 96 voxels along each axis in patches of 8 and of 4, and between. With fewer heads where
# there are many tokens, so that a run takes no more than minutes.
_LARGE_ATTENTION = [
    _tokens(1024, 8),
    _tokens(1024, 8)._replace(name="t1024_n8_causal", options={"is_causal": True}),
    Spec("t343_n4_windows", ((16, 343, 4, 32),) * 3),
    *(_tokens(t, n) for t, n in ((1728, 8), (4096, 8), (13_824, 2), (16_384, 8), (65_536, 1))),
]


def _bfloat16(specs: list[Spec], *names: str) -> list[Spec]:
    """The named ones once more, in bfloat16."""
    chosen = [spec for spec in specs if spec.name in names]
    return [s._replace(name=f"{s.name}_bfloat16", dtype="bfloat16") for s in chosen]


def _cell(c: int, f: int, gates: int) -> tuple[tuple[int, ...], ...]:
    """Eight sequences of 256 steps of c channels, a state of f; x, w_x, w_h, bias, h0."""
    return (8, 256, c), (c, gates * f), (f, gates * f), (gates * f,), (8, f)


def _selective(t: int) -> Spec:
    ports = (1, t, 16)
    return Spec(f"t{t}_c256_n16", ((1, t, 256), (1, t, 256), (256, 16), ports, ports))


# What is worth timing: layers of the models, at the sizes of their patches.
LARGE: Mapping[str, list[Spec]] = {
    "conv": [
        *_LARGE_CONV,
        *_bfloat16(_LARGE_CONV, "3d_64_c32", "3d_32_c128", "3d_48_depthwise_5"),
    ],
    "conv_transpose": [
        Spec("3d_32_c128_to_64", ((1, 32, 32, 32, 128), (2, 2, 2, 128, 64)), {"strides": 2}),
    ],
    "max_pool": _LARGE_POOL,
    "avg_pool": _LARGE_POOL,
    "resize": [
        Spec("3d_32_c32_to_64", ((1, 32, 32, 32, 32),), {"size": 64}),
        Spec("3d_32_c32_to_48", ((1, 32, 32, 32, 32),), {"size": 48}),
        Spec("3d_64_c32_to_32", ((1, 64, 64, 64, 32),), {"size": 32}),
    ],
    "instance_norm": _LARGE_NORM,
    "group_norm": [spec._replace(options={"num_groups": 8}) for spec in _LARGE_NORM],
    "layer_norm": _LARGE_NORM,
    "batch_norm": _LARGE_NORM,
    "linear_scan": [
        Spec("t1024_c256", ((4, 1024, 256), (4, 1024, 256), (4, 256))),
        Spec("t16384_c64", ((1, 16384, 64), (1, 16384, 64), (1, 64))),
        *(Spec(f"t{t}_c512", ((1, t, 512), (1, t, 512), (1, 512))) for t in (256, 4096, 65536)),
    ],
    "selective_scan": [_selective(t) for t in (256, 4096, 16384)],
    "rnn": [Spec("t256_c128", _cell(128, 128, 1)), Spec("t256_c64_to_256", _cell(64, 256, 1))],
    "lstm": [
        Spec("t256_c128", (*_cell(128, 128, 4), (8, 128))),
        Spec("t256_c64_to_256", (*_cell(64, 256, 4), (8, 256))),
    ],
    "gru": [Spec("t256_c128", _cell(128, 128, 3)), Spec("t256_c64_to_256", _cell(64, 256, 3))],
    "ssd": [
        Spec(
            "t4096_n8_k32_s64",
            ((1, 4096, 8, 32), (1, 4096, 8), (8,), (1, 4096, 1, 64), (1, 4096, 1, 64)),
        ),
    ],
    "rg_lru": [Spec("t4096_c512", (*((1, 4096, 512),) * 3, (512,)))],
    "mlstm": [Spec("t2048_n4_k64", (*((1, 2048, 4, 64),) * 3, *((1, 2048, 4),) * 2))],
    "slstm": [Spec("t512_n4_k32", ((8, 512, 4, 4, 32), (4, 32, 4, 32)))],
    "conv_lstm": [Spec("2d_64_t10_c16", _conv_cell((1, 10, 64, 64, 16), 16, 4))],
    "conv_gru": [Spec("2d_64_t10_c16", _conv_cell((1, 10, 64, 64, 16), 16, 3))],
    "attention": [
        *_LARGE_ATTENTION,
        *_bfloat16(_LARGE_ATTENTION, "t4096_n8"),
    ],
    "axial_attention": [
        Spec(f"{edge}_n3_k16", ((1, edge, edge, edge, 3, 16),) * 3, {"axis": 1})
        for edge in (24, 48)
    ],
    "linear_attention": [
        _tokens(4096, 8),
        _tokens(4096, 8)._replace(name="t4096_n8_causal", options={"is_causal": True}),
        _tokens(65_536, 8),
    ],
    "neighborhood_attention": [
        Spec(f"{edge}_n3_k16", ((1, edge, edge, edge, 3, 16),) * 3, {"kernel_size": 7})
        for edge in (24, 48)
    ],
    # An image of 48 voxels along each axis, padded as its windows want it.
    "window_attention": [
        Spec(
            f"49_n3_k16{name}",
            (*((1, 49, 49, 49, 3, 16),) * 3, (3, 343, 343)),
            {"window_size": 7, "shift": shift},
        )
        for name, shift in (("", 0), ("_shifted", 3))
    ],
}
