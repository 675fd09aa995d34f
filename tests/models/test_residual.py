"""The residual U-Nets and classifiers against their layers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError
from biojax.models import ResEncUNet, ResidualUNet, ResNet3D
from biojax.models.resenc_unet import ResidualBlock


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def conv(x, p, **options):
    return kernels.conv(x, p["kernel"], padding=p["kernel"].shape[0] // 2, **options) + p.get(
        "bias", 0
    )


def leaky(x):
    return jnp.where(x > 0, x, 0.01 * x)


@pytest.mark.parametrize(("features", "strides"), [(3, 1), (4, 1), (3, 2), (4, (1, 2))])
def test_the_block_of_the_residual_encoder(features, strides, with_parameters, quick_jit):
    x = image(2, 4, 6, 3)
    block = ResidualBlock(features, strides=strides, norm=None)
    variables = with_parameters(block, x)
    p = variables["params"]
    y = leaky(conv(x, p["conv1"]["conv"], strides=strides))
    y = conv(y, p["conv2"]["conv"])
    shortcut = kernels.avg_pool(x, strides)
    assert ("shortcut" in p) == (features == 4)
    if features == 4:
        assert list(p["shortcut"]["conv"]) == ["kernel"]
        shortcut = conv(shortcut, p["shortcut"]["conv"])
    y = leaky(y + shortcut)
    np.testing.assert_allclose(quick_jit(block.apply)(variables, x), y, rtol=1e-5, atol=1e-5)


def test_the_block_begins_as_its_shortcut(quick_jit):
    x = image(1, 4, 4, 3)
    y, _ = quick_jit(ResidualBlock(3).init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(y, leaky(x), rtol=1e-6)


def test_stages_of_the_residual_encoder():
    model = ResEncUNet(2, spatial_dims=2, features=(2, 3, 4), strides=(1, (1, 2), 2))
    assert model.stride == (2, 4)
    with pytest.raises(ConfigError, match="num_blocks for 6 stages and features for 3"):
        jax.eval_shape(model.init, jax.random.key(0), image(1, 4, 4, 1))
    with pytest.raises(ConfigError, match=r"^resenc_unet: got 2 strides"):
        _ = ResEncUNet(2, strides=(1, 2)).stride


def test_residual_unet_by_hand(with_parameters, quick_jit):
    x = image(2, 4, 8, 1)
    model = ResidualUNet(3, 2, features=(2, 4, 5), strides=((1, 2), 2), norm="layer")
    assert model.stride == (2, 4)
    variables = with_parameters(model, x)
    p = variables["params"]

    def finish(y, p):
        mean, var = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
        y = (y - mean) / jnp.sqrt(var + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
        return jnp.where(y > 0, y, p["prelu"]["negative_slope"] * y)

    def down(x, p, strides):
        y = finish(conv(x, p["layer0"]["conv"], strides=strides), p["layer0"])
        y = finish(conv(y, p["layer1"]["conv"]), p["layer1"])
        return y + conv(x, p["shortcut"], strides=strides)

    def up(x, p, strides):
        kernel, bias = p["conv"]["kernel"], p["conv"]["bias"]
        padding = [(1, s) for s in strides]
        y = kernels.conv_transpose(x, kernel, strides=strides, padding=padding) + bias
        return finish(y, p)

    def by_hand(x):
        first = down(x, p["encoder0"], (1, 2))
        second = down(first, p["encoder1"], (2, 2))
        y = jnp.concatenate([second, down(second, p["encoder2"], 1)], axis=-1)
        y = up(y, p["up1"], (2, 2))
        layer = p["decoder1"]["layer0"]
        y = y + finish(conv(y, layer["conv"]), layer)
        y = up(jnp.concatenate([first, y], axis=-1), p["up0"], (1, 2))
        return y + conv(y, p["decoder0"]["layer0"])

    assert p["encoder2"]["shortcut"]["kernel"].shape == (1, 1, 4, 5)
    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, quick_jit(by_hand)(x), rtol=1e-4, atol=1e-5)


def test_slopes_begin_at_a_quarter_and_instances_have_no_scale():
    model = ResidualUNet(2, 2, features=(2, 3))
    params = jax.jit(model.init)(jax.random.key(0), image(1, 4, 4, 1))["params"]
    assert float(params["encoder0"]["layer0"]["prelu"]["negative_slope"]) == 0.25
    assert "norm" not in params["encoder0"]["layer0"]
    with pytest.raises(ConfigError, match="3 strides for 3 levels"):
        _ = ResidualUNet(2, features=(2, 3, 4), strides=(1, 2, 2)).stride


@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet_by_hand(bottleneck, with_parameters, quick_jit):
    x = image(2, 9, 8, 1)
    model = ResNet3D(3, 2, (2, 3), (1, 1), bottleneck=bottleneck, stem_strides=(1, 2), norm=None)
    variables = with_parameters(model, x)
    p = variables["params"]

    def block(x, name, stride):
        y = x
        count = 3 if bottleneck else 2
        for j in range(1, count + 1):
            step = stride if j == (2 if bottleneck else 1) else 1
            y = conv(y, p[f"{name}_conv{j}"]["conv"], strides=step)
            y = jnp.maximum(y, 0) if j < count else y
        if f"{name}_shortcut" in p:
            x = conv(x, p[f"{name}_shortcut"]["conv"], strides=stride)
        return jnp.maximum(x + y, 0)

    def by_hand(x):
        x = jnp.maximum(conv(x, p["stem"]["conv"], strides=(1, 2)), 0)
        x = kernels.max_pool(x, 3, strides=2, padding=1)
        x = block(block(x, "stage0_block0", 1), "stage1_block0", 2)
        return x.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]

    assert ("stage0_block0_shortcut" in p) == bottleneck
    assert "bias" in p["stage1_block0_shortcut"]["conv"]
    assert "bias" not in p["stem"]["conv"]
    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, quick_jit(by_hand)(x), rtol=1e-4, atol=1e-5)


def test_resnet_learns_batch_statistics(with_parameters, quick_jit):
    x = image(2, 8, 8, 1)
    model = ResNet3D(3, 2, (2, 3), (1, 1), shortcut_bias=False)
    variables = with_parameters(model, x)
    assert "bias" not in variables["params"]["stage1_block0_shortcut"]["conv"]
    stats = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": stats}
    _, updated = quick_jit(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables
    )
    changed = jax.tree.map(lambda a, b: not np.allclose(a, b), stats, updated["batch_stats"])
    assert all(jax.tree.leaves(changed))
    with pytest.raises(ConfigError, match="num_blocks for 4 stages and features for 2"):
        jax.eval_shape(ResNet3D(3, 2, (2, 3)).init, jax.random.key(0), x)
