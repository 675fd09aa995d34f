"""What PyTorch's modules are called in biojax, one written map for each family of models.

| family | names of |
| --- | --- |
| `UNet`, `ResEncUNet` | dynamic_network_architectures, nnU-Net's package of networks |
| `MedNeXt` | the authors' code, and MONAI's |
| `ResidualUNet` | MONAI's `UNet` with residual units |
| `ResNet3D` | MONAI's `ResNet`, which are those of most ResNets for PyTorch |
| `ViT` | timm |
| `UNETR`, `SwinUNETR` | MONAI |
| `Primus` | dynamic_network_architectures |
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from biojax.convert.module import Module
from biojax.convert.transformers import TRANSFORMERS
from biojax.errors import ConfigError
from biojax.models import MedNeXt, ResEncUNet, ResidualUNet, ResNet3D, UNet

__all__ = ["module_names", "plain_name"]


def module_names(model: nn.Module) -> list[Module]:
    """The map for a model, the module that sees the image first. Some modules have two names.

    Raises:
      ConfigError: there is no map for such a model.
    """
    if type(model) not in _FAMILIES:
        raise ConfigError(
            "convert",
            f"a {type(model).__name__}",
            f"one of {', '.join(family.__name__ for family in _FAMILIES)}",
            "Choose a model of these families",
        )
    return list(_FAMILIES[type(model)](model))


def plain_name(name: str) -> str:
    """A name without what wrappers put before it, and without nnU-Net's second names.

    >>> plain_name("module.decoder.encoder.stages.0.0.convs.0.all_modules.1.weight")
    'encoder.stages.0.0.convs.0.norm.weight'
    """
    for pattern, plain in _ALIASES:
        name = re.sub(pattern, plain, name)
    return name


# What wraps a model in training, then the ways in which nnU-Net's modules are reached twice.
_ALIASES = (
    (r"^((module|_orig_mod)\.)+", ""),
    (r"^decoder\.encoder\.", "encoder."),
    (r"\.all_modules\.0\.", ".conv."),
    (r"\.all_modules\.1\.", ".norm."),
    (r"\.skip\.[01]\.", ".skip."),
)


def _unet(model: Any) -> Iterator[Module]:
    for i in range(len(model.features)):
        for j in range(model.num_convs):
            yield from _block(f"encoder.stages.{i}.0.convs.{j}", f"encoder{i}_block{j}")
    yield from _nnunet_decoder(model)


def _resenc_unet(model: Any) -> Iterator[Module]:
    yield from _block("encoder.stem.convs.0", "stem")
    for i, blocks in enumerate(model.num_blocks):
        for j in range(blocks):
            theirs, ours = f"encoder.stages.{i}.blocks.{j}", f"encoder{i}_block{j}"
            yield from _block(f"{theirs}.conv1", f"{ours}/conv1")
            yield from _block(f"{theirs}.conv2", f"{ours}/conv2")
            yield from _block(f"{theirs}.skip", f"{ours}/shortcut")
    yield from _nnunet_decoder(model)


def _nnunet_decoder(model: Any) -> Iterator[Module]:
    last = len(model.features) - 1
    for i in range(last):
        s = last - 1 - i  # theirs are counted from the lowest resolution up
        yield Module(f"decoder.transpconvs.{s}", f"up{i}", "transposed")
        for j in range(model.num_convs):
            yield from _block(f"decoder.stages.{s}.convs.{j}", f"decoder{i}_block{j}")
        yield Module(f"decoder.seg_layers.{s}", f"head{i or ''}")


def _block(theirs: str, ours: str) -> Iterator[Module]:
    yield Module(f"{theirs}.conv", f"{ours}/conv")
    yield Module(f"{theirs}.norm", f"{ours}/norm")


def _mednext(model: Any) -> Iterator[Module]:
    depth = len(model.num_blocks) // 2
    up = "depthwise transposed"
    yield Module("stem", "stem")
    for j in range(model.num_blocks[depth]):
        yield from _mednext_block(f"bottleneck.{j}", f"bottleneck_block{j}")
    for i in range(depth):
        r = depth - 1 - i  # MONAI's are counted from the lowest resolution up
        for theirs in (f"enc_block_{i}", f"enc_stages.{i}"):
            for j in range(model.num_blocks[i]):
                yield from _mednext_block(f"{theirs}.{j}", f"encoder{i}_block{j}")
        for theirs in (f"dec_block_{i}", f"dec_stages.{r}"):
            for j in range(model.num_blocks[2 * depth - i]):
                yield from _mednext_block(f"{theirs}.{j}", f"decoder{i}_block{j}")
        for theirs in (f"down_{i}", f"down_blocks.{i}"):
            yield from _mednext_block(theirs, f"down{i}")
            yield Module(f"{theirs}.res_conv", f"down{i}_shortcut")
        for theirs in (f"up_{i}", f"up_blocks.{r}"):
            yield from _mednext_block(theirs, f"up{i}", up)
            yield Module(f"{theirs}.res_conv", f"up{i}_shortcut", "transposed")
        for theirs in (f"out_{i + 1}", f"out_blocks.{r}"):
            yield Module(f"{theirs}.conv_out", f"head{i + 1}", "transposed")
    yield Module("out_0.conv_out", "head", "transposed")


def _mednext_block(theirs: str, ours: str, layout: str = "conv") -> Iterator[Module]:
    yield Module(f"{theirs}.conv1", f"{ours}/depthwise", layout)
    yield Module(f"{theirs}.norm", f"{ours}/norm")
    yield Module(f"{theirs}.conv2", f"{ours}/expand")
    yield Module(f"{theirs}.conv3", f"{ours}/project")


def _residual_unet(model: Any) -> Iterator[Module]:
    theirs = "model"
    for i in range(len(model.features) - 1):
        yield from _unit(f"{theirs}.0", f"encoder{i}", model.num_convs)
        yield from _layer(f"{theirs}.2.0", f"up{i}", "transposed")
        if i:
            yield from _unit(f"{theirs}.2.1", f"decoder{i}", 1)
        else:
            yield Module(f"{theirs}.2.1.conv.unit0.conv", "decoder0/layer0")
        theirs += ".1.submodule"
    yield from _unit(theirs, f"encoder{len(model.features) - 1}", model.num_convs)


def _unit(theirs: str, ours: str, num_convs: int) -> Iterator[Module]:
    for j in range(num_convs):
        yield from _layer(f"{theirs}.conv.unit{j}", f"{ours}/layer{j}")
    yield Module(f"{theirs}.residual", f"{ours}/shortcut")


def _layer(theirs: str, ours: str, layout: str = "conv") -> Iterator[Module]:
    yield Module(f"{theirs}.conv", f"{ours}/conv", layout)
    yield Module(f"{theirs}.adn.N", f"{ours}/norm")
    yield Module(f"{theirs}.adn.A", f"{ours}/prelu")


def _resnet3d(model: Any) -> Iterator[Module]:
    yield Module("conv1", "stem/conv")
    yield Module("bn1", "stem/norm")
    for i, blocks in enumerate(model.num_blocks):
        for j in range(blocks):
            theirs, ours = f"layer{i + 1}.{j}", f"stage{i}_block{j}"
            for k in range(1, 4 if model.bottleneck else 3):
                yield Module(f"{theirs}.conv{k}", f"{ours}_conv{k}/conv")
                yield Module(f"{theirs}.bn{k}", f"{ours}_conv{k}/norm")
            yield Module(f"{theirs}.downsample.0", f"{ours}_shortcut/conv")
            yield Module(f"{theirs}.downsample.1", f"{ours}_shortcut/norm")
    yield Module("fc", "head")


_FAMILIES: dict[type[nn.Module], Callable[[Any], Iterator[Module]]] = {
    UNet: _unet,
    ResEncUNet: _resenc_unet,
    MedNeXt: _mednext,
    ResidualUNet: _residual_unet,
    ResNet3D: _resnet3d,
    **TRANSFORMERS,
}
