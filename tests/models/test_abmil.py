"""Bags of instances: what the label is made of, and what does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.models import create_model
from biojax.modules import GatedAttentionPool

X = np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)
SMALL = {"features": 4, "hidden_features": 3}


def test_vectors_by_hand(with_parameters):
    model = create_model("abmil", num_classes=2, spatial_dims=1, **SMALL)
    variables = with_parameters(model, X)
    p = variables["params"]
    h = np.maximum(X @ p["encoder"]["kernel"] + p["encoder"]["bias"], 0)
    z = np.asarray(GatedAttentionPool(3).apply({"params": p["pool"]}, jnp.asarray(h)))
    expected = z @ p["head"]["kernel"] + p["head"]["bias"]
    y = model.apply(variables, X)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_padding_and_order_do_not_matter(with_parameters, quick_jit):
    model = create_model("abmil", num_classes=2, encoder_features=(2, 3), **SMALL)
    bags = np.random.default_rng(0).standard_normal((2, 5, 8, 9, 1)).astype(np.float32)
    variables = with_parameters(model, bags)
    run = quick_jit(lambda x, mask: model.apply(variables, x, mask=mask))
    mask = np.array([[True, True, False, True, False], [True] * 5])
    expected = run(bags, mask)
    other = np.where(mask[..., None, None, None], bags, 7.0)
    np.testing.assert_allclose(run(other, mask), expected, rtol=1e-5, atol=1e-6)
    order = np.array([3, 0, 4, 2, 1])
    y = run(bags[:, order], mask[:, order])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    # A bag of padding alone: the bias is left.
    y = run(bags, np.zeros_like(mask))
    np.testing.assert_allclose(y, np.tile(variables["params"]["head"]["bias"], (2, 1)), rtol=1e-6)


@pytest.mark.parametrize("name", ["cnn_classifier", "vit_ti", "resnet3d_18"])
def test_any_classifier_is_an_encoder(name):
    fields = {
        "cnn_classifier": [["features", [2]], ["dense", 4]],
        "vit_ti": [["image_size", 8], ["patch_size", 4], ["num_layers", 1]],
        "resnet3d_18": [["features", [2, 3]], ["num_blocks", [1, 1]]],
    }[name]
    model = create_model(
        "abmil", num_classes=2, encoder_name=name, encoder_fields=fields, dtype="bfloat16", **SMALL
    )
    x = jax.ShapeDtypeStruct((2, 5, 8, 8, 3), jnp.float32)
    y, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert y.shape == (2, 2)
    assert set(variables["params"]) == {"encoder", "pool", "head"}
    assert variables["params"]["encoder"]["head"]["kernel"].shape[1] == 4
    assert ("batch_stats" in variables) == (name == "resnet3d_18")
    assert hash(model) == hash(model.clone())


@pytest.mark.parametrize(
    ("fields", "stride"),
    [
        ({}, (1, 1, 1)),
        ({"encoder_name": "vit_ti"}, (1, 16, 16)),
        ({"encoder_name": "vil_t", "encoder_fields": [["patch_size", [8, 4]]]}, (1, 8, 4)),
        ({"encoder_name": "abmil", "spatial_dims": 4}, (1, 1, 1, 1)),
        ({"encoder_name": "cnn_classifier"}, (1, 1, 1)),
    ],
)
def test_the_stride_is_that_of_the_encoder(fields, stride):
    assert create_model("abmil", num_classes=2, **fields).stride == stride


@pytest.mark.parametrize(
    ("fields", "shape", "error", "message"),
    [
        ({"spatial_dims": 5}, (1, 2, 3), ConfigError, "spatial_dims=5. Expected 1 to 4"),
        ({}, (1, 2, 8, 1), ShapeError, r"bags of shape .* Expected \(b, m, h, w, c\)"),
        (
            {"encoder_name": "vit_ti"},
            (1, 5, 20, 20, 3),
            ShapeError,
            r"^abmil: got an image of \(5, 20, 20\)\. .*stride \(1, 16, 16\).*\(5, 32, 32\)\?",
        ),
        ({"encoder_name": "unet"}, (1, 2, 8, 8, 1), ConfigError, "field 'num_classes'"),
        (
            {"encoder_name": "attention_classifer"},
            (1, 2, 8, 8, 1),
            ConfigError,
            "Did you mean 'attention_classifier'",
        ),
        (
            {"encoder_name": "vil_t", "spatial_dims": 1},
            (1, 2, 8),
            ConfigError,
            "spatial_dims=0",
        ),
        (
            {"encoder_name": "rnn_encoder_decoder", "spatial_dims": 2},
            (1, 2, 8, 1),
            ConfigError,
            r"which makes \(2, 8, 4\) of 2. Expected \(2, 4\), one vector of each instance",
        ),
    ],
)
def test_what_is_refused(fields, shape, error, message):
    model = create_model("abmil", num_classes=2, **SMALL, **fields)
    with pytest.raises(error, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
