"""What the modules of transformers for PyTorch are called in biojax."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from biojax.convert.module import Module
from biojax.models import UNETR, Primus, SwinUNETR, ViT
from biojax.models.checks import patch_strides

__all__ = ["TRANSFORMERS"]


def _vit(model: Any) -> Iterator[Module]:
    first = int(model.pool == "class")  # of the patches
    yield Module("patch_embed.proj", "embed/proj")
    if model.pool == "class":
        yield Module("cls_token", "class_token", "array")
        yield Module("pos_embed", "class_position", "array", slice(0, first))
    yield Module("pos_embed", "positions/table", "array", slice(first, None))
    for i in range(model.num_layers):
        yield from _timm_block(f"blocks.{i}", f"block{i}", model.features)
    # timm pools before the norm or after it, by two names.
    yield Module("fc_norm" if model.pool_norm else "norm", "norm")
    if model.pool == "attention":
        attention = "pool/attention"
        yield Module("attn_pool.latent", "pool/queries", "array")
        yield Module("attn_pool.q", f"{attention}/query")
        yield from _stacked("attn_pool.kv", attention, ("key", "value"), model.features)
        yield Module("attn_pool.proj", f"{attention}/proj")
        yield Module("attn_pool.norm", "pool/norm")
        yield from _timm_mlp("attn_pool.mlp", "pool/mlp")
    yield Module("head", "head")


def _timm_block(theirs: str, ours: str, features: int) -> Iterator[Module]:
    attention = f"{ours}/attention"
    yield Module(f"{theirs}.norm1", f"{ours}/norm1")
    yield from _stacked(f"{theirs}.attn.qkv", attention, ("query", "key", "value"), features)
    yield Module(f"{theirs}.attn.q_norm", f"{attention}/query_norm")
    yield Module(f"{theirs}.attn.k_norm", f"{attention}/key_norm")
    yield Module(f"{theirs}.attn.proj", f"{attention}/proj")
    yield Module(f"{theirs}.ls1.gamma", f"{ours}/scale1/scale", "array")
    yield Module(f"{theirs}.norm2", f"{ours}/norm2")
    yield from _timm_mlp(f"{theirs}.mlp", f"{ours}/mlp")
    yield Module(f"{theirs}.ls2.gamma", f"{ours}/scale2/scale", "array")


def _timm_mlp(theirs: str, ours: str) -> Iterator[Module]:
    yield Module(f"{theirs}.fc1", f"{ours}/expand")
    yield Module(f"{theirs}.fc2", f"{ours}/project")


def _unetr(model: Any) -> Iterator[Module]:
    steps = len(patch_strides("unetr", model.stride))
    yield Module("vit.patch_embedding.patch_embeddings", "embed/proj")
    yield Module("vit.patch_embedding.position_embeddings", "positions/table", "array")
    for i in range(model.num_layers):
        yield from _monai_block(f"vit.blocks.{i}", f"block{i}", model.hidden_features)
    yield Module("vit.norm", "norm")
    yield from _unetr_block("encoder1.layer", "skip0")
    for i in range(1, steps):
        theirs, first = f"encoder{i + 1}", steps - 1
        yield Module(f"{theirs}.transp_conv_init.conv", f"skip{i}_up{first}", "transposed")
        for j in range(i, first):  # theirs are counted from the patches up
            up = f"{theirs}.blocks.{first - 1 - j}"
            yield Module(f"{up}.0.conv", f"skip{i}_up{j}", "transposed")
            yield from _unetr_block(f"{up}.1", f"skip{i}_block{j}")
    for i in range(steps):
        yield Module(f"decoder{i + 2}.transp_conv.conv", f"up{i}", "transposed")
        yield from _unetr_block(f"decoder{i + 2}.conv_block", f"decoder{i}_block0")
    yield Module("out.conv.conv", "head")


def _unetr_block(theirs: str, ours: str) -> Iterator[Module]:
    for i, name in enumerate(("conv1", "conv2", "shortcut"), start=1):
        yield Module(f"{theirs}.conv{i}.conv", f"{ours}/{name}")
        yield Module(f"{theirs}.norm{i}", f"{ours}/{name}_norm")


def _monai_block(theirs: str, ours: str, features: int) -> Iterator[Module]:
    attention = f"{ours}/attention"
    yield Module(f"{theirs}.norm1", f"{ours}/norm1")
    yield from _stacked(f"{theirs}.attn.qkv", attention, ("query", "key", "value"), features)
    yield Module(f"{theirs}.attn.out_proj", f"{attention}/proj")
    yield Module(f"{theirs}.norm2", f"{ours}/norm2")
    yield Module(f"{theirs}.mlp.linear1", f"{ours}/mlp/expand")
    yield Module(f"{theirs}.mlp.linear2", f"{ours}/mlp/project")
    # Each block has the norm of a cross-attention that it never calls; until MONAI 1.5, all of it.
    for name in ("norm_cross_attn", *(f"cross_attn.{part}" for part in _CROSS_ATTENTION)):
        yield Module(f"{theirs}.{name}", "")


_CROSS_ATTENTION = ("to_q", "to_k", "to_v", "out_proj")


def _swin_unetr(model: Any) -> Iterator[Module]:
    last = len(model.num_blocks)
    yield Module("swinViT.patch_embed.proj", "embed/proj")
    for i, blocks in enumerate(model.num_blocks):
        theirs, features = f"swinViT.layers{i + 1}", model.features << i
        yield from _unetr_block(f"{theirs}c.0.layer", f"stage{i}_conv")
        for j in range(blocks):
            yield from _swin_block(f"{theirs}.0.blocks.{j}", f"stage{i}_block{j}", features)
        yield Module(f"{theirs}.0.downsample.norm", f"merge{i}/norm")
        yield Module(f"{theirs}.0.downsample.reduction", f"merge{i}/reduce")
    for i in range(last):
        yield from _unetr_block(f"encoder{i + 1}.layer", f"skip{i}")
    yield from _unetr_block("encoder10.layer", "bottleneck")
    for i in range(last + 1):
        yield Module(f"decoder{i + 1}.transp_conv.conv", f"up{i}", "transposed")
        yield from _unetr_block(f"decoder{i + 1}.conv_block", f"decoder{i}_block0")
    yield Module("out.conv.conv", "head")


def _swin_block(theirs: str, ours: str, features: int) -> Iterator[Module]:
    attention = f"{ours}/attention"
    for name in ("norm1", "norm2"):
        yield Module(f"{theirs}.{name}", f"{ours}/{name}")
    yield Module(f"{theirs}.attn.relative_position_bias_table", f"{attention}/table", "array")
    yield Module(f"{theirs}.attn.relative_position_index", "", "array")  # no weights
    yield from _stacked(f"{theirs}.attn.qkv", attention, ("query", "key", "value"), features)
    yield Module(f"{theirs}.attn.proj", f"{attention}/proj")
    for part, name in (("linear1", "expand"), ("linear2", "project")):
        yield Module(f"{theirs}.mlp.{part}", f"{ours}/mlp/{name}")


def _primus(model: Any) -> Iterator[Module]:
    last = len(patch_strides("primus", model.stride)) - 1
    yield Module("down_projection.proj", "embed/proj")
    yield Module("mask_token", "", "array")  # stands for patches that pretraining hides
    yield Module("eva.pos_embed", "positions/table", "array")
    for i in range(model.num_layers):
        yield from _eva_block(f"eva.blocks.{i}", f"block{i}")
    yield Module("eva.norm", "norm")
    for i in range(1, last + 1):  # theirs are counted from the patches up
        yield Module(f"up_projection.decode.{last - i}.0", f"up{i}", "transposed")
        yield Module(f"up_projection.decode.{last - i}.1", f"up{i}_norm")
    yield Module(f"up_projection.decode.{last}", "head", "transposed")


def _eva_block(theirs: str, ours: str) -> Iterator[Module]:
    for i in (1, 2):
        yield Module(f"{theirs}.norm{i}", f"{ours}/norm{i}")
        yield Module(f"{theirs}.gamma_{i}", f"{ours}/scale{i}/scale", "array")
    for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
        yield Module(f"{theirs}.attn.{part}_proj", f"{ours}/attention/{name}")
        yield Module(f"{theirs}.attn.{part}_norm", f"{ours}/attention/{name}_norm")
    for part in ("norm", "proj"):
        yield Module(f"{theirs}.attn.{part}", f"{ours}/attention/{part}")
    names = {"fc1_g": "gate", "fc1_x": "expand", "norm": "norm", "fc2": "project"}
    for part, name in names.items():
        yield Module(f"{theirs}.mlp.{part}", f"{ours}/mlp/{name}")


def _stacked(theirs: str, ours: str, parts: tuple[str, ...], features: int) -> Iterator[Module]:
    """One linear layer there, as many as there are parts here."""
    for i, part in enumerate(parts):
        rows = slice(i * features, (i + 1) * features)
        yield Module(theirs, f"{ours}/{part}", rows=rows)


TRANSFORMERS: dict[type[nn.Module], Callable[[Any], Iterator[Module]]] = {
    Primus: _primus,
    SwinUNETR: _swin_unetr,
    UNETR: _unetr,
    ViT: _vit,
}
