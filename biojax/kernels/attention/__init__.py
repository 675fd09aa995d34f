"""Attention: every query with every key, with its neighbours, or with sums of all keys."""

from biojax.kernels.attention.full import attention, attention_and_lse
from biojax.kernels.attention.linear import linear_attention
from biojax.kernels.attention.ring import ring_attention
from biojax.kernels.attention.rotary import rotary, rotary_angles

__all__ = [
    "attention",
    "attention_and_lse",
    "linear_attention",
    "ring_attention",
    "rotary",
    "rotary_angles",
]
