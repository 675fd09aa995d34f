"""Linear attention: values by hand, what must not change them, masks, memory, refusals.

Values beyond those are held against the reference in `test_against_reference.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import linear_attention


@pytest.fixture(scope="module")
def attend(quickly):
    """The function, compiled once for each set of shapes."""
    options = ["is_causal", "feature_map", "chunk"]
    return jax.jit(linear_attention, static_argnames=options, compiler_options=quickly)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(t=7, s=7, n=4, m=2, b=2) -> list[np.ndarray]:
    """A query, a key and a value."""
    return [normal(0, b, t, n, 3), normal(1, b, s, m, 3), normal(2, b, s, m, 4)]


def test_by_hand():
    query = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    key = jnp.array([-jnp.log(2.0), 2.0]).reshape(1, 2, 1, 1)
    value = jnp.array([4.0, 8.0]).reshape(1, 2, 1, 1)
    # Features of the keys are 1/2 and 3; that of a query, the only one, is divided out.
    y = linear_attention(query, key, value)
    assert y.ravel().tolist() == pytest.approx([26 / 3.5] * 2)
    y = linear_attention(query, key, value, is_causal=True)
    assert y.ravel().tolist() == pytest.approx([4, 26 / 3.5])
    y = linear_attention(query, jnp.abs(key), value, feature_map=jnp.square)
    assert float(y[0, 0, 0, 0]) == 0  # of the query 0
    assert float(y[0, 1, 0, 0]) == pytest.approx((4 * np.log(2) ** 2 + 32) / (np.log(2) ** 2 + 4))


def test_features_become_no_zero_where_they_are_small():
    query = jnp.full((1, 1, 1, 1), -40.0)
    y = linear_attention(query, query, jnp.ones((1, 1, 1, 1)))
    assert float(y[0, 0, 0, 0]) == pytest.approx(1)


def test_a_chunk_does_not_matter(quickly):
    @partial(jax.jit, compiler_options=quickly)
    def run(*args):
        def of(chunk):
            y, pull = jax.vjp(lambda *v: linear_attention(*v, is_causal=True, chunk=chunk), *args)
            return y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

        return of(None), of(2)

    want, got = run(*tokens())
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("t", "s"), [(3, 7), (7, 3)])
def test_causal_with_fewer_and_with_more_queries_than_keys(t, s, attend):
    query, key, value = tokens(t, s)
    y = attend(query, key, value, is_causal=True, chunk=2)
    last = attend(query[:, -1:], key[:, : min(t, s)], value[:, : min(t, s)])
    np.testing.assert_allclose(y[:, -1:], last, rtol=1e-5, atol=1e-6)
    assert linear_attention(query[:, :0], key, value, is_causal=True).shape == (2, 0, 4, 4)


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_hidden_is_as_if_removed(causal, attend):
    query, key, value = tokens()
    mask = np.arange(7) < 4
    without = attend(query[:, 4:], key[:, :4], value[:, :4])
    loud = np.where(mask[:, None, None], key, 1e4)
    lengths = np.array([4, 4])
    for hidden in ({"mask": mask}, {"key_lengths": lengths}):
        y = attend(query, loud, value, **hidden, is_causal=causal)
        np.testing.assert_allclose(y[:, 4:], without, rtol=1e-5)
    both = attend(query, key, value, mask=mask[::-1], key_lengths=lengths, is_causal=causal)
    np.testing.assert_allclose(both[:, 6, ::2], value[:, 3], rtol=1e-5)


def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients(quickly):
    def run(*args):
        y = linear_attention(*args, key_lengths=np.array([0, 7]), is_causal=True)
        return jnp.sum(y * y), y

    step = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True), compiler_options=quickly)
    gradients, y = step(*tokens())
    assert not np.any(y[0])
    assert np.any(y[1])
    assert all(np.isfinite(g).all() for g in gradients)
    assert not any(np.any(g[0]) for g in gradients)


def test_long_sums_do_not_stall(attend):
    ones = jnp.ones((1, 4096, 1, 1), jnp.bfloat16)
    values = ones.at[:, ::2].set(3)
    for causal in (False, True):
        y = attend(ones, ones, values, is_causal=causal)
        assert y.dtype == jnp.bfloat16
        assert float(y[0, -1, 0, 0]) == 2


def test_memory_is_linear_in_tokens(quickly):
    """Of gradients, which keep what the output alone does too, and one matrix for each chunk."""

    def scratch(t: int) -> int:
        gradients = jax.grad(lambda *x: linear_attention(*x, is_causal=True).sum(), (0, 1, 2))
        tokens = [jax.ShapeDtypeStruct((1, t, 2, 16), jnp.float32)] * 3
        analysis = jax.jit(gradients).lower(*tokens).compile(quickly).memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert scratch(2048) <= 4.5 * scratch(512) < 2 * 2048**2  # the weights would take 8 * 2048^2


def test_transforms(stands_every_transform):
    def f(x, w):
        return linear_attention(*jnp.moveaxis(x @ w, -1, 0), is_causal=True, chunk=2)

    stands_every_transform(f, normal(0, 8, 4, 2, 3, 1), normal(1, 1, 3))


def test_explicit_meshes(attend):
    mesh = jax.make_mesh((2,), ("b",), (AxisType.Explicit,))
    place = NamedSharding(mesh, P("b"))
    with jax.set_mesh(mesh):
        spread = [jax.device_put(x, place) for x in tokens()]
        y = attend(*spread, is_causal=True, chunk=2)
    assert y.sharding.spec[0] == "b"
    np.testing.assert_allclose(y, attend(*tokens(), is_causal=True), rtol=1e-5, atol=1e-6)


def test_compiles_once(compiles_once):
    compiles_once(linear_attention, *map(jnp.asarray, tokens()))


def test_precision_reaches_every_product():
    for options, count in (({}, 3), ({"is_causal": True}, 5)):
        run = jax.make_jaxpr(lambda *args, o=options: linear_attention(*args, **o))
        assert str(run(*tokens())).count("HIGHEST") == 2 * count


Q, K, V = tokens()


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((Q[0], K[0], V[0]), {}, r"query \(7, 4, 3\).*Heads come third"),
        ((Q, K[:, :3], V), {}, r"value \(b, s, m, v\)"),
        ((Q.astype(jnp.bfloat16), K, V), {}, "query of bfloat16, key of float32"),
        ((Q, K, V), {"mask": np.ones((7, 7), bool)}, r"mask of bool and shape \(7, 7\).*mask\[:,"),
        ((Q, K, V), {"mask": np.ones(7)}, "mask of float64 and shape.*a boolean mask of keys"),
        ((Q, K, V), {"key_lengths": np.ones(3, int)}, r"key_lengths of int64 and shape \(3,\)"),
        ((Q, K, V), {"key_lengths": np.ones(2)}, r"float64.*whole numbers of shape \(2,\)"),
    ],
)
def test_what_is_refused(args, options, message):
    with pytest.raises(ShapeError, match=rf"^linear_attention: got .*?{message}"):
        linear_attention(*args, **options)


def test_a_chunk_has_queries():
    with pytest.raises(ConfigError, match=r"^linear_attention: got chunk=0"):
        linear_attention(Q, K, V, chunk=0)
