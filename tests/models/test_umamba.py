"""U-Mamba against its layers by hand, and its numbers of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ShapeError
from biojax.models import count_parameters, create_model
from biojax.modules import MambaBlock


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def pointwise(x, p):
    return x @ p["kernel"].reshape(p["kernel"].shape[-2:]) + p["bias"]


def instance_norm(x, p):
    axes = tuple(range(1, x.ndim - 1))
    x = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)
    return x * p["scale"] + p["bias"]


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def block(x, p, strides=1):
    def layer(x, p, strides):
        y = kernels.conv(x, p["conv"]["kernel"], strides=strides, padding=1) + p["conv"]["bias"]
        return instance_norm(y, p["norm"])

    y = layer(jax.nn.leaky_relu(layer(x, p["conv1"], strides)), p["conv2"], 1)
    if "shortcut" in p:
        x = pointwise(
            x[(slice(None), *(slice(None, None, strides),) * (x.ndim - 2))], p["shortcut"]
        )
    return jax.nn.leaky_relu(x + y)


def mamba(x, p, *, swap=False):
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    tokens = tokens.swapaxes(1, 2) if swap else tokens
    tokens = layer_norm(tokens, p["norm"])
    y = jnp.asarray(MambaBlock(state_size=2).apply({"params": p["mamba"]}, tokens))
    return (y.swapaxes(1, 2) if swap else y).reshape(x.shape)


SMALL = {"out_channels": 3, "features": (3, 5), "state_size": 2}


def encode(x, p):
    """Of two stages only the first has two blocks."""
    x = block(block(x, p["stem_block0"]), p["stem_block1"])
    x = block(block(x, p["encoder0_block0"]), p["encoder0_block1"])
    return x, lambda x: block(x, p["encoder1_block0"], 2)


def decode(x, skip, p):
    x = pointwise(x, p["up0"])
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 2, axis)
    x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
    return pointwise(block(block(x, p["decoder0_block0"]), p["decoder0_block1"]), p["head"])


def test_mamba_at_the_bottleneck_by_hand(with_parameters, quick_jit):
    x = image(1, 4, 6, 4, 1)
    model = create_model("umamba_bot", **SMALL)
    variables = with_parameters(model, x)
    p = variables["params"]
    assert {name for name in p if name.startswith("mamba")} == {"mamba1"}
    assert set(p["encoder0_block1"]) == {"conv1", "conv2"}

    def by_hand(x):
        skip, down = encode(x, p)
        return decode(mamba(down(skip), p["mamba1"]), skip, p)

    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, quick_jit(by_hand)(x), rtol=1e-3, atol=1e-3)


def test_mamba_after_every_stage_by_hand(with_parameters, quick_jit):
    """Four voxels of five channels: below, the channels are the tokens."""
    x = image(1, 2, 4, 4, 1)
    model = create_model("umamba_enc", **SMALL)
    variables = with_parameters(model, x)
    p = variables["params"]
    assert p["mamba0"]["norm"]["scale"].shape == (3,)
    assert p["mamba1"]["norm"]["scale"].shape == (4,)

    def by_hand(x):
        skip, down = encode(x, p)
        skip = mamba(skip, p["mamba0"])
        return decode(mamba(down(skip), p["mamba1"], swap=True), skip, p)

    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, quick_jit(by_hand)(x), rtol=1e-3, atol=1e-3)


def test_planar_networks_have_no_skip_at_full_resolution(with_parameters, quick_jit):
    x = image(1, 8, 6, 1)
    model = create_model("umamba_enc", spatial_dims=2, **SMALL)
    variables = with_parameters(model, x)
    p = variables["params"]
    # Every second stage has Mamba, and the last one has it.
    assert {name for name in p if name.startswith("mamba")} == {"mamba1"}

    def by_hand(x):
        skip, down = encode(x, p)
        return decode(mamba(down(skip), p["mamba1"]), None, p)

    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, quick_jit(by_hand)(x), rtol=1e-3, atol=1e-3)


def test_channels_as_tokens_fix_the_size_of_images():
    x = jnp.zeros((1, 2, 4, 4, 1))
    model = create_model("umamba_enc", **SMALL)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    for shape in ((1, 4, 4, 4, 1), (1, 2, 2, 4, 1)):
        with pytest.raises(ShapeError, match=r"4 features in each token.*umamba_bot"):
            jax.eval_shape(model.apply, variables, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("name", "with_heads", "without"),
    [("umamba_bot", 42_120_394, 42_118_850), ("umamba_enc", 42_750_922, 42_749_378)],
)
def test_counts(name, with_heads, without):
    for deep_supervision, count in ((True, with_heads), (False, without)):
        model = create_model(name, out_channels=2, deep_supervision=deep_supervision)
        assert count_parameters(model, (1, 128, 128, 128, 1)) == count
