"""Attention: values by hand, what must not change the result, masks, gradients, refusals."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import (
    attention,
    attention_and_lse,
    axial_attention,
    linear_attention,
    neighborhood_attention,
    ring_attention,
    window_attention,
)
from biojax.kernels.attention import blocked


@pytest.fixture(scope="module", params=["xla", "blocked"])
def attend(request):
    """One compiled program for each set of shapes; blocks so small that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "QUERIES", 4)
        patch.setattr(blocked, "KEYS", 2)
        function = functools.partial(attention, implementation=request.param)
        names = ["scale", "is_causal", "soft_cap", "dropout_rate", "precision"]
        yield jax.jit(function, static_argnames=names)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(t=4, s=5, n=2, m=2, k=3, v=4, b=2) -> list[np.ndarray]:
    """A query, a key and a value."""
    return [normal(0, b, t, n, k), normal(1, b, s, m, k), normal(2, b, s, m, v)]


def by_loop(query, key, value, bias, mask, scale) -> np.ndarray:
    """The sums in the docstring, term by term, in float64."""
    b, t, n, _ = query.shape
    s, group = key.shape[1], n // key.shape[2]
    y = np.zeros((b, t, n, value.shape[-1]))
    for i, j, h in np.ndindex(b, t, n):
        products = [float(query[i, j, h].astype(float) @ key[i, r, h // group]) for r in range(s)]
        weights = np.exp(scale * np.array(products) + bias[i, h, j]) * mask[i, h, j]
        y[i, j, h] = weights / weights.sum() @ value[i, :, h // group].astype(float)
    return y


def test_by_hand(attend):
    query = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    key = jnp.log(jnp.array([1.0, 3.0])).reshape(1, 2, 1, 1)
    value = jnp.array([4.0, 8.0]).reshape(1, 2, 1, 1)

    def of(*args, **options):
        return attend(query, key, value, *args, **options).ravel().tolist()

    # exp(q k) is 1, 1 for the first query and 1, 3 for the second.
    assert of() == pytest.approx([6, 7])
    assert of(scale=2.0) == pytest.approx([6, (4 + 9 * 8) / 10])
    assert of(is_causal=True) == pytest.approx([4, 7])
    assert of(jnp.log(jnp.array([3.0, 1.0]))) == pytest.approx([5, 6])
    assert of(None, jnp.array([[True, False], [False, True]])) == pytest.approx([4, 8])


def test_against_a_loop(attend):
    query, key, value = tokens(n=4, m=2)
    bias, mask = normal(3, 2, 4, 4, 5), normal(4, 2, 4, 4, 5) > -1
    mask[..., 0] = True
    y = attend(query, key, value, bias, mask)
    expected = by_loop(query, key, value, bias, mask, 3**-0.5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_against_jax(attend):
    query, key, value = tokens(n=4, m=2, v=3)
    mask = np.random.default_rng(3).random((2, 1, 4, 5)) > 0.3
    mask[..., 0] = True
    for bias in (None, normal(4, 1, 4, 4, 5)):
        for causal in (False, True):
            y = attend(query, key, value, bias, mask, is_causal=causal, scale=0.7)
            expected = jax.nn.dot_product_attention(
                query, key, value, bias, mask, is_causal=causal, scale=0.7
            )
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_causal_with_fewer_and_with_more_queries_than_keys(attend):
    for t, s in ((2, 5), (5, 2)):
        query, key, value = tokens(t=t, s=s)
        y = attend(query, key, value, is_causal=True)
        for i in range(t):
            seen = min(i + 1, s)
            alone = attend(query[:, i : i + 1], key[:, :seen], value[:, :seen])
            np.testing.assert_allclose(y[:, i : i + 1], alone, rtol=1e-5, atol=1e-6)


def test_grouped_heads_are_repeated_keys(attend):
    query, key, value = tokens(n=6, m=2)
    bias = normal(3, 6, 1, 1)
    repeated = attend(query, key.repeat(3, axis=2), value.repeat(3, axis=2), bias)
    y = attend(query, key, value, bias)
    np.testing.assert_allclose(y, repeated, rtol=1e-5, atol=1e-6)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    order=st.permutations(range(5)), shift=st.floats(-1e3, 1e3, width=32), seed=st.integers(0, 99)
)
def test_order_of_keys_and_shift_of_logits_do_not_matter(attend, order, shift, seed):
    query, key, value = normal(seed, 2, 4, 2, 3), *tokens()[1:]
    bias = normal(seed + 1, 2, 2, 4, 5)
    y = attend(query, key, value, bias)
    order = np.array(order)
    permuted = attend(query, key[:, order], value[:, order], bias[..., order])
    np.testing.assert_allclose(permuted, y, rtol=1e-5, atol=1e-5)
    shifted = attend(query, key, value, bias + shift)
    np.testing.assert_allclose(shifted, y, rtol=1e-2, atol=1e-3)


def test_a_mask_and_a_bias_of_minus_infinity_remove_a_key(attend):
    query, key, value = tokens()
    kept = np.array([0, 1, 3, 4])
    without = attend(query, key[:, kept], value[:, kept])
    mask = np.isin(np.arange(5), kept)
    loud = np.where(mask[:, None, None], key, 1e4)  # what is hidden may be anything finite
    np.testing.assert_allclose(attend(query, loud, value, None, mask), without, rtol=1e-5)
    bias = np.where(mask, 0, -np.inf).astype(np.float32)
    np.testing.assert_allclose(attend(query, loud, value, bias), without, rtol=1e-5)


def test_a_query_that_may_look_nowhere_gives_zeros_and_finite_gradients(attend):
    query, key, value = tokens()
    mask = np.ones((4, 5), bool)
    mask[1] = False
    bias = np.zeros((4, 5), np.float32)
    bias[2] = -np.inf

    @jax.jit
    def run(query, key, value, bias):
        y = attend(query, key, value, bias, mask)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

    gradients, y = jax.grad(run, argnums=(0, 1, 2, 3), has_aux=True)(query, key, value, bias)
    assert not np.any(y[:, 1:3])
    assert np.all(np.any(y[:, [0, 3]], axis=-1))
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(gradients[0][:, 1:3])
    assert np.all(np.any(gradients[0][:, [0, 3]], axis=-1))
    assert not np.any(gradients[3][1:3])
    nothing = attend(query, key, value, None, np.zeros((4, 5), bool))
    assert not np.any(nothing)


@pytest.mark.parametrize("size", [1e4, 3e4])
def test_large_logits_pick_one_key(attend, size):
    key = np.eye(5, dtype=np.float32)[None, :, None]
    query, value = size * key[:, ::-1], normal(2, 1, 5, 1, 4)

    def run(query, key, value):
        return attend(query, key, value, scale=1.0)

    y, pullback = jax.vjp(run, query, key, value)
    np.testing.assert_array_equal(y, value[:, ::-1])
    assert all(np.isfinite(g).all() for g in pullback(jnp.ones_like(y)))


def test_nan_is_not_hidden(attend):
    query, key, value = (np.array(a) for a in tokens())
    query[0, 1, 0, 0] = np.nan
    y = attend(query, key, value)
    assert np.isnan(y[0, 1, 0]).all()
    assert np.isfinite(np.delete(y, 1, axis=1)).all()
    masked = attend(query, key, value, None, np.arange(4)[:, None] != np.ones(5))
    assert np.isfinite(masked).all()


def test_against_finite_differences(attend):
    args = (*tokens(t=2, s=3, n=2, m=1, k=2, v=2, b=1), normal(3, 2, 2, 3))
    check_grads(attend, args, order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_long_sums_do_not_stall(attend, dtype):
    ones = jnp.ones((1, 4096, 1, 1), dtype)
    y = attend(ones[:, :2], ones, ones)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), 1, rtol=1e-2)
    # Products over 4096 channels: 4096 for one key and 4088 for the other, a difference of 8.
    query, value = jnp.ones((1, 1, 1, 4096), dtype), jnp.array([1, -1], dtype).reshape(1, 2, 1, 1)
    key = jnp.ones((1, 2, 1, 4096), dtype).at[0, 1, 0, :8].set(0)
    y = attend(query, key, value, scale=1.0)
    assert float(y[0, 0, 0, 0]) == pytest.approx(np.tanh(4), rel=1e-2)


def test_bias_may_be_wider_than_the_tokens(attend):
    query, key, value = (jnp.asarray(a, jnp.bfloat16) for a in tokens())
    y = attend(query, key, value, jnp.zeros((4, 5)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, attend(query, key, value))


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_a_scale_may_be_learned(implementation, quickly):
    query, key, value = tokens()

    def of_scale(scale):
        return attention(query, key, value, scale=scale, implementation=implementation).sum()

    def of_factor(factor):
        return attention(factor * query, key, value, scale=1.0).sum()

    got, want = (
        jax.jit(jax.value_and_grad(f), compiler_options=quickly)(0.7) for f in (of_scale, of_factor)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(of_scale(np.float32(0.7)), want[0], rtol=1e-5)


@pytest.mark.parametrize(
    "attend",
    [
        functools.partial(axial_attention, axis=1),
        functools.partial(axial_attention, axis=1, implementation="blocked"),
        functools.partial(neighborhood_attention, kernel_size=3, implementation="xla"),
        functools.partial(neighborhood_attention, kernel_size=3, implementation="blocked"),
        functools.partial(window_attention, window_size=4, implementation="xla"),
        functools.partial(window_attention, window_size=4, implementation="blocked"),
    ],
)
def test_a_scale_of_every_form_may_be_computed_and_no_image_be_refused(attend):
    line = normal(0, 1, 4, 1, 2)
    gradients = jax.grad(lambda scale: attend(line, line, line, scale=scale).sum())
    assert jax.eval_shape(gradients, 1.0).shape == ()
    with pytest.raises(ShapeError, match=r"_attention: got query \(0, 4, 1, 2\).*none.* empty"):
        attend(line[:0], line[:0], line[:0])


@pytest.mark.parametrize(
    "attend",
    [
        attention,
        attention_and_lse,
        functools.partial(axial_attention, axis=1),
        linear_attention,
        functools.partial(neighborhood_attention, kernel_size=1),
        functools.partial(ring_attention, axis_name="t"),
        functools.partial(window_attention, window_size=1),
    ],
)
def test_tokens_in_lists_are_refused(attend):
    line = normal(0, 1, 4, 1, 2)
    for i, name in enumerate(("query", "key", "value")):
        given = [line, line, line]
        given[i] = line.tolist()
        with pytest.raises(
            ShapeError, match=rf"got {name} of list\. Expected an array\. .*asarray"
        ):
            attend(*given)


@pytest.mark.parametrize("implementation", ["xla", "blocked", "cudnn", "pallas", None])
@pytest.mark.parametrize(("b", "t"), [(0, 4), (2, 0)])
def test_of_nothing_comes_nothing(implementation, b, t):
    arrays = tokens(b=b, t=t)

    def run(query, key, value):
        return attention_and_lse(query, key, value, is_causal=True, implementation=implementation)

    (y, lse), pull = jax.vjp(run, *arrays)
    assert (y.shape, lse.shape) == ((b, t, 2, 4), (b, t, 2))
    assert [x.shape for x in pull((y, lse))] == [x.shape for x in arrays]
    assert linear_attention(*arrays, is_causal=True).shape == y.shape


def test_lists_are_arrays():
    query, key, value = tokens(t=2, s=3, b=1)
    mask, bias = [[True, False, True], [True, True, True]], [[0.0, 1.0, 2.0]]
    want = attention(query, key, value, np.array(bias), np.array(mask), key_lengths=np.array([2]))
    got = attention(query, key, value, bias, mask, query_lengths=[2], key_lengths=[2])
    np.testing.assert_array_equal(got, want)
    got = linear_attention(query, key, value, mask=[True, True, False])
    want = linear_attention(query, key, value, key_lengths=[2])
    np.testing.assert_array_equal(got, want)


def test_lengths_of_few_bits():
    query, key, value = tokens(t=2, s=300, b=1)
    run = functools.partial(attention, query, key, value, implementation="blocked")
    np.testing.assert_array_equal(run(key_lengths=np.uint8([200])), run(key_lengths=[200]))


def test_transforms(attend, stands_every_transform):
    bias = normal(3, 2, 4, 4)

    def f(x, w, bias):
        query, key, value = jnp.moveaxis(x @ w, -1, 0)
        return attend(query, key, value, bias, is_causal=True)

    stands_every_transform(f, normal(0, 8, 4, 2, 3, 1), normal(1, 1, 3), bias)


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_compiles_once(implementation, compiles_once, gradients_compile_once):
    run = functools.partial(attention, implementation=implementation)
    arrays = [jnp.asarray(x) for x in tokens()]
    compiles_once(run, *arrays)
    gradients_compile_once(lambda *arrays: (run(*arrays),), *arrays)


def test_precision_reaches_both_products():
    traced = str(jax.make_jaxpr(lambda *args: attention(*args, precision="highest"))(*tokens()))
    assert traced.count("dot_general[") == 2
    assert traced.count("HIGHEST") >= 2
    assert "precision=None" not in traced


Q, K, V = tokens(n=4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((Q[0], K[0], V[0]), r"query \(4, 4, 3\).*Heads come third: x.reshape\(b, t, n, k\)"),
        ((Q[:1], K, V), r"query \(1, 4, 4, 3\), key \(2, 5, 2, 3\), value \(2, 5, 2, 4\)"),
        ((Q[..., :2], K, V), r"Expected query \(b, t, n, k\), key \(b, s, m, k\)"),
        ((Q, K[:, :4], V), r"value \(b, s, m, v\)"),
        ((Q[:, :, :3], K, V), "n a multiple of m"),
        ((Q, K[:, :, :0], V[:, :, :0]), "s, n, m, k and v at least 1"),
        ((Q, K[:, :0], V[:, :0]), "s, n, m, k and v at least 1"),
        ((Q[:, :, :0], K, V), "s, n, m, k and v at least 1"),
        ((Q, K, V[..., :0]), "s, n, m, k and v at least 1"),
        ((Q[..., :0], K[..., :0], V), "s, n, m, k and v at least 1"),
        ((Q.astype(jnp.bfloat16), K, V), "query of bfloat16, key of float32, value of float32"),
        ((Q.astype(int), K.astype(int), V.astype(int)), "one floating dtype for all three"),
        ((Q, K, V, Q), r"bias of shape \(2, 4, 4, 3\).*\(b, n, t, s\) = \(2, 4, 4, 5\)"),
        ((Q, K, V, np.zeros((1, 2, 4, 4, 5))), "bias of shape"),
        ((Q, K, V, None, np.ones((4, 4), bool)), r"mask of shape \(4, 4\).*axes of length 1"),
        ((Q, K, V, None, np.ones((4, 5))), "mask of float64.*boolean.*or pass numbers.*as bias"),
        ((Q, K, V, [[0.0], [0.0, 1.0]]), "bias of list. Expected an array"),
        ((Q, K, V, np.ones((4, 5), bool)), "bias of bool.*or pass what a query may see as mask"),
    ],
)
def test_what_is_refused(args, message):
    with pytest.raises(ShapeError, match=rf"^attention: got .*?{message}"):
        attention(*args)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": np.ones(2)}, ShapeError, r"scale of float64 and shape \(2,\).*one real number"),
        ({"scale": 1j}, ShapeError, r"scale of complex64 and shape \(\)"),
        ({"key_lengths": [3, 2, 1]}, ShapeError, r"key_lengths of int32 and shape \(3,\)"),
        ({"query_lengths": [3.0, 2.0]}, ShapeError, "query_lengths of float32.*whole numbers"),
        ({"soft_cap": 0}, ConfigError, r"soft_cap=0\..*mean soft_cap=None\?"),
        ({"soft_cap": jnp.ones(())}, ConfigError, "soft_cap=1.0.*a positive number of Python's"),
        ({"dropout_rate": 1}, ConfigError, r"dropout_rate=1\..*mean dropout_rate=0.9\?"),
        ({"dropout_rate": -0.1}, ConfigError, r"dropout_rate=-0.1\..*mean dropout_rate=0.0\?"),
    ],
)
def test_which_options_are_refused(options, error, message):
    with pytest.raises(error, match=rf"^attention: got {message}"):
        attention(Q, K, V, **options)
