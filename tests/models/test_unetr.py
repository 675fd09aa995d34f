"""UNETR against its parts, on images of other sizes, and its number of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError, ShapeError
from biojax.models import count_parameters, create_model
from biojax.modules import TransformerBlock

X = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
SMALL = {
    "out_channels": 3,
    "spatial_dims": 2,
    "image_size": 8,
    "patch_size": (2, 8),  # three steps, the last of which alone doubles the first axis
    "features": 2,
    "hidden_features": 4,
    "num_layers": 3,
    "num_heads": 2,
}
STRIDES = [(2, 2), (1, 2), (1, 2)]


def conv(x, p, **options):
    return kernels.conv(x, p["kernel"], **options) + p.get("bias", 0)


def up(x, p, i):
    return kernels.conv_transpose(x, p["kernel"], strides=STRIDES[i])


def standard(x, axes=(1, 2), epsilon=1e-5):
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + epsilon)


def residual(x, p):
    y = jax.nn.leaky_relu(standard(conv(x, p["conv1"])))
    y = standard(conv(y, p["conv2"]))
    x = standard(conv(x, p["shortcut"])) if "shortcut" in p else x
    return jax.nn.leaky_relu(x + y)


def by_parts(x, p):
    tokens = conv(x, p["embed"]["proj"], strides=(2, 8), padding="VALID") + p["positions"]["table"]
    states = [tokens.reshape(2, 4, 4)]
    for i in range(3):
        block = TransformerBlock(2, qkv_bias=False, epsilon=1e-5)
        states.append(jnp.asarray(block.apply({"params": p[f"block{i}"]}, states[-1])))
    y = standard(states[3], -1) * p["norm"]["scale"] + p["norm"]["bias"]
    y, high, low = (z.reshape(2, 4, 1, 4) for z in (y, states[2], states[3]))  # after 2 and 3
    high = up(up(high, p["skip1_up2"], 2), p["skip1_up1"], 1)
    low = up(low, p["skip2_up2"], 2)
    skips = [residual(x, p["skip0"]), residual(high, p["skip1_block1"]), low]
    for i in (2, 1, 0):
        y = jnp.concatenate([up(y, p[f"up{i}"], i), skips[i]], axis=-1)
        y = residual(y, p[f"decoder{i}_block0"])
    return conv(y, p["head"])


def test_by_parts(with_parameters, quick_jit):
    model = create_model("unetr", **SMALL)
    assert model.stride == (2, 8)
    variables = with_parameters(model, X)
    assert variables["params"]["positions"]["table"].shape == (*model.grid, 4) == (4, 1, 4)
    y = quick_jit(model.apply)(variables, X)
    assert y.shape == (2, 8, 8, 3)
    expected = quick_jit(by_parts)(X, variables["params"])
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


def test_images_of_other_sizes(with_parameters):
    model = create_model("unetr", **SMALL)
    larger = jnp.ones((1, 12, 16, 1))
    variables = with_parameters(model, larger)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, with_parameters(model, X))
    assert jax.eval_shape(model.apply, variables, larger).shape == (1, 12, 16, 3)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "count"),
    [(1, 2, 92_783_842), (1, 14, 92_784_046), (4, 3, 102_222_387)],
)
def test_counts(in_channels, out_channels, count):
    model = create_model("unetr", out_channels=out_channels)
    assert model.stride == (16, 16, 16)
    shape = (1, 16, 16, 16, in_channels)
    one, two = (count_parameters(model.clone(num_layers=n), shape) for n in (1, 2))
    assert one + 11 * (two - one) == count


def test_what_is_refused():
    x = jax.ShapeDtypeStruct((1, 48, 48, 48, 1), jnp.float32)
    for fields, error, message in (
        ({"patch_size": 12}, ConfigError, r"patch_size=\(12, 12, 12\).*mean patch_size=\(16, 16, "),
        ({"patch_size": 1}, ConfigError, r"patch_size=\(1, 1, 1\).*mean patch_size=\(2, 2, 2\)\?"),
        ({"image_size": 40}, ShapeError, r"mean image_size=\(48, 48, 48\)\?"),
        ({"num_heads": 7}, ConfigError, "num_heads=7 for 768 features"),
    ):
        model = create_model("unetr", out_channels=2, **fields)
        with pytest.raises(error, match=message):
            jax.eval_shape(model.init, jax.random.key(0), x)
