"""Pure functions on arrays: convolution, scan, attention, pooling, resampling, normalisation.

Each has a reference that says what is right, and implementations that say how fast. A kernel
needs nothing else of biojax.
"""

from biojax.kernels.attention import (
    attention,
    attention_and_lse,
    axial_attention,
    linear_attention,
    neighborhood_attention,
    relative_bias,
    resize_relative_table,
    ring_attention,
    rotary,
    rotary_angles,
    window_attention,
)
from biojax.kernels.conv import conv, conv_transpose
from biojax.kernels.dispatch import Choice, explain
from biojax.kernels.norm import batch_norm, group_norm, instance_norm, layer_norm
from biojax.kernels.pool import avg_pool, max_pool
from biojax.kernels.resize import resize
from biojax.kernels.scan import (
    conv_gru,
    conv_lstm,
    cross_scan_orders,
    gru,
    linear_scan,
    lstm,
    mlstm,
    mlstm_step,
    permutation,
    raster_orders,
    rg_lru,
    rg_lru_step,
    rnn,
    scan_volume,
    selective_scan,
    selective_step,
    slstm,
    slstm_step,
    ssd,
    ssd_step,
    traverse,
    untraverse,
)
from biojax.kernels.tune import tune

__all__ = [
    "Choice",
    "attention",
    "attention_and_lse",
    "avg_pool",
    "axial_attention",
    "batch_norm",
    "conv",
    "conv_gru",
    "conv_lstm",
    "conv_transpose",
    "cross_scan_orders",
    "explain",
    "group_norm",
    "gru",
    "instance_norm",
    "layer_norm",
    "linear_attention",
    "linear_scan",
    "lstm",
    "max_pool",
    "mlstm",
    "mlstm_step",
    "neighborhood_attention",
    "permutation",
    "raster_orders",
    "relative_bias",
    "resize",
    "resize_relative_table",
    "rg_lru",
    "rg_lru_step",
    "ring_attention",
    "rnn",
    "rotary",
    "rotary_angles",
    "scan_volume",
    "selective_scan",
    "selective_step",
    "slstm",
    "slstm_step",
    "ssd",
    "ssd_step",
    "traverse",
    "tune",
    "untraverse",
    "window_attention",
]
