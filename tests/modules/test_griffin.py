"""Griffin's block against a loop over its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError
from biojax.modules import GriffinBlock

X = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return np.asarray(jax.nn.gelu(x), np.float64)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def rms_norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def blocks(x, p):
    n, k, _ = p["kernel"].shape
    parts = [x[..., j * k : (j + 1) * k] @ p["kernel"][j] for j in range(n)]
    return np.concatenate(parts, axis=-1) + p["bias"]


def by_hand(x, p):
    y = rms_norm(x, p["norm1"])
    gate, u = gelu(dense(y, p["gate"])), dense(y, p["in"])
    kernel = p["conv"]["kernel"][:, 0]
    padded = np.pad(u, ((0, 0), (len(kernel) - 1, 0), (0, 0)))
    u = sum(padded[:, j : j + 6] * w for j, w in enumerate(kernel)) + p["conv"]["bias"]
    r, i = sigmoid(blocks(u, p["recurrence_gate"])), sigmoid(blocks(u, p["input_gate"]))
    a = np.exp(-8 * r * np.logaddexp(p["a_param"], 0))
    h, states = 0.0, []
    for t in range(6):
        h = a[:, t] * h + np.sqrt(1 - a[:, t] ** 2) * i[:, t] * u[:, t]
        states.append(h)
    x = x + dense(gate * np.stack(states, axis=1), p["out"])
    y = rms_norm(x, p["norm2"])
    return x + dense(gelu(dense(y, p["mlp1"])) * dense(y, p["mlp2"]), p["mlp3"])


@pytest.fixture
def run(quickly):
    return lambda m, v, x: np.asarray(jax.jit(m.apply, compiler_options=quickly)(v, x))


def test_step_by_step(with_parameters, run):
    module = GriffinBlock(state_features=6, num_heads=3)
    variables = with_parameters(module, X)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables["params"]))
    assert p["recurrence_gate"]["kernel"].shape == (3, 2, 2)
    assert p["mlp1"]["kernel"].shape == (4, 12)
    np.testing.assert_allclose(run(module, variables, X), by_hand(X, p), rtol=1e-3, atol=1e-4)


def test_reverse_is_the_flipped_block(with_parameters, run):
    forward, backward = (GriffinBlock(reverse=reverse) for reverse in (False, True))
    variables = with_parameters(forward, X)
    params = variables["params"]
    conv = {**params["conv"], "kernel": params["conv"]["kernel"][::-1]}
    turned = {"params": {**params, "conv": conv}}
    expected = run(forward, variables, X[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(run(backward, turned, X), expected, rtol=1e-4, atol=1e-5)


def test_decays_start_long(quickly):
    init = jax.jit(GriffinBlock(state_features=200).init, compiler_options=quickly)
    params = init(jax.random.key(0), X)["params"]
    decays = np.exp(-8 * np.logaddexp(np.asarray(params["a_param"]), 0))
    assert decays.min() >= 0.9 - 1e-4
    assert decays.max() <= 0.999 + 1e-4
    np.testing.assert_allclose(decays.mean(), 0.9495, atol=0.01)


def test_the_block_keeps_the_wider_dtype_of_its_sum():
    for x, expected in ((X, "float32"), (jnp.asarray(X, jnp.bfloat16), "bfloat16")):
        block = GriffinBlock(dtype=jnp.bfloat16)
        y, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
        assert jnp.result_type(y) == expected
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}


def test_bfloat16_is_finite_and_near(with_parameters, run):
    variables = with_parameters(GriffinBlock(), X)
    narrow = run(GriffinBlock(dtype=jnp.bfloat16), variables, X).astype(np.float32)
    y = run(GriffinBlock(), variables, X)
    np.testing.assert_allclose(narrow, y, rtol=0.1, atol=0.05 * np.abs(y).max())


def test_heads_must_divide():
    with pytest.raises(ConfigError, match="num_blocks=3 for 4 channels"):
        jax.eval_shape(GriffinBlock(num_heads=3).init, jax.random.key(0), X)
