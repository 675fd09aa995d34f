"""Recurrences along a sequence, and along the voxels of a volume.

The usual sets of orders for `scan_volume`:

| orders | walk | as in |
| --- | --- | --- |
| `raster_orders(n)` | every raster order of n axes, forward and backward | |
| `cross_scan_orders(n)` | each axis once the fastest, forward and backward | VMamba |
| `TRI_ORIENTATED` | forward, backward, and from slice to slice | SegMamba |
| `THREE_PLANES` | axial, then coronal, then sagittal slices | SegMamba-V2 |

Both papers call theirs tri-orientated.
"""

from biojax.kernels.scan.cells import gru, lstm, rnn
from biojax.kernels.scan.convolutional import conv_gru, conv_lstm
from biojax.kernels.scan.linear import linear_scan
from biojax.kernels.scan.orders import (
    THREE_PLANES,
    TRI_ORIENTATED,
    cross_scan_orders,
    permutation,
    raster_orders,
)
from biojax.kernels.scan.rglru import rg_lru, rg_lru_step
from biojax.kernels.scan.selective import selective_scan, selective_step
from biojax.kernels.scan.ssd import ssd, ssd_step
from biojax.kernels.scan.volume import scan_volume, traverse, untraverse
from biojax.kernels.scan.xlstm import mlstm, mlstm_step, slstm, slstm_step

__all__ = [
    "THREE_PLANES",
    "TRI_ORIENTATED",
    "conv_gru",
    "conv_lstm",
    "cross_scan_orders",
    "gru",
    "linear_scan",
    "lstm",
    "mlstm",
    "mlstm_step",
    "permutation",
    "raster_orders",
    "rg_lru",
    "rg_lru_step",
    "rnn",
    "scan_volume",
    "selective_scan",
    "selective_step",
    "slstm",
    "slstm_step",
    "ssd",
    "ssd_step",
    "traverse",
    "untraverse",
]
