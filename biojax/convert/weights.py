"""Variables and their model in one safetensors file, to share: no code runs when it is read."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from biojax.convert.state_dict import abstract_variables, read_state_dict, some
from biojax.errors import BiojaxError, CheckpointError, ConfigError, require
from biojax.io.atomic import replacing
from biojax.models import create_model

__all__ = ["load_weights", "save_weights"]


def save_weights(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    channels: int,
    overwrite: bool = False,
) -> None:
    """Write the variables of a model, and what creates it, to a safetensors file.

    Arrays are named by their paths, `params/stem/kernel` and so on; the file's metadata has the
    rest as JSON under the key `biojax`. Needs the extra `convert`.

    Args:
      path: of the file.
      variables: `params`, and `batch_stats` where the model has some.
      model: the name and the fields of `biojax.models.create_model`, as plain JSON.
      channels: of the image.
      overwrite: whether a file already there may be replaced.

    Raises:
      CheckpointError: no such model, or variables that are not its own.
      ConfigError: fields that JSON cannot hold.
      FileError: there is nowhere to write.
      DependencyError: safetensors is not installed.
    """
    try:
        config = json.dumps({"model": dict(model), "channels": channels}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "save_weights", f"'{error}'", "fields of plain JSON", "Name dtypes by strings"
        ) from error
    kept = {k: v for k, v in variables.items() if k in ("params", "batch_stats")}
    arrays = {k: np.asarray(v, order="C") for k, v in flatten_dict(kept, sep="/").items()}
    # Made from the text, as a reader will.
    _check(str(path), arrays, abstract_variables(*_model(str(path), config)))
    numpy = require("safetensors.numpy", "convert")
    with replacing(path, overwrite=overwrite) as temporary:
        numpy.save_file(arrays, temporary, metadata={"biojax": config})


def load_weights(path: str | os.PathLike) -> tuple[nn.Module, dict[str, Any]]:
    """The model and the variables that `save_weights` wrote.

    Returns:
      The model, and its `params` and `batch_stats` on the default device.

    Raises:
      FileError: there is no such file, or it is damaged or of another kind.
      CheckpointError: it holds something else than its model needs.
      DependencyError: safetensors is not installed.
    """
    where, arrays = str(path), read_state_dict(path)
    with require("safetensors", "convert").safe_open(Path(path), framework="np") as file:
        config = (file.metadata() or {}).get("biojax")
    if config is None:
        raise CheckpointError(
            where,
            "no model in the file's metadata",
            "a file that save_weights wrote",
            "Convert a PyTorch file by biojax convert first",
        )
    model, channels = _model(where, config)
    _check(where, arrays, abstract_variables(model, channels))
    return model, jax.device_put(unflatten_dict(arrays, sep="/"))


def _model(where: str, text: str) -> tuple[nn.Module, int]:
    """The model and its channels, of JSON that may be anything."""
    try:
        config = json.loads(text)
        fields, channels = dict(config["model"]), config["channels"]
        name = fields.pop("name")
        if not isinstance(name, str) or type(channels) is not int or channels < 1:
            raise TypeError(f"name={name!r} and channels={channels!r}")
        return create_model(name, **fields), channels
    except (BiojaxError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            where,
            f"a model given as '{error}'",
            "the name and the fields of a model, and the channels of its image",
            "Give what biojax.models.create_model takes",
        ) from error


def _check(where: str, arrays: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    """Refuse other names, shapes or dtypes than the model's."""
    got = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
    need = {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in expected.items()}
    if got == need:
        return
    wrong = {k: f"{k} of {got[k]}, not {need[k]}" for k in got.keys() & need.keys()}
    parts = {
        "unknown arrays": got.keys() - need.keys(),
        "nothing for": need.keys() - got.keys(),
        "": [text for k, text in wrong.items() if got[k] != need[k]],
    }
    raise CheckpointError(
        where,
        "; ".join(f"{what} {some(names)}".strip() for what, names in parts.items() if names),
        "the arrays of its model",
        "Give the model and the fields that the arrays belong to",
    )
