"""ViT against its parts, on images of other sizes, and its numbers of parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.models import ViT, count_parameters, create_model
from biojax.modules import AttentionPool, TransformerBlock

X = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
SMALL = {"image_size": (4, 6), "patch_size": 2, "features": 4, "num_layers": 2, "num_heads": 2}


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def tokens_by_parts(p):
    """Six patches, behind the class token if there is one, through the blocks."""
    patches = X.reshape(2, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 12)
    x = patches @ p["embed"]["proj"]["kernel"].reshape(12, 4) + p["embed"]["proj"]["bias"]
    x = x + p["positions"]["table"].reshape(6, 4)
    if "class_token" in p:
        token = np.broadcast_to(p["class_token"] + p["class_position"], (2, 1, 4))
        x = np.concatenate([token, x], axis=1)
    for i in range(len([name for name in p if name.startswith("block")])):
        x = TransformerBlock(2).apply({"params": p[f"block{i}"]}, x)
    return x


def pooled_by_parts(tokens, p, pool):
    if pool == "attention":
        return np.asarray(AttentionPool(2).apply({"params": p["pool"]}, tokens))[:, 0]
    return tokens[:, 0] if pool == "class" else tokens.mean(1)


@pytest.mark.parametrize(
    ("pool", "late"), [("class", False), ("mean", False), ("mean", True), ("attention", False)]
)
def test_by_parts(pool, late, with_parameters, quick_jit):
    fields = SMALL | {"num_layers": 2 if pool == "class" else 1}
    model = create_model("vit_ti", num_classes=5, pool=pool, pool_norm=late, **fields)
    variables = with_parameters(model, X)
    p = variables["params"]
    assert ("class_token" in p) == ("class_position" in p) == (pool == "class")
    tokens = tokens_by_parts(p)
    pooled = pooled_by_parts(tokens if late else layer_norm(tokens, p["norm"]), p, pool)
    pooled = layer_norm(pooled, p["norm"]) if late else pooled
    expected = pooled @ p["head"]["kernel"] + p["head"]["bias"]
    y = quick_jit(model.apply)(variables, X)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
    if pool == "class":  # without classes, the patches are the output
        y = quick_jit(model.clone(num_classes=None).apply)(variables, X)
        expected = layer_norm(tokens, p["norm"])[:, 1:]
        np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_positions_are_those_of_the_image_size(with_parameters, quick_jit):
    model = create_model("vit_ti", num_classes=2, **SMALL)
    larger = jnp.ones((1, 8, 6, 3))
    variables = with_parameters(model, larger)
    assert variables["params"]["positions"]["table"].shape == (2, 3, 4)
    shape = jax.eval_shape(model.apply, variables, larger).shape
    assert shape == jax.eval_shape(model.apply, variables, X[:1]).shape == (1, 2)
    grids = {1: (14,), 2: (14, 14), 3: (6, 6, 6)}
    assert {dims: ViT(2, dims).grid for dims in grids} == grids


def test_later_blocks_are_left_out_more_often(with_parameters, quick_jit):
    model = create_model("vit_ti", num_classes=None, drop_path_rate=0.9, **SMALL)
    x = np.repeat(X, 8, axis=0)
    variables = with_parameters(model, x)
    run = functools.partial(model.apply, train=True, mutable=["intermediates"])
    sown = quick_jit(lambda key: run(variables, x, rngs={"dropout": key})[1]["intermediates"])
    found = sown(jax.random.key(0))
    first, second = (np.asarray(found[f"tokens{i}"][0]) for i in range(2))
    np.testing.assert_array_equal(first[:8], np.repeat(first[:1], 8, axis=0))  # never left out
    left_out = [np.array_equal(a, b) for a, b in zip(first, second, strict=True)]
    assert len(x) / 2 < sum(left_out) < len(x)


def test_the_sum_over_blocks_is_float32():
    model = create_model("vit_ti", num_classes=None, dtype="bfloat16", **SMALL)
    run = functools.partial(model.init_with_output, mutable=["params", "intermediates"])
    y, variables = jax.eval_shape(run, jax.random.key(0), X)
    assert y.dtype == jnp.bfloat16
    assert variables["intermediates"]["tokens1"][0].dtype == jnp.float32


@pytest.mark.parametrize(
    ("size", "flat", "solid"),
    [
        ("ti", 5_717_416, 6_169_934),
        ("s", 22_050_664, 22_956_686),
        ("b", 86_567_656, 88_380_686),
        ("l", 304_326_632, 306_744_334),
        ("h", 632_045_800, 635_221_774),
    ],
)
def test_counts(size, flat, solid):
    model = create_model(f"vit_{size}", num_classes=1000)
    assert count_parameters(model, (1, 224, 224, 3)) == flat
    # The blocks are the same in three dimensions, so one of them tells what differs.
    model = model.clone(num_layers=1)
    other = model.clone(num_classes=14, spatial_dims=3, patch_size=16)
    more = count_parameters(other, (1, 96, 96, 96, 1)) - count_parameters(model, (1, 224, 224, 3))
    assert flat + more == solid


def test_what_is_refused():
    x = jax.ShapeDtypeStruct((1, 32, 32, 32, 1), jnp.float32)
    for fields, error, message in (
        ({"pool": "clas"}, ConfigError, r"pool='clas'.*Did you mean 'class'\?"),
        ({"image_size": 40}, ShapeError, r"mean image_size=\(48, 48, 48\)\?"),
        ({"num_heads": 7}, ConfigError, "num_heads=7 for 768 features"),
    ):
        model = create_model("vit_b", num_classes=2, spatial_dims=3, **fields)
        with pytest.raises(error, match=message):
            jax.eval_shape(model.init, jax.random.key(0), x)
