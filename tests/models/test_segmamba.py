"""SegMamba against its layers by hand, and its numbers of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError
from biojax.models import SegMamba, count_parameters, create_model
from biojax.modules import MambaBlock

SMALL = {"features": (3, 4), "num_blocks": (1, 2), "hidden_features": 5, "state_size": 2}


def conv(x, p, **options):
    y = kernels.conv(x, p["kernel"], **options)
    return y + p["bias"] if "bias" in p else y


def standard(x, axes=(1, 2, 3)):
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def gated(x, p):
    def layer(x, name):
        return jax.nn.relu(standard(conv(x, p[name])))

    return x + layer(layer(layer(x, "conv1"), "conv2") + layer(x, "gate"), "fuse")


def residual(x, p):
    y = jax.nn.leaky_relu(standard(conv(x, p["conv1"])))
    y = standard(conv(y, p["conv2"]))
    x = standard(conv(x, p["shortcut"])) if "shortcut" in p else x
    return jax.nn.leaky_relu(x + y)


def by_hand(x, p):
    skips = [residual(x, p["skip0"])]
    y = conv(x, p["down0"], strides=2, padding=3)
    for i, blocks in enumerate(SMALL["num_blocks"]):
        y = conv(standard(y), p[f"down{i}"], strides=2, padding=0) if i else y
        y = gated(y, p[f"gate{i}"])
        for j in range(blocks):
            block = MambaBlock(("zyx", "-zyx", "yxz"), "sum", state_size=2)
            tokens = layer_norm(y, p[f"stage{i}_norm{j}"])
            y = y + jnp.asarray(block.apply({"params": p[f"stage{i}_mamba{j}"]}, tokens))
        hidden = jax.nn.gelu(conv(standard(y), p[f"mlp{i}_expand"]), approximate=False)
        skips.append(residual(conv(hidden, p[f"mlp{i}_project"]), p[f"skip{i + 1}"]))
    y = skips.pop()
    for i in (1, 0):
        y = kernels.conv_transpose(y, p[f"up{i}"]["kernel"], strides=2)
        y = residual(jnp.concatenate([y, skips[i]], axis=-1), p[f"decoder{i}_block0"])
    return conv(residual(y, p["decoder0_block1"]), p["head"])


def test_by_hand(with_parameters, quick_jit):
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 16, 2)).astype(np.float32)
    model = SegMamba(3, **SMALL)
    assert model.stride == (4, 4, 4)
    variables = with_parameters(model, x)
    y = quick_jit(model.apply)(variables, x)
    assert y.shape == (1, 8, 8, 16, 3)
    expected = quick_jit(by_hand)(x, variables["params"])
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "count"), [(1, 2, 67_362_674), (4, 4, 67_416_196)]
)
def test_counts(in_channels, out_channels, count):
    model = create_model("segmamba", out_channels=out_channels)
    assert model.stride == (16, 16, 16)
    assert count_parameters(model, (1, 32, 32, 32, in_channels)) == count


@pytest.mark.parametrize(
    ("spatial_dims", "expected"), [(1, ("x", "-x", "x")), (2, ("yx", "-yx", "xy"))]
)
def test_images_of_fewer_axes_are_walked_from_slice_to_slice_too(
    monkeypatch, spatial_dims, expected
):
    walked = []

    def block(orders, *args, **options):
        walked.append(orders)
        return MambaBlock(orders, *args, **options)

    monkeypatch.setattr("biojax.models.segmamba.MambaBlock", block)
    model = SegMamba(2, spatial_dims, **SMALL)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *(4,) * spatial_dims, 1)))
    assert set(walked) == {expected}


def test_what_is_refused():
    model = SegMamba(2, features=(2, 3), num_blocks=(1,))
    with pytest.raises(ConfigError, match="num_blocks for 1 stages and features for 2"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))


def test_bfloat16_is_finite_and_near(with_parameters, quick_jit):
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 2)).astype(np.float32)
    fields = {"spatial_dims": 2, **SMALL, "norm": "layer"}
    variables = with_parameters(SegMamba(3, **fields), x)
    y = quick_jit(SegMamba(3, **fields).apply)(variables, x)
    narrow = quick_jit(SegMamba(3, **fields, dtype=jnp.bfloat16).apply)(variables, x)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, y, atol=0.15 * float(np.abs(y).max()))
