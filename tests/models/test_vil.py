"""Vision-LSTM against its layers by hand, and its numbers of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError
from biojax.models import count_parameters, create_model
from biojax.modules import ViLBlock

X = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
SMALL = {"patch_size": 2, "features": 4, "num_layers": 2, "num_heads": 2}


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def tokens_by_hand(x, p):
    patches = x.reshape(2, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 2, 3, 12)
    proj = p["embed"]["proj"]
    x = patches @ proj["kernel"].reshape(12, 4) + proj["bias"] + p["positions"]["table"]
    for i in range(2):
        # The second block sees the image turned around.
        x = jnp.flip(x, (1, 2)) if i else x
        x = jnp.asarray(ViLBlock(2).apply({"params": p[f"block{i}"]}, x))
        x = jnp.flip(x, (1, 2)) if i else x
    return layer_norm(np.asarray(x), p["norm"]).reshape(2, 6, 4)


def test_by_hand(with_parameters, quick_jit):
    model = create_model("vil_t", num_classes=5, **SMALL)
    variables = with_parameters(model, X)
    p = variables["params"]
    tokens = tokens_by_hand(X, p)
    ends = layer_norm(np.concatenate([tokens[:, 0], tokens[:, -1]], axis=-1), p["head_norm"])
    expected = ends @ p["head"]["kernel"] + p["head"]["bias"]
    y = quick_jit(model.apply)(variables, X)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_without_classes_the_tokens_are_the_output(with_parameters, quick_jit):
    model = create_model("vil_t", num_classes=None, **SMALL)
    variables = with_parameters(model, X)
    assert not any(name.startswith("head") for name in variables["params"])
    y = quick_jit(model.apply)(variables, X)
    np.testing.assert_allclose(y, tokens_by_hand(X, variables["params"]), rtol=1e-3, atol=1e-4)


def test_images_of_another_size_read_the_positions_between(with_parameters, quick_jit):
    model = create_model("vil_t", num_classes=None, **SMALL)
    variables = with_parameters(model, X)
    y = quick_jit(model.apply)(variables, np.repeat(X, 2, axis=1))
    assert y.shape == (2, 12, 4)
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("size", "at_192", "at_224"),
    [
        ("t", 6_381_544, 6_391_528),
        ("s", 23_378_728, 23_398_696),
        ("b", 89_223_592, 89_263_528),
    ],
)
def test_counts_are_those_of_the_training_logs(size, at_192, at_224):
    model = create_model(f"vil_{size}", num_classes=1000)
    assert count_parameters(model, (1, 192, 192, 3)) == at_192
    assert count_parameters(model, (1, 224, 224, 3)) == at_224


def test_heads_must_divide():
    model = create_model("vil_t", num_classes=2, features=6, num_heads=5)
    with pytest.raises(ConfigError, match="num_heads=5 and block_size=4 for 12 inner channels"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))


def test_bfloat16_is_finite_and_near(with_parameters, quick_jit):
    model, narrow = (
        create_model("vil_t", num_classes=5, dtype=d, **SMALL) for d in (None, "bfloat16")
    )
    variables = with_parameters(model, X)
    y, z = (quick_jit(m.apply)(variables, X) for m in (model, narrow))
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z, y, atol=0.15 * float(np.abs(y).max()))
