"""Attention: every query with every key, with its neighbours, or with sums of all keys."""

from biojax.kernels.attention.axial import axial_attention
from biojax.kernels.attention.full import attention, attention_and_lse
from biojax.kernels.attention.linear import linear_attention
from biojax.kernels.attention.neighborhood import neighborhood_attention
from biojax.kernels.attention.relative import relative_bias, resize_relative_table
from biojax.kernels.attention.ring import ring_attention
from biojax.kernels.attention.rotary import rotary, rotary_angles
from biojax.kernels.attention.window import window_attention

__all__ = [
    "attention",
    "attention_and_lse",
    "axial_attention",
    "linear_attention",
    "neighborhood_attention",
    "relative_bias",
    "resize_relative_table",
    "ring_attention",
    "rotary",
    "rotary_angles",
    "window_attention",
]
