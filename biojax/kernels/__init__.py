"""Pure functions on arrays: convolution, recurrent scan, attention, pooling.

Each has a reference that says what is right, and implementations that say how fast. A kernel
needs nothing else of biojax.
"""

from biojax.kernels.attention import attention
from biojax.kernels.conv import conv, conv_transpose
from biojax.kernels.dispatch import Choice, explain
from biojax.kernels.pool import avg_pool, max_pool
from biojax.kernels.scan import gru, linear_scan, lstm, rnn
from biojax.kernels.tune import tune

__all__ = [
    "Choice",
    "attention",
    "avg_pool",
    "conv",
    "conv_transpose",
    "explain",
    "gru",
    "linear_scan",
    "lstm",
    "max_pool",
    "rnn",
    "tune",
]
