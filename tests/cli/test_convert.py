"""`biojax convert`, from a file to a file."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from biojax.cli import main
from biojax.convert import load_weights
from biojax.errors import require

FIELDS = '{"out_channels": 2, "spatial_dims": 1, "features": [2], "num_convs": 1, "norm": null}'
STATE = {
    "encoder.stages.0.0.convs.0.conv.weight": np.arange(18, dtype=np.float32).reshape(2, 3, 3),
    "encoder.stages.0.0.convs.0.conv.bias": np.ones(2, np.float32),
}


@pytest.fixture
def line(tmp_path):
    """The words of a conversion, and its files."""
    fields = FIELDS.replace("[2]", "[2, 4]")
    state = {
        **STATE,
        "encoder.stages.1.0.convs.0.conv.weight": np.ones((4, 2, 3), np.float32),
        "encoder.stages.1.0.convs.0.conv.bias": np.ones(4, np.float32),
        "decoder.transpconvs.0.weight": np.ones((4, 2, 2), np.float32),
        "decoder.transpconvs.0.bias": np.ones(2, np.float32),
        "decoder.stages.0.convs.0.conv.weight": np.ones((2, 4, 3), np.float32),
        "decoder.stages.0.convs.0.conv.bias": np.ones(2, np.float32),
        "decoder.seg_layers.0.weight": np.ones((2, 2, 1), np.float32),
        "decoder.seg_layers.0.bias": np.ones(2, np.float32),
    }
    save_file(state, tmp_path / "theirs.safetensors")
    return [
        "convert",
        *("--weights", str(tmp_path / "theirs.safetensors")),
        *("--out", str(tmp_path / "ours.safetensors")),
        *("--model", "unet"),
        *("--fields", fields),
    ]


def test_convert(line, tmp_path, capsys):
    assert main(line) == 0
    assert "98 parameters of unet ->" in capsys.readouterr().out
    model, variables = load_weights(tmp_path / "ours.safetensors")
    assert model.features == (2, 4)
    kernel = variables["params"]["encoder0_block0"]["conv"]["kernel"]
    expected = STATE["encoder.stages.0.0.convs.0.conv.weight"]
    np.testing.assert_array_equal(kernel, expected.transpose(2, 1, 0))
    assert main(line) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--model", "unett"], "Did you mean 'unet'?"),
        (["--model", "cnn_classifier", "--fields", "{}"], "one of UNet, ResEncUNet"),
        (["--fields", "{out_channels: 2}"], "a JSON object"),
        (["--fields", "[2]"], "not an object in braces"),
        (["--fields", FIELDS], "names that it has no place for: decoder.seg_layers.0.bias"),
        (["--weights", "nowhere.safetensors"], "a safetensors file"),
    ],
)
def test_mistakes(change, said, line, tmp_path, capsys):
    assert main([*line, *change]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "ours.safetensors").exists()


def test_the_extra_is_named_where_it_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    path = str(tmp_path / "a.safetensors")
    line = ["convert", "--weights", path, "--out", path, "--model", "unet", "--fields", FIELDS]
    assert main(line) == 2
    assert 'pip install "biojax[convert]"' in capsys.readouterr().err
    with pytest.raises(ImportError):
        require("safetensors", "convert")
