"""Self-attention layers against the kernel and their own formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from biojax import kernels
from biojax.errors import ConfigError, ShapeError
from biojax.kernels import rotary, rotary_angles
from biojax.modules import MultiHeadAttention, TransformerBlock

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6)), jnp.float32)
Z = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 3)), jnp.float32)
MASK = jnp.tri(5, dtype=bool)


def dense(x, params):
    return x @ params["kernel"] + params.get("bias", 0)


def layer_norm(x, params, epsilon=1e-6):
    x = np.asarray(x, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return jnp.asarray(x * params["scale"] + params["bias"], jnp.float32)


def attend(x, params, num_heads, mask=None, context=None, norm=layer_norm, angles=None):
    """Heads are slices of the features: head i is features i * k to (i + 1) * k."""
    z = x if context is None else context

    def heads(of, name):
        return dense(of, params[name]).reshape(*of.shape[:2], num_heads, -1)

    def normal(y, name):
        return norm(y, params[name]) if name in params else y

    query, key, value = heads(x, "query"), heads(z, "key"), heads(z, "value")
    query, key = normal(query, "query_norm"), normal(key, "key_norm")
    if angles is not None:
        query, key = rotary(query, angles), rotary(key, angles)
    y = kernels.attention(query, key, value, mask=mask).reshape(x.shape)
    return dense(normal(y, "norm"), params["proj"])


def check(module, expected, *args, with_parameters, quickly, **options):
    """`expected` is made of the parameters."""
    variables = with_parameters(module, X, *args)
    want = expected(variables["params"])
    y = jax.jit(module.apply, compiler_options=quickly)(variables, X, *args, **options)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [None, MASK])
def test_attention_is_the_kernel_between_matrices(mask, with_parameters, quickly):
    def expected(params):
        assert {name: params[name]["kernel"].shape for name in params} == dict.fromkeys(
            ("query", "key", "value", "proj"), (6, 6)
        )
        return attend(X, params, 3, mask)

    check(
        MultiHeadAttention(3), expected, mask=mask, with_parameters=with_parameters, quickly=quickly
    )


def test_attention_to_a_context(with_parameters, quickly):
    def expected(params):
        assert params["key"]["kernel"].shape == params["value"]["kernel"].shape == (3, 6)
        return attend(X, params, 2, context=Z)

    check(MultiHeadAttention(2), expected, Z, with_parameters=with_parameters, quickly=quickly)


def test_grouped_queries_and_keys_of_several_lengths(with_parameters, quickly):
    """Two heads of keys serve six, three each; the second image has three tokens of five."""
    lengths = jnp.array([5, 3])
    block = TransformerBlock(6, num_key_heads=2)
    variables = with_parameters(block, X)
    wide = jax.tree.map(lambda leaf: leaf, variables)
    for name in ("key", "value"):
        part = variables["params"]["attention"][name]
        assert part["kernel"].shape == (6, 2)
        wide["params"]["attention"][name] = {k: jnp.repeat(v, 3, -1) for k, v in part.items()}
    run = jax.jit(block.apply, compiler_options=quickly)
    y = run(variables, X, key_lengths=lengths)
    mask = jnp.arange(5) < lengths[:, None, None, None]
    expected = TransformerBlock(6).apply(wide, X, mask=mask)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_norms_and_angles_of_queries_and_keys(with_parameters, quickly):
    angles = rotary_angles(4, 2, num_prefix=1)

    def expected(params):
        assert params["query_norm"]["scale"].shape == (2,)
        norm = partial(layer_norm, epsilon=1e-2)
        return attend(X, params, 3, norm=norm, angles=angles)

    module = MultiHeadAttention(3, qk_norm=True, epsilon=1e-2)
    check(module, expected, angles=angles, with_parameters=with_parameters, quickly=quickly)
    with pytest.raises(ConfigError, match="got angles for another context"):
        jax.eval_shape(module.init, jax.random.key(0), X, Z, angles=angles)


@pytest.mark.parametrize(
    ("fields", "biased"),
    [({"qkv_bias": False}, ""), ({"key_bias": False}, "query value"), ({}, "query key value")],
)
def test_which_have_a_bias(fields, biased):
    variables = jax.eval_shape(MultiHeadAttention(2, **fields).init, jax.random.key(0), X)
    found = {name for name, leaves in variables["params"].items() if "bias" in leaves}
    assert found == {*biased.split(), "proj"}


def test_the_bias_of_the_keys_changes_nothing(with_parameters):
    variables = with_parameters(MultiHeadAttention(2), X)
    y = MultiHeadAttention(2).apply(variables, X)
    del variables["params"]["key"]["bias"]
    without = MultiHeadAttention(2, key_bias=False).apply(variables, X)
    np.testing.assert_allclose(y, without, rtol=1e-5, atol=1e-5)


def mlp(x, p):
    hidden = dense(x, p["expand"])
    if "gate" in p:
        gate = dense(x, p["gate"])
        hidden = gate / (1 + jnp.exp(-gate)) * hidden
    else:
        hidden = hidden * norm.cdf(hidden)
    return dense(layer_norm(hidden, p["norm"]) if "norm" in p else hidden, p["project"])


def test_the_block_by_its_formula(with_parameters, quickly):
    def expected(p):
        assert p["mlp"]["expand"]["kernel"].shape == (6, 9)
        x = X + attend(layer_norm(X, p["norm1"]), p["attention"], 2, MASK)
        return x + mlp(layer_norm(x, p["norm2"]), p["mlp"])

    module = TransformerBlock(2, mlp_ratio=1.5)
    check(module, expected, mask=MASK, with_parameters=with_parameters, quickly=quickly)


def test_the_block_with_all_its_parts(with_parameters, quickly):
    norm = partial(layer_norm, epsilon=1e-5)

    def expected(p):
        def back(y, name):
            return y * p[name]["scale"]

        assert p["attention"]["norm"]["scale"].shape == (6,)
        y = attend(norm(X, p["norm1"]), p["attention"], 2, norm=norm)
        x = X + back(y, "scale1")
        y = norm(x, p["norm_cross"])
        y = attend(y, p["cross_attention"], 2, context=Z, norm=norm)
        x = x + back(y, "scale_cross")
        return x + back(mlp(norm(x, p["norm2"]), p["mlp"]), "scale2")

    module = TransformerBlock(
        2,
        1.5,
        "swiglu",
        mlp_norm=True,
        attention_norm=True,
        qkv_bias=False,
        layer_scale=0.1,
        epsilon=1e-5,
    )
    check(module, expected, Z, with_parameters=with_parameters, quickly=quickly)


def test_a_masked_context_is_as_one_cut_off(with_parameters, quickly):
    block = TransformerBlock(2)
    run = partial(jax.jit(block.apply, compiler_options=quickly), with_parameters(block, X, Z))
    seen = jnp.arange(4) < jnp.array([3, 2])[:, None, None, None]
    y = run(X, jnp.where(seen[:, 0, 0, :, None], Z, 7.0), context_mask=seen)
    for i, length in enumerate((3, 2)):
        expected = block.apply(*run.args, X[i : i + 1], Z[i : i + 1, :length])
        np.testing.assert_allclose(y[i : i + 1], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"^TransformerBlock: got context_mask without a context"):
        jax.eval_shape(block.init, jax.random.key(0), X, context_mask=seen)


def test_causal_tokens_do_not_see_those_after_them(with_parameters, quickly):
    block = TransformerBlock(2, is_causal=True)
    run = partial(jax.jit(block.apply, compiler_options=quickly), with_parameters(block, X))
    changed = run(X.at[:, 3:].add(1))
    np.testing.assert_allclose(changed[:, :3], run(X)[:, :3], rtol=1e-5, atol=1e-5)


def test_dropout_only_while_training(with_parameters, quickly):
    module = TransformerBlock(2, dropout_rate=0.5)
    variables = with_parameters(module, X)

    def train(key):
        return module.apply(variables, X, train=True, rngs={"dropout": key})

    run = jax.jit(train, compiler_options=quickly)
    one, same, other = (run(jax.random.key(i)) for i in (0, 0, 1))
    still = module.apply(variables, X)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one, still)
    without = TransformerBlock(2).apply(variables, X, train=True)
    np.testing.assert_array_equal(still, without)


def test_dropout_of_the_weights(with_parameters):
    module = MultiHeadAttention(2, attention_dropout_rate=0.5)
    variables = with_parameters(module, X)
    run = partial(module.apply, variables, X)
    one, same, other = (run(train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one, run())
    np.testing.assert_array_equal(run(), MultiHeadAttention(2).apply(variables, X))


def test_dtypes(keeps_dtypes):
    keeps_dtypes(partial(MultiHeadAttention, 2, qk_norm=True, norm=True), X)


def test_the_block_keeps_the_wider_dtype_of_its_sum():
    for x, expected in ((X, "float32"), (X.astype(jnp.bfloat16), "bfloat16")):
        block = TransformerBlock(2, dtype=jnp.bfloat16)
        y, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
        assert jnp.result_type(y) == expected
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}


@pytest.mark.parametrize(("heads", "nearest"), [(4, 3), (5, 6), (100, 6), (0, 1)])
def test_heads_that_do_not_divide(heads, nearest):
    text = rf"got num_heads={heads} for 6 features.*Did you mean num_heads={nearest}\?"
    with pytest.raises(ConfigError, match=f"^MultiHeadAttention: {text}"):
        jax.eval_shape(TransformerBlock(heads).init, jax.random.key(0), X)


def test_heads_of_keys_that_do_not_divide():
    with pytest.raises(ConfigError, match=r"num_key_heads=4 for 6 heads.*mean num_key_heads=3\?"):
        jax.eval_shape(TransformerBlock(6, num_key_heads=4).init, jax.random.key(0), X)


def test_another_mlp():
    with pytest.raises(ConfigError, match=r"^MLP: got activation='gleu'.*Did you mean 'gelu'\?"):
        jax.eval_shape(TransformerBlock(2, mlp="gleu").init, jax.random.key(0), X)


@pytest.mark.parametrize("args", [(X[:, None],), (X, Z[0])])
def test_images_are_no_tokens(args):
    with pytest.raises(ShapeError, match=r"tokens of shape .* Expected \(b, t, c\)"):
        jax.eval_shape(TransformerBlock(2).init, jax.random.key(0), *args)
