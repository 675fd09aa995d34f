"""Models by name."""

import dataclasses
import fnmatch
import inspect
import math
import typing
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from biojax.errors import ConfigError, nearest
from biojax.models.abmil import ABMIL
from biojax.models.attention import AttentionClassifier
from biojax.models.cnn import CNNClassifier
from biojax.models.convlstm import ConvLSTMForecaster
from biojax.models.mednext import MedNeXt
from biojax.models.nat_unet import NATUNet
from biojax.models.primus import Primus
from biojax.models.resenc_unet import ResEncUNet
from biojax.models.residual_unet import ResidualUNet
from biojax.models.resnet3d import ResNet3D
from biojax.models.rnn import RNNClassifier, RNNEncoderDecoder
from biojax.models.segmamba import SegMamba
from biojax.models.slice_rnn import SliceRNN
from biojax.models.swin_unetr import SwinUNETR
from biojax.models.umamba import UMamba
from biojax.models.unet import UNet
from biojax.models.unetr import UNETR
from biojax.models.vil import ViL
from biojax.models.vision_mamba import VisionMamba
from biojax.models.vit import ViT

__all__ = ["MODELS", "PRESETS", "count_parameters", "create_model", "list_models", "model_fields"]

MODELS: dict[str, type[nn.Module]] = {
    "abmil": ABMIL,
    "attention_classifier": AttentionClassifier,
    "cnn_classifier": CNNClassifier,
    "convlstm_forecaster": ConvLSTMForecaster,
    "mednext_b": MedNeXt,
    "mednext_l": MedNeXt,
    "mednext_m": MedNeXt,
    "mednext_s": MedNeXt,
    "nat_unet_b": NATUNet,
    "nat_unet_s": NATUNet,
    "nat_unet_t": NATUNet,
    "primus_b": Primus,
    "primus_l": Primus,
    "primus_m": Primus,
    "primus_s": Primus,
    "resenc_unet_l": ResEncUNet,
    "resenc_unet_m": ResEncUNet,
    "resenc_unet_xl": ResEncUNet,
    "residual_unet": ResidualUNet,
    "resnet3d_18": ResNet3D,
    "resnet3d_34": ResNet3D,
    "resnet3d_50": ResNet3D,
    "rnn_classifier": RNNClassifier,
    "rnn_encoder_decoder": RNNEncoderDecoder,
    "segmamba": SegMamba,
    "slice_rnn": SliceRNN,
    "swin_unetr": SwinUNETR,
    "swin_unetr_v2": SwinUNETR,
    "umamba_bot": UMamba,
    "umamba_enc": UMamba,
    "unet": UNet,
    "unetr": UNETR,
    "vil_b": ViL,
    "vil_s": ViL,
    "vil_t": ViL,
    "vision_mamba": VisionMamba,  # vision_mamba_t by the name of the family
    "vision_mamba_b": VisionMamba,
    "vision_mamba_s": VisionMamba,
    "vision_mamba_t": VisionMamba,
    "vit_b": ViT,
    "vit_h": ViT,
    "vit_l": ViT,
    "vit_s": ViT,
    "vit_ti": ViT,
}

# The fields in which a name differs from the defaults of its class.
PRESETS: dict[str, dict[str, Any]] = {
    "mednext_b": {"expansion_ratio": (2, 3, 4, 4, 4, 4, 4, 3, 2)},
    "mednext_l": {
        "num_blocks": (3, 4, 8, 8, 8, 8, 8, 4, 3),
        "expansion_ratio": (3, 4, 8, 8, 8, 8, 8, 4, 3),
    },
    "mednext_m": {
        "num_blocks": (3, 4, 4, 4, 4, 4, 4, 4, 3),
        "expansion_ratio": (2, 3, 4, 4, 4, 4, 4, 3, 2),
    },
    "nat_unet_b": {
        "features": (48, 96, 192, 384, 768),
        "num_blocks": (3, 4, 18, 5),
        "mlp_ratio": 2.0,
        "layer_scale": 1e-5,
    },
    "nat_unet_s": {
        "features": (32, 64, 128, 256, 512),
        "num_blocks": (3, 4, 6, 5),
        "num_heads": (2, 4, 8, 16),
    },
    "primus_b": {"features": 792, "num_heads": 12},
    "primus_l": {"features": 1056, "num_layers": 24, "num_heads": 16},
    "primus_m": {"features": 864, "num_layers": 16, "num_heads": 12},
    "resnet3d_34": {"num_blocks": (3, 4, 6, 3)},
    "resnet3d_50": {"num_blocks": (3, 4, 6, 3), "bottleneck": True},
    "swin_unetr_v2": {"stage_convs": True},
    "umamba_enc": {"mamba_in_encoder": True},
    "vil_b": {"features": 768},
    "vil_s": {"features": 384},
    "vision_mamba_b": {"features": 768},
    "vision_mamba_s": {"features": 384},
    "vit_h": {"features": 1280, "num_layers": 32, "num_heads": 16, "patch_size": 14},
    "vit_l": {"features": 1024, "num_layers": 24, "num_heads": 16},
    "vit_s": {"features": 384, "num_heads": 6},
    "vit_ti": {"features": 192, "num_heads": 3},
}


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows, in order.

    Args:
      pattern: with `*` and `?` as in a shell.

    >>> list_models("rnn*")
    ['rnn_classifier', 'rnn_encoder_decoder']
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def create_model(name: str, /, **fields) -> nn.Module:
    """A model by name; it holds no parameters before `init`.

    Args:
      name: one of `list_models()`.
      **fields: the model's fields, in place of its defaults. Lists count as tuples, so that what
        was read from JSON serves.

    Raises:
      ConfigError: no such model, no such field, or a field without default left out.

    >>> create_model("unet", out_channels=4, features=[8, 16]).stride
    (2, 2, 2)
    """
    if name not in MODELS:
        raise ConfigError(
            "create_model",
            f"{name!r}",
            f"one of {', '.join(list_models())}",
            "Name one of these",
            nearest(name, MODELS),
        )
    model = MODELS[name]
    known = {f.name: f for f in dataclasses.fields(model) if f.name not in ("parent", "name")}
    for field in fields:
        if field not in known:
            raise ConfigError(
                f"create_model({name!r})",
                f"field {field!r}",
                f"some of {', '.join(known)}",
                "Leave it out or correct it",
                nearest(field, known),
            )
    for field, about in known.items():
        if field not in fields and about.default is dataclasses.MISSING:
            raise ConfigError(
                f"create_model({name!r})",
                f"no {field!r}",
                f"{field}=..., which has no default",
                f"Add {field}=",
            )
    values = {field: _frozen(value) for field, value in fields.items()}
    for field, value in values.items():
        _check(f"create_model({name!r})", known[field], value)
    return model(**{**PRESETS.get(name, {}), **values})


def model_fields(name: str) -> dict[str, Any]:
    """The fields of a model and what they are by default: `dataclasses.MISSING` where required.

    Args:
      name: one of `list_models()`.
    """
    fields = {f.name: f.default for f in dataclasses.fields(MODELS[name])}
    fields |= PRESETS.get(name, {})
    return {field: default for field, default in fields.items() if field not in ("parent", "name")}


def count_parameters(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The exact number of parameters, found without computing or allocating anything.

    Args:
      model: any model.
      shape: of its input, (b, *spatial, c).

    >>> count_parameters(create_model("cnn_classifier"), (1, 224, 224, 3))
    44396609
    """
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def _check(where: str, field: dataclasses.Field, value: Any) -> None:
    """Refuse the wrong kind of value, numbers below 1, and what is no dtype."""
    if field.name in ("dtype", "param_dtype"):
        try:
            fits, expected = bool(value is None or jnp.dtype(value)), ""
        except TypeError:
            fits, expected = False, "a dtype such as 'float32' or 'bfloat16'"
    else:
        kind = inspect.formatannotation(field.type).replace("collections.abc.", "")
        fits, expected = _fits(value, field.type), f"{kind}, numbers of at least 1"
    if not fits:
        raise ConfigError(where, f"{field.name}={value!r}", expected, f"Correct {field.name}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that a field's annotation says, counts being at least 1."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Sequence:
        return isinstance(value, tuple) and all(_fits(part, parts[0]) for part in value)
    if parts:
        return any(_fits(value, part) for part in parts)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (bool, str, type(None)) else True


def _frozen(value):
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value
