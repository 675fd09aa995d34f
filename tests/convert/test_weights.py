"""Weights that are shared: what is written is what is read, and what is refused."""

import json

import jax
import numpy as np
import pytest
from safetensors import numpy as numpy_files

from biojax.convert import convert_state_dict, load_weights, read_state_dict, save_weights
from biojax.errors import CheckpointError, ConfigError, FileError
from biojax.models import create_model

RECIPE = {
    "name": "residual_unet",
    "out_channels": 2,
    "spatial_dims": 1,
    "features": [2, 3],
    "norm": "batch",
}


@pytest.fixture
def variables(torch_state):
    model = make()
    return convert_state_dict(torch_state(model, 3), model)


def make(**fields):
    recipe = {**RECIPE, **fields}
    return create_model(recipe.pop("name"), **recipe)


def save(path, variables, **options):
    save_weights(path, variables, **{"model": RECIPE, "channels": 3, **options})


def test_what_is_written_is_what_is_read(variables, tmp_path):
    save(tmp_path / "a.safetensors", {**variables, "intermediates": {"x": (1,)}})
    model, read = load_weights(tmp_path / "a.safetensors")
    assert model == make()
    assert jax.tree.structure(read) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, read, variables)
    assert "params/up0/prelu/negative_slope" in read_state_dict(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]


def test_files_are_replaced_when_asked(variables, tmp_path):
    save(tmp_path / "a.safetensors", variables)
    with pytest.raises(FileError, match="exists already"):
        save(tmp_path / "a.safetensors", variables)
    save(tmp_path / "a.safetensors", variables, overwrite=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"channels": 1},
            CheckpointError,
            r"conv/kernel of float32 \(3, 3, 2\), not .*1, 2",
        ),
        ({"model": {**RECIPE, "norm": None}}, CheckpointError, "unknown arrays batch_stats/"),
        (
            {"model": {**RECIPE, "num_convs": 3}},
            CheckpointError,
            "nothing for batch_stats",
        ),
        ({"model": {**RECIPE, "param_dtype": np.float32}}, ConfigError, "plain JSON"),
        ({"model": {**RECIPE, "name": "unett"}}, CheckpointError, "Did you mean 'unet'"),
    ],
)
def test_variables_of_another_model_are_not_written(options, error, message, variables, tmp_path):
    with pytest.raises(error, match=message):
        save(tmp_path / "a.safetensors", variables, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [
        "[",
        "[1]",
        "[" * 100_000,
        json.dumps({"model": RECIPE}),
        json.dumps({"model": RECIPE, "channels": 0}),
        json.dumps({"model": RECIPE, "channels": True}),
        json.dumps({"model": {"out_channels": 2}, "channels": 1}),
        json.dumps({"model": {**RECIPE, "name": ["unet"]}, "channels": 1}),
        json.dumps({"model": {**RECIPE, "parent": 1}, "channels": 1}),
        json.dumps({"model": {**RECIPE, "features": [2, 10**12]}, "channels": 3}),
    ],
)
def test_a_model_that_is_none_is_refused(config, variables, tmp_path):
    save(tmp_path / "a.safetensors", variables)
    arrays = read_state_dict(tmp_path / "a.safetensors")
    numpy_files.save_file(arrays, tmp_path / "b.safetensors", metadata={"biojax": config})
    with pytest.raises(CheckpointError):
        load_weights(tmp_path / "b.safetensors")


def test_files_of_another_kind(variables, tmp_path):
    path = tmp_path / "a.safetensors"
    save(path, variables)
    whole = path.read_bytes()
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    claims = len(header).to_bytes(8, "little") + header.encode()
    for data in (whole[:-1], whole[:20], b"", b"\x80\x04K*.", claims, bytes([255] * 64)):
        path.write_bytes(data)
        with pytest.raises(FileError, match=r"a\.safetensors: got '.*Expected a safetensors file"):
            load_weights(path)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(FileError, match="Expected a safetensors file"):
            load_weights(missing)
    numpy_files.save_file({"a": np.ones(1)}, path)
    with pytest.raises(CheckpointError, match="Convert a PyTorch file by biojax convert first"):
        load_weights(path)
