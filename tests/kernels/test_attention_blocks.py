"""Attention in blocks: as with all scores at once, whatever the options, in little memory."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from biojax.errors import UnsupportedError
from biojax.kernels import attention, attention_and_lse
from biojax.kernels.attention import blocked, cudnn, xla
from biojax.kernels.attention.block import Inputs, plan_of
from biojax.kernels.attention.scores import are_small, exp

T, S = 40, 61
rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


QUERY, KEY, VALUE = normal(2, T, 4, 8), normal(2, S, 2, 8), normal(2, S, 2, 6)
SOME = rng.random((1, 4, T, 1)) > 0.2
CASES = {
    "none": (None, None, {}),
    "dense bias": (normal(4, T, S), None, {}),
    "bias of keys": (normal(2, 1, 1, S), SOME, {"scale": 3.0}),
    "bias of minus infinity": (np.where(normal(T, S) > 0.3, -np.inf, 0), None, {"scale": 30.0}),
    "far from zero": (normal(T, 1) + 70, rng.random((2, 1, T, S)) > 0.5, {"soft_cap": 2.0}),
    "causal": (None, None, {"is_causal": True}),
    "lengths": (
        None,
        SOME,
        {"query_lengths": np.array([T // 2, T]), "key_lengths": np.array([S - 3, 1])},
    ),
    "dropout": (
        normal(4, 1, 1),
        None,
        {
            "is_causal": True,
            "key_lengths": [S, 3],
            "dropout_rate": 0.3,
            "dropout_key": jax.random.key(3),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_as_with_all_scores_at_once(case, monkeypatch, quickly):
    monkeypatch.setattr(blocked, "QUERIES", 24)
    monkeypatch.setattr(blocked, "KEYS", 24)
    bias, mask, options = CASES[case]

    def run(implementation):
        def total(query, key, value, bias):
            y, lse = attention_and_lse(
                query, key, value, bias, mask, **options, implementation=implementation
            )
            weighted = [
                x * jnp.cos(jnp.arange(x.size).reshape(x.shape))
                for x in (y, jnp.where(jnp.isfinite(lse), lse, 0))
            ]
            return sum(x.sum() for x in weighted), (y, lse)

        arrays = QUERY, KEY, VALUE, bias
        of = range(4 if bias is not None else 3)
        step = jax.value_and_grad(total, tuple(of), has_aux=True)
        (_, results), gradients = jax.jit(step, compiler_options=quickly)(*arrays)
        return *results, *gradients

    for got, want in zip(run("blocked"), run("xla"), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(
            got, want, rtol=1e-4, atol=2e-5 * np.abs(want[want > -1e9]).max()
        )


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_gradients_are_differentiated_forward(size, monkeypatch, quickly):
    """As of all scores at once, whether exponentials may be taken of them as they are or not."""
    monkeypatch.setattr(blocked, "QUERIES", 4)
    monkeypatch.setattr(blocked, "KEYS", 4)
    arrays = [size * normal(2, 6, 2, 3), normal(2, 9, 1, 3), normal(2, 9, 1, 2)]
    along, bias = [normal(*x.shape) for x in arrays], normal(6, 9)

    def run(implementation):
        options = {"is_causal": True, "key_lengths": [9, 4], "implementation": implementation}

        def total(*arrays):
            return jnp.sin(attention(*arrays, bias, **options)).sum()

        gradients = jax.grad(total, (0, 1, 2))
        f = jax.jit(
            lambda *arrays: jax.jvp(gradients, arrays, tuple(along)), compiler_options=quickly
        )
        return jax.tree.leaves(f(*arrays))

    for got, want in zip(run("blocked"), run("xla"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_blocks_divide_the_tokens_where_every_score_has_a_bias():
    tokens = [jax.ShapeDtypeStruct((1, 13_824, 2, 8), jnp.float32)] * 3
    plain, dense = (
        plan_of(Inputs(*tokens, bias=bias), 1024, 1024)
        for bias in (np.zeros((13_824, 1)), np.broadcast_to(0.0, (13_824, 13_824)))
    )
    assert plain.queries == plain.keys == (14, 988)
    assert dense.queries == dense.keys == (16, 864)


def test_lengths_are_as_if_the_rest_were_cut_off():
    lengths = np.array([30, 10]), np.array([50, 7])
    y = attention(QUERY, KEY, VALUE, query_lengths=lengths[0], key_lengths=lengths[1])
    for i, (t, s) in enumerate(zip(*lengths, strict=True)):
        alone = attention(QUERY[i : i + 1, :t], KEY[i : i + 1, :s], VALUE[i : i + 1, :s])
        np.testing.assert_allclose(y[i, :t], alone[0], rtol=1e-5, atol=1e-6)
        assert not np.any(y[i, t:])


def test_results_for_parts_of_the_keys_make_the_whole():
    parts = [attention_and_lse(QUERY, KEY[:, at], VALUE[:, at]) for at in (slice(20), slice(20, S))]
    weights = jax.nn.softmax(jnp.stack([lse for _, lse in parts]), axis=0)
    y = sum(w[..., None] * y for w, (y, _) in zip(weights, parts, strict=True))
    np.testing.assert_allclose(y, attention(QUERY, KEY, VALUE), rtol=1e-5, atol=1e-6)


def test_what_has_no_log_sum_exp_says_so():
    def of_cudnn(*args):
        return xla.attention(*args)[0]

    with mock.patch.object(cudnn, "attention", of_cudnn):
        y = attention(QUERY, KEY, VALUE, implementation="cudnn")
        with pytest.raises(UnsupportedError, match=r"no log-sum-exp.*implementation='blocked'"):
            attention_and_lse(QUERY, KEY, VALUE, implementation="cudnn")
    np.testing.assert_allclose(y, attention(QUERY, KEY, VALUE), rtol=1e-6)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_dropout_drops_that_share_and_keeps_the_mean(kind):
    n = 128
    ones, key = np.ones((1, n, 1, n), np.float32), jax.random.key(0, impl=kind)
    value = np.eye(n, dtype=np.float32)[None, :, None]  # so that the result is the weights
    y = np.asarray(attention(0 * ones, ones, value, dropout_rate=0.25, dropout_key=key))
    np.testing.assert_allclose(np.unique(y), [0, 1 / n / 0.75], rtol=1e-6)
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.02)
    again = attention(0 * ones, ones, value, dropout_rate=0.25, dropout_key=key)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_allclose(attention(0 * ones, ones, value, dropout_rate=0.25), 1 / n)


def test_soft_cap_caps():
    query, key = np.full((1, 1, 1, 1), 1e3, np.float32), np.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    y = attention(query, key.astype(np.float32), key.astype(np.float32), soft_cap=0.5)
    assert float(y[0, 0, 0, 0]) == pytest.approx(np.tanh(0.5), rel=1e-5)


def test_exponentials():
    x = np.linspace(-80, 88, 20_001).astype(np.float32)
    error = np.asarray(exp(x), np.float64) / np.exp(x.astype(np.float64)) - 1
    assert np.abs(error).max() < 5e-6
    assert np.abs(error[np.abs(x) < 1]).max() < 2.5e-7
    np.testing.assert_allclose(jax.grad(exp)(1.0), np.e, rtol=1e-6)
    few = exp(jnp.array([-jnp.inf, -1e30, -104.0, 0.0, jnp.nan]))
    np.testing.assert_array_equal(few, [0, 0, 0, 1, np.nan])


def test_one_answer_for_all_of_a_vmap():
    x = np.stack([normal(3, 4), 8 * np.eye(4, dtype=np.float32)[:3]])
    assert jax.vmap(lambda x: are_small(x, x, None, 0.46))(x).tolist() == [True, True]
    assert jax.vmap(lambda x: are_small(x, x, None, 0.47))(x).tolist() == [False, False]
    assert not are_small(x[0].astype(np.float16), x[0].astype(np.float16), None, 0.01)
    bias = jnp.array([-jnp.inf, 1.0])
    assert bool(are_small(x[1], x[1], bias, 0.45))
    assert not are_small(x[1], x[1], bias, 0.46)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("spec", "heads"), [(P("a"), 8), (P(None, None, "a"), 1)])
def test_spread_over_devices(kind, spec, heads, mesh_of, monkeypatch, compiled):
    """As accelerators walk over the heads, images and heads stay where they are."""
    monkeypatch.setattr(blocked, "platform", lambda: "gpu")
    arrays = [normal(8, 5, 8, 3) for _ in range(4)]
    arrays.append(normal(1, heads, 5, 5))  # of a bias, that is on all devices

    def both(query, key, value, dy, bias):
        run = functools.partial(attention, implementation="blocked")
        y, pull = jax.vjp(run, query, key, value, bias)
        return y, *pull(dy)

    want = both(*arrays)
    with jax.set_mesh(mesh_of(8, kind=kind)):
        spread = [jax.device_put(x, spec) for x in arrays[:4]]
        got, collectives = compiled(both, *spread, jax.device_put(arrays[4], P()))
    assert collectives <= {"all-reduce"}  # of the bound of all logits, and of the bias's gradient
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 5, 7), (2, 1, 1, 7), (1, 4, 5, 7), (2, 4, 5, 1)])
def test_the_gradient_of_a_bias_where_all_heads_are_together(shape, monkeypatch):
    """Two heads of keys, each for two of queries."""
    query, key, value, bias = (
        normal(2, 5, 4, 3),
        normal(2, 7, 2, 3),
        normal(2, 7, 2, 3),
        normal(*shape),
    )

    def gradient(implementation: str):
        def of(bias):
            return jnp.sum(
                jnp.sin(attention(query, key, value, bias, implementation=implementation))
            )

        return jax.grad(of)(bias)

    want = gradient("xla")
    monkeypatch.setattr(blocked, "platform", lambda: "tpu")
    np.testing.assert_allclose(gradient("blocked"), want, rtol=1e-5, atol=1e-6)


def test_memory_is_linear_in_the_tokens(memory):
    """The scores of 16,384 tokens in 8 heads would take 8 GiB; bytes beside inputs and outputs."""
    shapes = [[(1, t, 8, 64)] * 3 for t in (4096, 16_384)]
    few, many = (memory(attention, *of_tokens) for of_tokens in shapes)
    assert many[0] < 64 * 2**20
    assert many[1] < 128 * 2**20
    assert all(b < 4.5 * a for a, b in zip(few, many, strict=True))
