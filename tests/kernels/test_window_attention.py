"""Attention within windows: values by hand, masks of shifted windows, groups, and refusals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ShapeError
from biojax.kernels import explain, window_attention
from biojax.kernels.attention import window, window_blocked


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def images(*shape: int) -> list[np.ndarray]:
    return [normal(i, *shape) for i in range(3)]


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_shifted_windows_by_hand(implementation):
    nothing = jnp.zeros((1, 4, 6, 1, 1))
    value = jnp.arange(24.0).reshape(nothing.shape)
    options = {"window_size": (2, 3), "shift": (1, 2), "implementation": implementation}
    y = window_attention(nothing, nothing, value, **options)[0, :, :, 0, 0]
    # Rows 1 and 2 share windows, 3 and 0 are alone; columns 2 to 4 do, 5 is alone, 0 and 1 share.
    rows, columns = [[0], [1, 2], [3]], [[0, 1], [2, 3, 4], [5]]
    for group in rows:
        for columns_of in columns:
            at = np.ix_(group, columns_of)
            mean = np.arange(24.0).reshape(4, 6)[at].mean()
            np.testing.assert_allclose(y[at], mean, rtol=1e-6)


def gradients(run, *arrays):
    def scalar(*arrays):
        y = run(*arrays)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    every = tuple(range(len(arrays)))
    (_, y), pulled = jax.jit(jax.value_and_grad(scalar, every, has_aux=True))(*arrays)
    return y, *pulled


@pytest.mark.parametrize("bias", [None, normal(3, 2, 12, 12), normal(3, 2, 12, 12) + 90])
def test_groups_of_windows_change_nothing(monkeypatch, bias):
    """24 windows in groups of 5, the last one filled."""
    monkeypatch.setattr(window_blocked, "SCORE_BYTES", 5 * 2 * 12 * 12 * 4)
    arrays = [x for x in (*images(2, 4, 6, 6, 2, 3), bias) if x is not None]
    run = functools.partial(window_attention, window_size=(2, 3, 2), shift=(1, 2, 1))
    got = gradients(functools.partial(run, implementation="blocked"), *arrays)
    want = gradients(functools.partial(run, implementation="xla"), *arrays)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_hard_logits(implementation):
    """One voxel that may look nowhere, another whose products are huge."""
    query, key, value = images(1, 4, 1, 2)
    query[0, 2] = 1e4
    bias = jnp.zeros((1, 2, 2)).at[0, 1].set(-jnp.inf)
    run = functools.partial(window_attention, window_size=2, implementation=implementation)
    y, *pulled = gradients(run, query, key, value, bias)
    np.testing.assert_array_equal(y[0, 1::2], 0)
    best = 2 + np.argmax((key[0, 2:, 0] * 1e4).sum(-1))
    np.testing.assert_allclose(y[0, 2, 0], value[0, best, 0], rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in pulled)


def test_memory_is_that_of_a_group(monkeypatch, memory):
    monkeypatch.setattr(window_blocked, "SCORE_BYTES", 2**18)
    shape = (1, 16, 16, 16, 1, 2)
    scores = math.prod(shape[:4]) * 64 * 4
    run = functools.partial(window_attention, window_size=4, shift=2, implementation="blocked")
    forward, both = memory(run, shape, shape, shape)
    assert forward < scores
    assert both < 2 * scores


def test_shifts_of_numpy_and_bias_in_lists():
    query, key, value = images(1, 4, 1, 2)
    bias = np.eye(2)[None]
    run = functools.partial(window_attention, query, key, value, window_size=2)
    np.testing.assert_array_equal(run(bias.tolist(), shift=np.int64(1)), run(bias, shift=1))
    np.testing.assert_array_equal(run(shift=np.array([1])), run(shift=(1,)))


def test_what_is_chosen(monkeypatch):
    def chosen(n: int) -> str:
        x = jax.ShapeDtypeStruct((1, n, n, n, 3, 16), jnp.float32)
        (choice,) = explain(functools.partial(window_attention, window_size=7), x, x, x)
        return choice.implementation

    assert [chosen(n) for n in (7, 49)] == ["xla", "blocked"]
    monkeypatch.setattr(window, "platform", lambda: "gpu")
    assert [chosen(n) for n in (49, 98)] == ["xla", "blocked"]


def test_transforms(stands_every_transform, monkeypatch):
    monkeypatch.setattr(window_blocked, "SCORE_BYTES", 2 * 2 * 4 * 4 * 4)

    def f(x, w, bias):
        query, key, value = jnp.moveaxis(x @ w, -1, 0)
        options = {"window_size": 2, "shift": 1, "implementation": "blocked"}
        return window_attention(query, key, value, bias, **options)

    stands_every_transform(f, normal(0, 8, 4, 6, 2, 3, 1), normal(1, 1, 3), normal(2, 2, 4, 4))


Q, K, V = images(1, 4, 6, 2, 3)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((Q[0, 0], K[0, 0], V[0, 0]), {}, r"query \(6, 2, 3\).*Heads come before their channels"),
        ((Q, K[:, :2], V), {}, r"key \(1, 2, 6, 2, 3\)"),
        ((Q.astype(jnp.bfloat16), K, V), {}, "one floating dtype for all three"),
        ((Q, K, V), {"window_size": 4}, r"windows of \(4, 4\).*Did you mean \(4, 8\)\?"),
        ((Q, K, V), {"window_size": (2, 2, 2)}, "one integer, or 2 of them"),
        ((Q, K, V), {"shift": 2}, r"shift=2 for windows of \(2, 2\)"),
        ((Q, K, V), {"shift": (1,)}, r"shift=\(1,\)"),
        ((Q, K, V), {"shift": 1.5}, r"shift=1.5 .*Expected integers"),
        ((Q, K, V), {"shift": None}, "shift=None"),
        ((Q, K, V, np.zeros((4, 4))), {}, r"bias of shape \(4, 4\).*\(n, w, w\) = \(2, 4, 4\)"),
        ((Q, K, V, [[0.0], [0.0, 1.0]]), {}, "bias of list. Expected an array"),
        ((Q, K, V, np.ones((2, 4, 4), bool)), {}, "bias of bool. Expected floating numbers"),
        ((Q, K, V, np.ones((2, 4, 4), int)), {}, "bias of int64"),
    ],
)
def test_what_is_refused(args, options, message):
    with pytest.raises(ShapeError, match=rf"^window_attention: got .*?{message}"):
        window_attention(*args, **{"window_size": 2, **options})
