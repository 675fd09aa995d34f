"""`biojax convert`: weights from PyTorch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from biojax.errors import ConfigError

__all__ = ["Convert", "convert"]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Turn the weights of a PyTorch model into those of the same model in biojax.

    Both files are safetensors; in PyTorch, safetensors.torch.save_model writes one.
    """

    weights: Path
    """The state dict, as safetensors."""
    model: str
    """Name of the model; see biojax models."""
    out: Path
    """The file to write; biojax.convert.load_weights reads it."""
    fields: str = "{}"
    """Fields of the model in place of its defaults, as JSON: '{"out_channels": 3}'."""
    overwrite: bool = False
    """Replace a file that is there."""


def convert(config: Convert) -> None:
    """Read, convert and write, and tell how many parameters there were.

    Raises:
      ConfigError: no such model or field, or no map of names for it.
      CheckpointError: names that do not match.
      ShapeError: arrays of another shape.
      FileError: a file that cannot be read or written.
    """
    import jax

    from biojax.convert import convert_state_dict, read_state_dict, save_weights
    from biojax.convert.state_dict import input_channels
    from biojax.models import create_model

    fields = _fields(config.fields)
    model = create_model(config.model, **fields)
    state = read_state_dict(config.weights)
    variables = convert_state_dict(state, model)
    save_weights(
        config.out,
        variables,
        model={"name": config.model, **fields},
        channels=input_channels(state, model),
        overwrite=config.overwrite,
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{config.weights}: {count:,} parameters of {config.model} -> {config.out}")


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("not an object in braces")
    except ValueError as error:
        raise ConfigError(
            "convert",
            f"fields={text!r}",
            f"a JSON object ({error})",
            "Put names in double quotes, and the whole in single ones",
        ) from error
    return fields
