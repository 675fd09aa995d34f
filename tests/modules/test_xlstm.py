"""Vision-LSTM's block against a loop over its parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError
from biojax.modules import ViLBlock

X = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def norm(x, p, epsilon):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x.reshape(*x.shape[:2], -1) * p["scale"] + p["bias"] if x.ndim == 4 else x


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def blocks(x, p):
    n, k, _ = p["kernel"].shape
    parts = [x[..., j * k : (j + 1) * k] @ p["kernel"][j] for j in range(n)]
    return np.concatenate(parts, axis=-1) + p["bias"]


def conv_3x3(x, p):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1:-1]
    taps = np.ndindex(3, 3)
    return p["bias"] + sum(padded[:, i : i + h, j : j + w] * p["kernel"][i, j, 0] for i, j in taps)


def mlstm(q, k, v, i, f):
    """Without the stabiliser, (b, t, n, k)."""
    b, t, n, size = q.shape
    memory, total, outputs = np.zeros((b, n, size, size)), np.zeros((b, n, size)), []
    for s in range(t):
        forget, take = sigmoid(f[:, s])[..., None], np.exp(i[:, s])[..., None]
        key = take * k[:, s] / np.sqrt(size)
        memory = forget[..., None] * memory + key[..., None] * v[:, s, :, None]
        total = forget * total + key
        found = (memory * q[:, s, ..., None]).sum(-2)
        outputs.append(found / np.maximum(np.abs((total * q[:, s]).sum(-1)), 1)[..., None])
    return np.stack(outputs, axis=1)


def by_hand(x, p, heads):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = dense(y * p["norm"]["scale"] + p["norm"]["bias"], p["up"])
    v, z = np.split(y, 2, axis=-1)
    u = silu(conv_3x3(v, p["conv"]))
    b, h, w, inner = u.shape
    q, k, value = (
        blocks(a.reshape(b, h * w, inner), p[name])
        for a, name in ((u, "query"), (u, "key"), (v, "value"))
    )
    qkv = np.concatenate([q, k, value], axis=-1)
    i, f = dense(qkv, p["input_gate"]), dense(qkv, p["forget_gate"])
    y = mlstm(*(a.reshape(b, h * w, heads, -1) for a in (q, k, value)), i, f)
    y = norm(y, p["norm_heads"], 1e-5).reshape(u.shape)
    return x + dense((y + p["skip"] * u) * silu(z), p["down"])


@pytest.fixture
def run(quickly):
    def call(module, variables, x, **options):
        apply = partial(module.apply, **options)
        return np.asarray(jax.jit(apply, compiler_options=quickly)(variables, x))

    return call


def test_step_by_step(with_parameters, run):
    module = ViLBlock(num_heads=2, block_size=2)
    variables = with_parameters(module, X)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables["params"]))
    assert p["query"]["kernel"].shape == (4, 2, 2)
    np.testing.assert_allclose(run(module, variables, X), by_hand(X, p, 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("x", [X, X.reshape(2, 2, 3, 2, 4), X.reshape(2, 12, 4)])
def test_reverse_is_the_block_of_the_image_turned_around(x, with_parameters, run):
    forward, backward = (ViLBlock(2, 2, reverse=reverse) for reverse in (False, True))
    variables = with_parameters(forward, x)
    axes = tuple(range(1, x.ndim - 1))
    expected = np.flip(run(forward, variables, np.flip(x, axes)), axes)
    np.testing.assert_allclose(run(backward, variables, x), expected, rtol=1e-4, atol=1e-5)


def test_where_the_parameters_start(quickly):
    init = jax.jit(ViLBlock().init, compiler_options=quickly)
    p = init(jax.random.key(0), jnp.zeros((1, 2, 2, 64)))["params"]
    np.testing.assert_allclose(p["forget_gate"]["bias"], [3, 4, 5, 6], rtol=1e-6)
    for gate in ("forget_gate", "input_gate"):
        np.testing.assert_array_equal(p[gate]["kernel"], 0)
    assert 0 < np.abs(p["input_gate"]["bias"]).max() < 0.5
    np.testing.assert_array_equal(p["skip"], 1)
    for name, std in (("up", (2 / 320) ** 0.5), ("query", (2 / 320) ** 0.5), ("down", 2 / 8)):
        np.testing.assert_allclose(p[name]["kernel"].std(), std, rtol=0.1)


def test_the_block_keeps_the_wider_dtype_of_its_sum():
    for x, expected in ((X, "float32"), (jnp.asarray(X, jnp.bfloat16), "bfloat16")):
        block = ViLBlock(2, 2, dtype=jnp.bfloat16)
        y, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
        assert jnp.result_type(y) == expected
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}


def test_bfloat16_is_finite_and_near(with_parameters, run):
    variables = with_parameters(ViLBlock(2, 2), X)
    narrow = run(ViLBlock(2, 2, dtype=jnp.bfloat16), variables, X).astype(np.float32)
    y = run(ViLBlock(2, 2), variables, X)
    np.testing.assert_allclose(narrow, y, rtol=0.1, atol=0.1 * np.abs(y).max())


def test_blocks_are_left_out_only_while_training(with_parameters, run):
    module, x = ViLBlock(2, 2, drop_path_rate=0.5), np.repeat(X, 8, axis=0)
    variables = with_parameters(module, x)
    still = run(module, variables, x)
    np.testing.assert_array_equal(still, run(ViLBlock(2, 2), variables, x, train=True))
    y = run(module, variables, x, train=True, rngs={"dropout": jax.random.key(0)})
    left_out = [np.array_equal(a, b) for a, b in zip(y, x, strict=True)]
    assert 0 < sum(left_out) < len(x)
    kept = [i for i, out in enumerate(left_out) if not out]
    np.testing.assert_allclose((y - x)[kept], 2 * (still - x)[kept], rtol=1e-3, atol=1e-4)


def test_heads_and_blocks_must_divide():
    for module in (ViLBlock(3), ViLBlock(4, block_size=3)):
        with pytest.raises(ConfigError, match="for 8 inner channels, 2 times"):
            jax.eval_shape(module.init, jax.random.key(0), X)
