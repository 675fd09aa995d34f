"""Primus against its parts, on images of other sizes, and its numbers of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from biojax import kernels
from biojax.errors import ConfigError, ShapeError
from biojax.models import count_parameters, create_model
from biojax.modules import TransformerBlock

X = np.random.default_rng(0).standard_normal((2, 4, 8, 1)).astype(np.float32)
SMALL = {
    "out_channels": 3,
    "spatial_dims": 2,
    "image_size": (4, 8),
    "patch_size": (2, 4),
    "features": 20,
    "num_layers": 2,
    "num_heads": 2,
}


def layer_norm(x, p, epsilon):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * p["scale"] + p["bias"]


def by_parts(x, p):
    kernel, bias = p["embed"]["proj"]["kernel"], p["embed"]["proj"]["bias"]
    x = kernels.conv(x, kernel, strides=(2, 4), padding="VALID") + bias
    x = (x + p.get("positions", {"table": 0})["table"]).reshape(2, 4, 20)
    angles = kernels.rotary_angles((2, 2), 10)
    for i in range(2):
        block = TransformerBlock(
            2, 8 / 3, "swiglu", True, True, key_bias=False, layer_scale=1.0, epsilon=1e-5
        )
        x = jnp.asarray(block.apply({"params": p[f"block{i}"]}, x, angles=angles))
    y = layer_norm(x, p["norm"], 1e-5).reshape(2, 2, 2, 20)
    y = kernels.conv_transpose(y, p["up1"]["kernel"], strides=(1, 2)) + p["up1"]["bias"]
    y = layer_norm(y, p["up1_norm"], 1e-6)
    y = y * norm.cdf(y)
    return kernels.conv_transpose(y, p["head"]["kernel"], strides=2) + p["head"]["bias"]


@pytest.mark.parametrize("learned_positions", [True, False])
def test_by_parts(learned_positions, with_parameters, quick_jit):
    model = create_model("primus_s", **SMALL, learned_positions=learned_positions)
    assert model.stride == (2, 4)
    variables = with_parameters(model, X)
    assert ("positions" in variables["params"]) == learned_positions
    y = quick_jit(model.apply)(variables, X)
    assert y.shape == (2, 4, 8, 3)
    expected = quick_jit(by_parts)(X, variables["params"])
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


def test_images_of_other_sizes(with_parameters):
    model = create_model("primus_s", **SMALL)
    larger = jnp.ones((1, 6, 4, 1))
    variables = with_parameters(model, larger)
    assert variables["params"]["positions"]["table"].shape == (*model.grid, 20) == (2, 2, 20)
    assert jax.eval_shape(model.apply, variables, larger).shape == (1, 6, 4, 3)


@pytest.mark.parametrize(
    ("size", "two", "fourteen"),
    [
        ("s", 23_868_062, 24_174_098),
        ("b", 93_206_570, 94_131_038),
        ("m", 146_602_394, 147_661_030),
        ("l", 325_554_722, 326_989_622),
    ],
)
def test_counts(size, two, fourteen):
    model = create_model(f"primus_{size}", out_channels=2)
    assert model.stride == (8, 8, 8)
    small, shape = model.clone(num_layers=1), (1, 8, 8, 8, 1)
    one = count_parameters(small, shape)
    others = (count_parameters(model.clone(num_layers=2), shape) - one) * (model.num_layers - 1)
    assert one + others == two
    assert count_parameters(small.clone(out_channels=14), shape) + others == fourteen


def test_what_is_refused():
    x = jax.ShapeDtypeStruct((1, 48, 48, 48, 1), jnp.float32)
    for fields, error, message in (
        ({"patch_size": 6}, ConfigError, r"patch_size=\(6, 6, 6\).*mean patch_size=\(8, 8, 8\)\?"),
        ({"image_size": 44}, ShapeError, r"mean image_size=\(48, 48, 48\)\?"),
        ({"num_heads": 7}, ConfigError, "num_heads=7 for 396 features"),
        ({"num_heads": 99}, ConfigError, "head_size=4 for 3 axes"),
    ):
        model = create_model("primus_s", out_channels=2, **fields)
        with pytest.raises(error, match=message):
            jax.eval_shape(model.init, jax.random.key(0), x)
