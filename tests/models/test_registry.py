"""Models by name, their fields, and their exact numbers of parameters."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from biojax import models
from biojax.errors import ConfigError
from biojax.models import count_parameters, create_model, list_models

REQUIRED = {
    "abmil": {"num_classes": 2},
    "attention_classifier": {"num_classes": 3},
    "cnn_classifier": {},
    "convlstm_forecaster": {},
    "mednext_b": {"out_channels": 2},
    "mednext_l": {"out_channels": 2},
    "mednext_m": {"out_channels": 2},
    "mednext_s": {"out_channels": 2},
    **{f"nat_unet_{size}": {"out_channels": 2} for size in "bst"},
    **{f"primus_{size}": {"out_channels": 2} for size in "blms"},
    "resenc_unet_l": {"out_channels": 2},
    "resenc_unet_m": {"out_channels": 2},
    "resenc_unet_xl": {"out_channels": 2},
    "residual_unet": {"out_channels": 2},
    "resnet3d_18": {"num_classes": 2},
    "resnet3d_34": {"num_classes": 2},
    "resnet3d_50": {"num_classes": 2},
    "rnn_classifier": {"num_classes": 3},
    "rnn_encoder_decoder": {"num_classes": 3},
    "segmamba": {"out_channels": 2},
    "slice_rnn": {"num_classes": 2},
    "swin_unetr": {"out_channels": 2},
    "swin_unetr_v2": {"out_channels": 2},
    "umamba_bot": {"out_channels": 2},
    "umamba_enc": {"out_channels": 2},
    "unet": {"out_channels": 3},
    "unetr": {"out_channels": 3},
    "vil_b": {"num_classes": 2},
    "vil_s": {"num_classes": 2},
    "vil_t": {"num_classes": None},
    "vision_mamba": {"num_classes": 2},
    "vision_mamba_b": {"num_classes": 2},
    "vision_mamba_s": {"num_classes": 2},
    "vision_mamba_t": {"num_classes": None},
    "vit_b": {"num_classes": 2},
    "vit_h": {"num_classes": 2},
    "vit_l": {"num_classes": 2},
    "vit_s": {"num_classes": 2},
    "vit_ti": {"num_classes": None},
}


def test_list_models():
    assert list_models() == list(REQUIRED)
    assert list_models("*classifier") == [
        "attention_classifier",
        "cnn_classifier",
        "rnn_classifier",
    ]
    assert list_models("???_classifier") == ["cnn_classifier", "rnn_classifier"]
    assert list_models("resnet3d_?0") == ["resnet3d_50"]
    assert list_models("vi?_t*") == ["vil_t", "vit_ti"]
    assert list_models("vitt*") == []


def test_names_are_those_of_the_classes():
    classes = {name: type(create_model(name, **fields)) for name, fields in REQUIRED.items()}
    assert classes == {
        "abmil": models.ABMIL,
        "attention_classifier": models.AttentionClassifier,
        "cnn_classifier": models.CNNClassifier,
        "convlstm_forecaster": models.ConvLSTMForecaster,
        **dict.fromkeys((f"mednext_{size}" for size in "sbml"), models.MedNeXt),
        **dict.fromkeys((f"nat_unet_{size}" for size in "tsb"), models.NATUNet),
        **dict.fromkeys((f"primus_{size}" for size in "sbml"), models.Primus),
        **dict.fromkeys((f"resenc_unet_{size}" for size in ("m", "l", "xl")), models.ResEncUNet),
        "residual_unet": models.ResidualUNet,
        **dict.fromkeys((f"resnet3d_{depth}" for depth in (18, 34, 50)), models.ResNet3D),
        "rnn_classifier": models.RNNClassifier,
        "rnn_encoder_decoder": models.RNNEncoderDecoder,
        "segmamba": models.SegMamba,
        "slice_rnn": models.SliceRNN,
        **dict.fromkeys(("swin_unetr", "swin_unetr_v2"), models.SwinUNETR),
        **dict.fromkeys((f"umamba_{where}" for where in ("bot", "enc")), models.UMamba),
        "unet": models.UNet,
        "unetr": models.UNETR,
        **dict.fromkeys((f"vil_{size}" for size in "tsb"), models.ViL),
        "vision_mamba": models.VisionMamba,
        **dict.fromkeys((f"vision_mamba_{size}" for size in "tsb"), models.VisionMamba),
        **dict.fromkeys((f"vit_{size}" for size in ("ti", *"sblh")), models.ViT),
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
    assert count_parameters(model, (1, 32, 32, 32, 1)) == without_heads
    # nnU-Net counts a 1 x 1 head at each stage of the decoder below the first too.
    model = create_model("unet", out_channels=out_channels, deep_supervision=True)
    assert count_parameters(model, (1, 32, 32, 32, 1)) == published


@pytest.mark.parametrize(("out_channels", "published"), [(2, 102_349_770), (14, 102_359_430)])
def test_count_of_the_residual_encoder(out_channels, published):
    fields = {"out_channels": out_channels, "deep_supervision": True}
    model = create_model("resenc_unet_l", **fields)
    assert count_parameters(model, (1, 32, 32, 32, 1)) == published
    # The budgets of M and XL are met by the size of patches, not by other layers.
    assert create_model("resenc_unet_m", **fields) == model
    assert create_model("resenc_unet_xl", **fields) == model


@pytest.mark.parametrize(
    ("size", "kernel_3", "kernel_5"),
    [
        ("s", 5_550_914, 5_980_546),
        ("b", 10_526_306, 10_955_938),
        ("m", 17_548_962, 18_260_834),
        ("l", 61_779_266, 62_992_898),
    ],
)
def test_count_of_mednext(size, kernel_3, kernel_5):
    for kernel_size, published in ((3, kernel_3), (5, kernel_5)):
        model = create_model(f"mednext_{size}", out_channels=2, kernel_size=kernel_size)
        assert count_parameters(model, (1, 16, 16, 16, 1)) == published


@pytest.mark.parametrize(("norm", "published"), [("instance", 4_806_481), ("batch", 4_808_917)])
def test_count_of_the_residual_unet(norm, published):
    model = create_model("residual_unet", out_channels=2, norm=norm)
    assert count_parameters(model, (1, 16, 16, 16, 1)) == published


@pytest.mark.parametrize(
    ("depth", "one_to_2", "three_to_400"),
    [
        (18, 33_161_922, 33_410_000),
        (34, 63_471_554, 63_719_632),
        (50, 46_163_010, 47_022_416),
    ],
)
def test_count_of_the_resnets(depth, one_to_2, three_to_400):
    for channels, classes, published in ((1, 2, one_to_2), (3, 400, three_to_400)):
        model = create_model(f"resnet3d_{depth}", num_classes=classes)
        assert count_parameters(model, (1, 16, 16, 16, channels)) == published


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
    small = {"features": (4, 8), "num_blocks": (1, 2)}
    extra = {
        "abmil": {"encoder_name": "vit_s", "encoder_fields": (("patch_size", (8, 4)),)},
        **{f"mednext_{size}": {"kernel_size": 5, "num_blocks": (1,) * 9} for size in "sbml"},
        **{
            f"nat_unet_{size}": {"features": (4, 8), "num_blocks": (2,), "num_heads": (1,)}
            for size in "tsb"
        },
        **{f"resenc_unet_{size}": small for size in ("m", "l", "xl")},
        **{f"resnet3d_{depth}": small for depth in (18, 34, 50)},
        "residual_unet": {"features": (4, 8), "strides": ((1, 2, 2),)},
        "segmamba": small,
        "slice_rnn": {"encoder_features": (4, 8), "num_blocks": (1, 2), "slice_classes": 3},
        **{key: {"window_size": (2, 3, 4)} for key in ("swin_unetr", "swin_unetr_v2")},
        **{f"umamba_{where}": {"features": (4, 8), "num_convs": 3} for where in ("bot", "enc")},
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
        ("slice_rnn", {"slice_classes": 2}, r"Add num_classes=\.$"),
        ("convlstm_forecaster", {"num_frames": 0}, "num_frames=0. Expected int, numbers of at"),
        ("convlstm_forecaster", {"num_classes": 2}, "got field 'num_classes'"),
    ],
)
def test_what_create_model_refuses(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        create_model(name, **fields)
