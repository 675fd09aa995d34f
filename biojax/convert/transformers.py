"""What the modules of transformers for PyTorch are called in biojax."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from biojax.convert.module import Module
from biojax.models import ViT

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
    yield Module("norm", "norm")
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


def _stacked(theirs: str, ours: str, parts: tuple[str, ...], features: int) -> Iterator[Module]:
    """One linear layer there, as many as there are parts here."""
    for i, part in enumerate(parts):
        rows = slice(i * features, (i + 1) * features)
        yield Module(theirs, f"{ours}/{part}", rows=rows)


TRANSFORMERS: dict[type[nn.Module], Callable[[Any], Iterator[Module]]] = {
    ViT: _vit,
}
