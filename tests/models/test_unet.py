"""The U-Net against its layers by hand, and how it treats position, batch and size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError, ShapeError
from biojax.models import UNet

SMALL = functools.partial(UNet, 2, spatial_dims=2, features=(2, 3, 4), num_convs=1)


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_by_hand(with_parameters, quick_jit):
    x = image(2, 4, 8, 2)
    model = SMALL(norm=None, strides=(1, 2, (1, 2)))
    variables = with_parameters(model, x)
    p = variables["params"]

    def block(x, name, stride=1):
        conv = p[f"{name}_block0"]["conv"]
        y = kernels.conv(x, conv["kernel"], strides=stride, padding=1) + conv["bias"]
        return jnp.where(y > 0, y, 0.01 * y)

    def up(x, name, stride):
        return kernels.conv_transpose(x, p[name]["kernel"], strides=stride) + p[name]["bias"]

    def by_hand(x):
        first = block(x, "encoder0")
        second = block(first, "encoder1", 2)
        y = block(second, "encoder2", (1, 2))
        y = block(jnp.concatenate([up(y, "up1", (1, 2)), second], axis=-1), "decoder1")
        y = block(jnp.concatenate([up(y, "up0", 2), first], axis=-1), "decoder0")
        return y @ p["head"]["kernel"][0, 0] + p["head"]["bias"]

    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, quick_jit(by_hand)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["layer", None])
def test_shifts_by_the_stride_shift_the_output(norm, with_parameters, quick_jit):
    x = image(1, 64, 64, 1)
    model = SMALL(norm=norm)
    assert model.stride == (4, 4)
    variables = with_parameters(model, x)
    run = quick_jit(functools.partial(model.apply, variables))
    inside = (slice(None), slice(28, 36), slice(28, 36))  # farther from any edge than it sees
    y = run(x)
    assert np.ptp(y[inside]) > 0.1
    for shift in ((4, 0), (-4, 8)):
        moved = run(np.roll(x, shift, axis=(1, 2)))
        np.testing.assert_allclose(
            moved[inside], np.roll(y, shift, axis=(1, 2))[inside], rtol=1e-4, atol=1e-5
        )
    by_less = run(np.roll(x, 1, axis=1))
    assert not np.allclose(by_less[inside], np.roll(y, 1, axis=1)[inside], atol=1e-3)


@pytest.mark.parametrize("norm", ["instance", "layer", "group", None])
def test_images_of_a_batch_do_not_see_each_other(norm, with_parameters, quick_jit):
    x = image(2, 8, 8, 1)
    model = SMALL(norm=norm, features=(8, 16))
    run = quick_jit(functools.partial(model.apply, with_parameters(model, x)))
    other = x.copy()
    other[1] = -3 * other[1]
    y, z = run(x), run(other)
    np.testing.assert_allclose(y[0], z[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(y[1], z[1])


def test_batch_normalisation_learns_while_training(with_parameters, quick_jit):
    x = image(2, 8, 8, 1)
    model = SMALL(norm="batch", features=(2, 3))
    variables = with_parameters(model, x)
    before = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": before}
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    y, updated = quick_jit(train)(variables, x)
    changed = jax.tree.map(lambda a, b: not np.allclose(a, b), before, updated["batch_stats"])
    assert all(jax.tree.leaves(changed))
    assert not np.allclose(y, quick_jit(model.apply)(variables, x))


@pytest.mark.parametrize(
    ("fields", "stride"),
    [
        ({}, (32, 32, 32)),
        ({"spatial_dims": 2}, (32, 32)),
        ({"features": (4,)}, (1, 1, 1)),
        ({"features": (4, 8, 8), "strides": (1, (1, 2, 2), 2)}, (2, 4, 4)),
    ],
)
def test_stride(fields, stride):
    assert UNet(2, **fields).stride == stride


@pytest.mark.parametrize(
    ("model", "shape", "error", "message"),
    [
        (SMALL(), (1, 8, 9, 1), ShapeError, r"^unet: got an image of \(8, 9\)"),
        (SMALL(), (1, 8, 9, 1), ShapeError, r"stride \(4, 4\) divides"),
        (SMALL(), (1, 7, 9, 1), ShapeError, r"Did you mean \(8, 12\)\?"),
        (SMALL(strides=(1, 2)), (1, 8, 8, 1), ConfigError, "2 strides for 3 stages"),
        (SMALL(strides=(1, 2, (2, 2, 2))), (1, 8, 8, 1), ShapeError, r"strides=\(2, 2, 2\)"),
        (SMALL(strides=(1, 2, 0)), (1, 8, 8, 1), ShapeError, "strides=0.*at least 1"),
        (
            SMALL(kernel_size=((1, 3), (3, 3))),
            (1, 8, 8, 1),
            ConfigError,
            "kernel_size for 2 stages",
        ),
        (SMALL(kernel_size=2), (1, 8, 8, 1), ConfigError, "Did you mean kernel_size=.3, 3."),
        (SMALL(norm="instanc"), (1, 8, 8, 1), ConfigError, "Did you mean 'instance'"),
        (SMALL(norm="group"), (1, 8, 8, 1), ConfigError, "num_groups=8 for 2 channels"),
    ],
)
def test_what_is_refused(model, shape, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones(shape))


def test_a_size_of_kernels_for_each_stage():
    model = SMALL(kernel_size=((1, 3), (3, 1), (3, 3)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]
    found = {k: v["conv"]["kernel"].shape[:2] for k, v in shapes.items() if "block" in k}
    first, second, third = (1, 3), (3, 1), (3, 3)
    assert [found[f"encoder{i}_block0"] for i in range(3)] == [first, second, third]
    assert [found[f"decoder{i}_block0"] for i in range(2)] == [first, second]


def test_the_first_stage_keeps_the_resolution():
    model = UNet(out_channels=2, features=(4, 8), strides=(2, 2))
    with pytest.raises(ConfigError, match="Begin with 1"):
        _ = model.stride
