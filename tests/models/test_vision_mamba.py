"""Vision Mamba against its layers by hand, and its numbers of parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.models import count_parameters, create_model
from biojax.modules import MambaBlock

X = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
SMALL = {"patch_size": 2, "features": 4, "num_layers": 2, "state_size": 3}


def rms_norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]


def sequence_by_hand(x, p):
    """Six patches and the class token between the third and the fourth."""
    patches = x.reshape(2, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 12)
    proj = p["embed"]["proj"]
    x = patches @ proj["kernel"].reshape(12, 4) + proj["bias"]
    x = x + p["positions"]["table"].reshape(6, 4)
    token = np.broadcast_to(p["class_token"] + p["class_position"], (2, 1, 4))
    x = np.concatenate([x[:, :3], token, x[:, 3:]], axis=1)
    for i in range(2):
        y = jnp.asarray(rms_norm(x, p[f"norm{i}"]))
        mamba = MambaBlock(("x", "-x"), state_size=3)
        x = x + np.asarray(mamba.apply({"params": p[f"mamba{i}"]}, y))
    return rms_norm(x, p["norm"])


def test_by_hand(with_parameters, quick_jit):
    model = create_model("vision_mamba_t", num_classes=5, **SMALL)
    variables = with_parameters(model, X)
    p = variables["params"]
    expected = sequence_by_hand(X, p)[:, 3] @ p["head"]["kernel"] + p["head"]["bias"]
    y = quick_jit(model.apply)(variables, X)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_without_classes_the_patches_are_the_output(with_parameters, quick_jit):
    model = create_model("vision_mamba_t", num_classes=None, **SMALL)
    variables = with_parameters(model, X)
    assert "head" not in variables["params"]
    expected = np.delete(sequence_by_hand(X, variables["params"]), 3, axis=1)
    y = quick_jit(model.apply)(variables, X)
    assert y.shape == (2, 6, 4)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_later_blocks_are_left_out_more_often(with_parameters, quick_jit):
    model = create_model("vision_mamba_t", num_classes=None, drop_path_rate=0.9, **SMALL)
    x = np.repeat(X, 8, axis=0)
    variables = with_parameters(model, x)
    run = quick_jit(
        lambda key: model.apply(
            variables, x, train=True, rngs={"dropout": key}, mutable=["intermediates"]
        )[1]["intermediates"]
    )
    sown = run(jax.random.key(0))
    first, second = (np.asarray(sown[f"tokens{i}"][0]) for i in range(2))
    np.testing.assert_array_equal(first[:8], np.repeat(first[:1], 8, axis=0))  # never left out
    left_out = [np.array_equal(a, b) for a, b in zip(first, second, strict=True)]
    assert len(x) / 2 < sum(left_out) < len(x)


def test_small_steps_of_many_blocks_are_not_lost_in_bfloat16(with_parameters, quick_jit):
    model = create_model("vision_mamba_t", num_classes=None, **SMALL)
    variables = with_parameters(model, X)
    for i in range(2):  # which bfloat16 would round away from tokens of the order of one
        out = variables["params"][f"mamba{i}"]["out"]
        out["kernel"] = out["kernel"] * 1e-3

    def second_step(dtype):
        run = quick_jit(functools.partial(model.clone(dtype=dtype).apply, mutable="intermediates"))
        before, after = (run(variables, X)[1]["intermediates"][f"tokens{i}"][0] for i in range(2))
        return np.asarray(after, np.float64) - np.asarray(before, np.float64)

    expected, found = second_step("float32"), second_step("bfloat16")
    assert 0 < np.abs(expected).max() < 2**-8
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("size", "count", "stated"),
    [("t", 7_148_008, 7), ("s", 25_796_584, 26), ("b", 97_598_440, 98)],
)
def test_counts(size, count, stated):
    model = create_model(f"vision_mamba_{size}", num_classes=1000)
    assert count_parameters(model, (1, 224, 224, 3)) == count
    assert round(count / 1e6) == stated


def test_the_smallest_is_the_default():
    by_name = (create_model(n, num_classes=2) for n in ("vision_mamba", "vision_mamba_t"))
    assert len(set(by_name)) == 1
