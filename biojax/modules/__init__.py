"""Linen modules: they own parameters and call kernels."""

from biojax.modules.attention import MultiHeadAttention, TransformerBlock
from biojax.modules.attention_pool import AttentionPool, GatedAttentionPool
from biojax.modules.conv import Conv, ConvBlock, ConvTranspose
from biojax.modules.convrecurrent import ConvGRU, ConvLSTM
from biojax.modules.dense import BlockDense
from biojax.modules.embed import PatchEmbed, sincos_positions, unpatch
from biojax.modules.griffin import GriffinBlock
from biojax.modules.hierarchical import HierarchicalRNN
from biojax.modules.mlp import MLP
from biojax.modules.neighborhood import (
    AxialAttention,
    NeighborhoodAttention,
    NeighborhoodBlock,
)
from biojax.modules.norm import make_norm
from biojax.modules.positions import LearnedPositions
from biojax.modules.recurrent import GRU, LSTM, RNN, BiRNN, StackedRNN, make_recurrent
from biojax.modules.residual import DropPath, LayerScale
from biojax.modules.ssm import Mamba2Block, MambaBlock, SelectiveSSM, VSSBlock
from biojax.modules.swin import PatchMerging, SwinBlock, WindowAttention
from biojax.modules.xlstm import ViLBlock

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "RNN",
    "AttentionPool",
    "AxialAttention",
    "BiRNN",
    "BlockDense",
    "Conv",
    "ConvBlock",
    "ConvGRU",
    "ConvLSTM",
    "ConvTranspose",
    "DropPath",
    "GatedAttentionPool",
    "GriffinBlock",
    "HierarchicalRNN",
    "LayerScale",
    "LearnedPositions",
    "Mamba2Block",
    "MambaBlock",
    "MultiHeadAttention",
    "NeighborhoodAttention",
    "NeighborhoodBlock",
    "PatchEmbed",
    "PatchMerging",
    "SelectiveSSM",
    "StackedRNN",
    "SwinBlock",
    "TransformerBlock",
    "VSSBlock",
    "ViLBlock",
    "WindowAttention",
    "make_norm",
    "make_recurrent",
    "sincos_positions",
    "unpatch",
]
