"""Models by name, their fields, and their exact numbers of parameters."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from biojax import models
from biojax.errors import ConfigError
from biojax.models import count_parameters, create_model, list_models

REQUIRED = {
    "attention_classifier": {"num_classes": 3},
    "cnn_classifier": {},
    "rnn_classifier": {"num_classes": 3},
    "rnn_encoder_decoder": {"num_classes": 3},
    "unet": {"out_channels": 3},
}


def test_list_models():
    assert list_models() == list(REQUIRED)
    assert list_models("*classifier") == [
        "attention_classifier",
        "cnn_classifier",
        "rnn_classifier",
    ]
    assert list_models("???_classifier") == ["cnn_classifier", "rnn_classifier"]
    assert list_models("resnet*") == []


def test_names_are_those_of_the_classes():
    classes = {name: type(create_model(name, **fields)) for name, fields in REQUIRED.items()}
    assert classes == {
        "attention_classifier": models.AttentionClassifier,
        "cnn_classifier": models.CNNClassifier,
        "rnn_classifier": models.RNNClassifier,
        "rnn_encoder_decoder": models.RNNEncoderDecoder,
        "unet": models.UNet,
    }


def test_count_of_the_classifier():
    # Three convolutions of 3 x 3, and 512 units that see the 26 x 26 pixels left of 224 x 224.
    by_hand = (9 * 3 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 128
    by_hand += (26 * 26 * 128 + 1) * 512 + 513
    count = count_parameters(create_model("cnn_classifier"), (1, 224, 224, 3))
    assert count == by_hand == 44_396_609


@pytest.mark.parametrize(
    ("out_channels", "without_heads", "published"),
    [(2, 31_194_050, 31_195_594), (14, 31_194_446, 31_205_254)],
)
def test_count_of_the_unet(out_channels, without_heads, published):
    model = models.UNet(out_channels)
    count = count_parameters(model, (1, 32, 32, 32, 1))
    assert count == without_heads
    # nnU-Net counts a 1 x 1 head at each stage of the decoder below the first too.
    heads = sum((features + 1) * out_channels for features in model.features[1:-1])
    assert count + heads == published


def test_count_of_the_sequence_models():
    def embed(c, f):
        return (c + 1) * f

    def gru(c, f):
        return 3 * f * (c + f + 1) + f

    rnn = create_model("rnn_classifier", num_classes=3, cell="gru", features=8, num_layers=2)
    assert count_parameters(rnn, (1, 9, 5)) == embed(5, 8) + 2 * gru(8, 8) + 9 * 3
    both = create_model("rnn_encoder_decoder", num_classes=3, features=8, bidirectional=True)
    expected = embed(5, 8) + 2 * gru(8, 8) + 17 * 8 + gru(16, 8) + 9 * 3
    assert count_parameters(both, (1, 9, 5)) == expected
    attention = create_model("attention_classifier", num_classes=3, features=8, num_layers=2)
    block = 2 * 2 * 8 + 9 * 24 + 9 * 8 + 9 * 32 + 33 * 8
    assert count_parameters(attention, (1, 9, 5)) == embed(5, 8) + 2 * block + 2 * 8 + 9 * 3


def test_counting_allocates_nothing():
    terabytes = create_model("unet", out_channels=2, spatial_dims=2, features=(2**20, 2**20))
    assert count_parameters(terabytes, (1, 2**15, 2**15, 1)) > 10**13


def fields_of(model) -> dict:
    names = {f.name for f in dataclasses.fields(model)} - {"parent", "name"}
    return {name: getattr(model, name) for name in names}


@pytest.mark.parametrize("name", REQUIRED)
def test_fields_survive_json(name):
    extra = {
        "unet": {"features": (4, 8), "strides": (1, (1, 2, 2)), "kernel_size": (1, 3, 3)},
        "cnn_classifier": {"features": (4, 8)},
    }.get(name, {"patch_size": (2, 3), "spatial_dims": 2})
    model = create_model(name, **{**REQUIRED[name], **extra, "dtype": "bfloat16"})
    fields = {k: v for k, v in fields_of(model).items() if k != "param_dtype"}
    read = json.loads(json.dumps(fields))
    assert read != fields  # tuples came back as lists
    assert create_model(name, **read) == model
    assert hash(create_model(name, **read)) == hash(model)


def test_dtypes_may_be_names():
    by_name = create_model("cnn_classifier", features=[2], dense=4, dtype="bfloat16")
    assert count_parameters(by_name, (1, 8, 8, 1)) > 0
    assert create_model("unet", out_channels=2, param_dtype=jnp.float16).param_dtype == jnp.float16


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("unett", {}, r"^create_model: got 'unett'. Expected one of .*, unet. .*mean 'unet'\?"),
        ("rnn_clasifier", {}, r"Did you mean 'rnn_classifier'\?"),
        ("vit", {}, r"^create_model: got 'vit'"),
        (
            "unet",
            {"out_channels": 2, "feature": [1]},
            r"^create_model\('unet'\): got field 'feature'. Expected some of .*mean 'features'\?",
        ),
        ("unet", {"out_channels": 2, "name": "x"}, "got field 'name'"),
        ("unet", {"out_channels": 2, "parent": None}, "got field 'parent'"),
        ("unet", {}, r"got no 'out_channels'. Expected out_channels=\.\.\., which has no default"),
        ("unet", {"out_channels": "2"}, r"out_channels='2'. Expected int, numbers of at least 1"),
        ("unet", {"out_channels": 0}, r"out_channels=0.*Correct out_channels"),
        ("unet", {"out_channels": 2, "features": 8}, r"features=8. Expected Sequence\[int\]"),
        ("unet", {"out_channels": 2, "features": [8, -1]}, r"features=\(8, -1\)"),
        ("unet", {"out_channels": 2, "strides": [1, [2, "2"]]}, r"strides=\(1, \(2, '2'\)\)"),
        ("unet", {"out_channels": 2, "dtype": "float23"}, "dtype='float23'. Expected a dtype such"),
        ("rnn_classifier", {"num_classes": 2, "bidirectional": "no"}, "bidirectional='no'"),
        ("rnn_classifier", {"num_classes": 2, "dropout_rate": "1"}, "dropout_rate='1'"),
        ("rnn_classifier", {"num_classes": True}, "num_classes=True"),
        ("rnn_classifier", {"features": 4}, r"Add num_classes=\.$"),
    ],
)
def test_what_create_model_refuses(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        create_model(name, **fields)
