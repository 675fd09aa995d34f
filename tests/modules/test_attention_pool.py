"""Pools by attention, against their formulas; tokens that do not count."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.modules import MLP, AttentionPool, GatedAttentionPool, MultiHeadAttention

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6)), jnp.float32)
MASK = jnp.array([[True, False, True, True, False], [False] * 5])


def test_gated_attention_by_its_formula(with_parameters):
    module = GatedAttentionPool(4)
    variables = with_parameters(module, X)
    v, u, w = (variables["params"][name] for name in ("hidden", "gate", "score"))
    gate = 1 / (1 + np.exp(-(X @ u["kernel"] + u["bias"])))
    scores = (np.tanh(X @ v["kernel"] + v["bias"]) * gate) @ w["kernel"]
    e = np.exp(scores[..., 0])
    for mask in (None, MASK):
        kept = e if mask is None else e * mask
        weights = kept / np.maximum(kept.sum(1, keepdims=True), 1e-30)
        y, sown = module.apply(variables, X, mask, mutable=["intermediates"])
        np.testing.assert_allclose(sown["intermediates"]["weights"][0], weights, rtol=1e-5)
        expected = np.einsum("bt,btc->bc", weights, X)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_an_empty_bag_has_no_gradient_but_is_finite(with_parameters, quickly):
    module = GatedAttentionPool(4)
    variables = with_parameters(module, X)

    def total(variables, x):
        return jnp.sum(module.apply(variables, x, MASK))

    gradients, dx = jax.jit(jax.grad(total, (0, 1)), compiler_options=quickly)(variables, X)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(np.any(dx, axis=-1), MASK)


def test_queries_look_at_tokens(with_parameters):
    module = AttentionPool(2, num_queries=3)
    variables = with_parameters(module, X)
    p = variables["params"]
    queries = jnp.broadcast_to(p["queries"], (2, *p["queries"].shape))
    attend = partial(MultiHeadAttention(2).apply, {"params": p["attention"]}, queries, X)
    for mask in (None, MASK):
        h = jnp.asarray(attend(mask=None if mask is None else mask[:, None, None]))
        norm = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)
        norm = norm * p["norm"]["scale"] + p["norm"]["bias"]
        expected = h + jnp.asarray(MLP(24).apply({"params": p["mlp"]}, norm))
        y = module.apply(variables, X, mask)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        assert expected.shape == (2, 3, 6)


@pytest.mark.parametrize("make", [partial(AttentionPool, 2), GatedAttentionPool])
def test_tokens_that_do_not_count_are_as_if_not_there(make, with_parameters):
    module = make()
    variables = with_parameters(module, X)
    mask = jnp.array([[True, True, False, True, False]] * 2)
    y = module.apply(variables, X, mask)
    kept = module.apply(variables, X[:, jnp.array([3, 0, 1])])
    np.testing.assert_allclose(y, kept, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [partial(AttentionPool, 2), GatedAttentionPool])
def test_dtypes_and_what_is_refused(make, keeps_dtypes):
    keeps_dtypes(make, X)
    for mask in (MASK[:, :4], MASK.astype(jnp.float32)):
        with pytest.raises(ShapeError, match=r"got a mask .* for tokens \(2, 5, 6\)"):
            jax.eval_shape(make().init, jax.random.key(0), X, mask)
    with pytest.raises(ShapeError, match=r"tokens of shape \(2, 1, 5, 6\). Expected \(b, t, c\)"):
        jax.eval_shape(make().init, jax.random.key(0), X[:, None])
    with pytest.raises(ConfigError, match="num_heads=4 for 6 features"):
        jax.eval_shape(AttentionPool(4).init, jax.random.key(0), X)
