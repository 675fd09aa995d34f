"""A state dict of PyTorch, renamed and laid out as biojax's variables."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from biojax.convert.module import Module
from biojax.convert.names import module_names, plain_name
from biojax.errors import CheckpointError, DataError, FileError, ShapeError, nearest, require
from biojax.typing import ArrayLike

__all__ = ["abstract_variables", "convert_state_dict", "input_channels", "read_state_dict", "some"]

# What PyTorch calls a leaf, by its collection and name here.
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "negative_slope"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


_Places = list[tuple[str, Module]]  # paths of leaves, and the modules that they belong to


def convert_state_dict(state: Mapping[str, ArrayLike], model: nn.Module) -> dict[str, Any]:
    """The variables of a model from the state dict of its PyTorch original.

    Kernels (out, in, *k) become (*k, in, out); those of transposed convolutions, (in, out, *k), are
    reversed along their spatial axes as well, since `biojax.kernels.conv_transpose` does not flip.
    Running statistics become `batch_stats`. Left out are counts of batches, MedNeXt's dummy, the
    heads of deep supervision where the model has none, and what the original never uses.

    Args:
      state: arrays by PyTorch's names. Modules that have two names count once.
      model: one of the families of `biojax.convert.names`, with fields that fit.

    Returns:
      `params`, and `batch_stats` where the model has some, in the model's `param_dtype`.

    Raises:
      ConfigError: no map of names for this model.
      CheckpointError: names that the model has no place for, or none for what it needs.
      ShapeError: arrays of another shape, or that are not of floating point.
      DataError: values that are not finite, or two that share a place and differ.
    """
    modules = module_names(model)
    state = {name: np.asarray(value) for name, value in state.items()}
    found = {plain_name(name): name for name in state}
    leaves = abstract_variables(model, input_channels(state, model))
    places = _places(modules, leaves)
    _check_names(model, found, places, modules)

    converted: dict[str, np.ndarray] = {}
    for name, value in state.items():
        for path, module in places.get(plain_name(name), ()):
            array = _converted(name, value, leaves[path], module)
            if path in converted and not np.array_equal(array, converted[path]):
                raise DataError(
                    name,
                    f"other values than under the second name of {path}",
                    "the same under both names",
                    "Save the state dict again, or remove one of the two",
                )
            converted[path] = array
    return unflatten_dict(converted, sep="/")


def input_channels(state: Mapping[str, ArrayLike], model: nn.Module) -> int:
    """How many channels the image has, by the first kernel; 1 where there is none to tell."""
    first = f"{module_names(model)[0].torch}.weight"
    shapes = [np.shape(value) for name, value in state.items() if plain_name(name) == first]
    return shapes[0][1] if shapes and len(shapes[0]) > 1 else 1


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every array of a safetensors file. Needs the extra `convert`.

    Save one in PyTorch by `safetensors.torch.save_model(model, path)`.

    Raises:
      FileError: there is no such file, or it is damaged or of another kind.
      DependencyError: safetensors is not installed.
    """
    safetensors = require("safetensors", "convert")
    try:
        # The header is checked against the file's size before anything is read.
        with safetensors.safe_open(Path(path), framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise FileError(
            str(path),
            f"'{error}'",
            "a safetensors file",
            "Check the path; write the file by safetensors.torch.save_model, not torch.save",
        ) from error


def abstract_variables(model: nn.Module, channels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a model's variables by path, `params/stem/kernel` and so on."""
    size: Any = getattr(model, "stride", (1,) * getattr(model, "spatial_dims", 3))
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    kept = {k: v for k, v in variables.items() if k in ("params", "batch_stats")}
    flat: Any = flatten_dict(kept, sep="/")
    return flat


def some(names: Iterable[str]) -> str:
    """The first twenty, and how many more there are.

    >>> some(["b", "a"])
    'a, b'
    """
    names = sorted(names)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _places(modules: Iterable[Module], leaves: Mapping[str, Any]) -> dict[str, _Places]:
    """Where each of PyTorch's names goes, for what the model has."""
    places: dict[str, _Places] = {}
    for module in modules:
        names = {f"params/{module.path}": module.torch}
        if module.layout != "array":
            names = {
                f"{collection}/{module.path}/{leaf}": f"{module.torch}.{theirs}"
                for (collection, leaf), theirs in _LEAVES.items()
            }
        for path, name in names.items():
            if path in leaves:
                places.setdefault(name, []).append((path, module))
    return places


def _check_names(
    model: nn.Module,
    found: Iterable[str],
    places: dict[str, _Places],
    modules: Iterable[Module],
) -> None:
    """Refuse names without a place, and places without a name."""
    idle = {m.torch for m in modules if not m.path or re.fullmatch(r"head\d+", m.path)}
    unmatched = [
        name
        for name in found
        if name not in places
        and not idle.intersection((name, name.rpartition(".")[0]))
        and name != "dummy_tensor"
        and not name.endswith(".num_batches_tracked")
    ]
    filled = {path for name in found for path, _ in places.get(name, ())}
    missing = {
        path: name
        for name, those in reversed(places.items())
        for path, _ in those
        if path not in filled
    }
    if not (unmatched or missing):
        return
    parts = []
    if unmatched:
        parts.append(f"{len(unmatched)} names that it has no place for: {some(unmatched)}")
    if missing:
        parts.append(f"nothing for {len(missing)} names: {some(missing.values())}")
    raise CheckpointError(
        f"convert to {type(model).__name__}",
        "; and ".join(parts),
        "the state dict of the same architecture",
        "Choose the model and the fields that the weights were trained with",
        nearest(unmatched[0], missing.values()) if unmatched else None,
    )


def _converted(
    name: str, value: np.ndarray, leaf: jax.ShapeDtypeStruct, module: Module
) -> np.ndarray:
    """One array in biojax's layout and dtype."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ShapeError(name, f"{value.dtype}", "floating point", "Save the weights as floats")
    if not np.isfinite(value).all():
        raise DataError(
            name, "values that are not finite", "finite weights", "Train or save them again"
        )
    part = np.atleast_1d(value)
    if module.layout == "array":  # theirs have axes of length 1 in front, ours may have a grid
        part = part.reshape(math.prod(part.shape[:-1]), part.shape[-1])
    part, expected = part[module.rows], _shape_there(leaf.shape, module.layout)
    if part.shape != expected:
        rows = module.rows
        of = "" if rows == slice(None) else f" in rows {rows.start} to {rows.stop or 'the last'}"
        raise ShapeError(
            name,
            f"{value.shape}",
            f"{expected}{of} for {module.path}",
            "Give the fields that the weights were trained with",
        )
    if module.layout != "array" and part.ndim > 1:
        spatial = tuple(range(2, part.ndim))
        part = part if module.layout == "conv" else np.flip(part, spatial)
        swapped = module.layout == "transposed"
        part = np.transpose(part, (*spatial, *((0, 1) if swapped else (1, 0))))
    part = part.reshape(leaf.shape)  # the one slope of a PReLU is (1,) there, () here
    return np.array(part, leaf.dtype, order="C")


def _shape_there(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The shape that an array of this one has in PyTorch."""
    if layout == "array":
        return math.prod(shape[:-1]), shape[-1]
    if len(shape) < 2:
        return shape or (1,)
    *k, c, f = shape
    return (c, f, *k) if layout == "transposed" else (f, c, *k)
