"""The real-gated linear recurrent unit: its reference, decays near one, steps, what is refused."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.scan import reference_rglru
from biojax.kernels.scan.rglru import rg_lru, rg_lru_step
from biojax.kernels.specs import SPECS


@pytest.fixture(scope="module")
def unit(quickly):
    return jax.jit(rg_lru, compiler_options=quickly)


@pytest.fixture(scope="module")
def step(quickly):
    return jax.jit(rg_lru_step, compiler_options=quickly)


def arrays(t: int, b=2, c=3) -> list[np.ndarray]:
    """x, r, i, a_param and h0, rounded to bfloat16: every dtype starts from the same numbers."""
    normal = np.random.default_rng(t).standard_normal
    values = *(normal((b, t, c)) for _ in range(3)), normal(c) - 2, normal((b, c))
    return [np.asarray(jnp.asarray(v, jnp.bfloat16), np.float64) for v in values]


def with_gradients(f, values, compiler_options) -> list:
    """The outputs, and the gradients of a fixed weighting of them, as one program."""

    def scalar(values):
        out = f(*values)
        weigh = np.random.default_rng(0).standard_normal
        return sum(jnp.sum(leaf * weigh(leaf.shape).astype(leaf.dtype)) for leaf in out), out

    program = jax.jit(jax.value_and_grad(scalar, has_aux=True), compiler_options=compiler_options)
    (_, outputs), gradients = program(values)
    return [*outputs, *gradients]


@pytest.fixture(scope="module")
def expected(quickly):
    """The float64 reference, computed once for each length and direction."""

    @functools.cache
    def compute(t: int, reverse: bool) -> list[np.ndarray]:
        def f(*values):
            return reference_rglru.rg_lru(*values[:-1], 8.0, values[-1], reverse)

        with jax.enable_x64():
            values = [jnp.asarray(v) for v in arrays(t)]
            return [np.asarray(v) for v in with_gradients(f, values, quickly)]

    return compute


CASES = [
    pytest.param(spec, dtype, id=f"{spec.name}-{dtype}")
    for i, spec in enumerate(SPECS["rg_lru"])
    for dtype in ("float32", "bfloat16")[: 1 if i else 2]
]


@pytest.mark.parametrize(("spec", "dtype"), CASES)
@pytest.mark.parametrize("implementation", ["sequential", "associative"])
def test_matches_reference(spec, dtype, implementation, quickly, expected):
    def f(*values):
        return rg_lru(*values[:-1], h0=values[-1], **spec.options, implementation=implementation)

    t = spec.shapes[0][1]
    values = [jnp.asarray(v, dtype) for v in arrays(t)]
    assert [v.shape for v in values[:-1]] == list(spec.shapes)
    wanted = expected(t, spec.options.get("reverse", False))
    tolerance = 4 * float(jnp.finfo(dtype).eps) * math.sqrt(values[0].size)
    results = with_gradients(f, values, quickly)
    for i, (got, want) in enumerate(zip(results, wanted, strict=True)):
        assert got.dtype == ("float32" if i == 1 else dtype)
        error = np.abs(np.asarray(got, np.float64) - want).max() / max(1, np.abs(want).max())
        assert error <= tolerance, f"result {i}: {error:.2e} > {tolerance:.2e}"


def test_against_finite_differences():
    values = [jnp.asarray(v, jnp.float32) for v in arrays(3)]

    def f(*values):
        return rg_lru(*values[:-1], h0=values[-1], c=2.0)

    check_grads(jax.jit(f), values, order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1))
def gradient_of_one_step(r, a_param):
    one = jnp.ones((1, 1, 1))
    return rg_lru(one, jnp.full((1, 1, 1), r), 1e4 * one, a_param[None])[0].sum()


@pytest.mark.parametrize("gate", [-300.0, -100.0, -50.0, -17.0, 50.0, 1e4])
@pytest.mark.parametrize("a_param", [-300.0, -60.0, -39.0, 0.0, 50.0])
def test_the_gradient_is_right_where_the_decay_is_one(gate, a_param):
    """Against the derivative written out in float64, from a decay of 0 to one of 1."""
    log_gate = -np.logaddexp(0, -gate)
    softplus = np.logaddexp(0, a_param)
    rate = 16 * np.exp(log_gate) * softplus
    gain = np.sqrt(-np.expm1(-rate))
    by_log_rate = gain / 2 * (rate / np.expm1(min(rate, 700.0)) if rate > 0 else 1.0)
    want = (
        by_log_rate * np.exp(-np.logaddexp(0, gate)),
        by_log_rate * np.exp(-np.logaddexp(0, -a_param)) / softplus,
    )
    got = gradient_of_one_step(jnp.float32(gate), jnp.float32(a_param))
    smallest = np.sqrt(np.finfo(np.float32).tiny)  # a rate below that is 0
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2 * smallest)


def test_shut_gates_keep_the_state_for_ever(unit):
    x, _, i, a_param, h0 = (jnp.asarray(v, jnp.float32) for v in arrays(7))
    h, last = unit(x, jnp.full(x.shape, -jnp.inf), i, a_param, h0=h0)
    np.testing.assert_array_equal(h, jnp.broadcast_to(h0[:, None], h.shape))
    np.testing.assert_array_equal(last, h0)


def test_inputs_of_size_one_give_states_of_size_one(unit):
    """This is what the square root is for: var(h) = a^2 var(h) + (1 - a^2)."""
    x = jax.random.normal(jax.random.key(0), (64, 512, 2))
    wide = jnp.full(x.shape, 50.0)
    h, _ = unit(x, wide, wide, jnp.array([-4.0, 0.0]))
    np.testing.assert_allclose(jnp.std(h[:, 256:], axis=(0, 1)), 1, rtol=0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_and_halves_make_the_whole(dtype, unit, step):
    x, r, i, a_param, h0 = (jnp.asarray(v, dtype) for v in arrays(6))
    h0 = h0.astype(jnp.float32)
    whole, h_last = unit(x, r, i, a_param, h0=h0)
    h, outputs = h0, []
    for t in range(6):
        y, h = step(h, x[:, t], r[:, t], i[:, t], a_param)
        outputs.append(y)
    assert outputs[0].dtype == dtype
    assert h.dtype == h_last.dtype == "float32"
    first, half = unit(x[:, :3], r[:, :3], i[:, :3], a_param, h0=h0)
    second, end = unit(x[:, 3:], r[:, 3:], i[:, 3:], a_param, h0=half)
    rtol = 1e-5 if dtype == "float32" else 2**-7
    for got in (jnp.stack(outputs, axis=1), jnp.concatenate([first, second], axis=1)):
        got, want = (np.asarray(v, np.float64) for v in (got, whole))
        np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-6)
    for got in (h, end):
        np.testing.assert_allclose(got, h_last, rtol=1e-5, atol=1e-6)


def test_transforms(stands_every_transform):
    x, _, _, a_param, _ = (jnp.asarray(v, jnp.float32) for v in arrays(5, 8))

    def f(x, a_param, w):
        return rg_lru(x, x * w, jnp.flip(x, 2), a_param)[0]

    stands_every_transform(f, x, a_param, jnp.arange(1.0, 4.0))


def test_compiles_once(compiles_once):
    compiles_once(rg_lru, *(jnp.asarray(v, jnp.float32) for v in arrays(5)[:-1]))


def test_a_sharded_batch_is_not_gathered(mesh_of, compiled):
    values = [jnp.asarray(v, jnp.float32) for v in arrays(5, 8)]
    batched = [NamedSharding(mesh_of(8), P("a") if v.ndim > 1 else P()) for v in values]

    def both(*values):
        y, pull = jax.vjp(lambda *values: rg_lru(*values[:-1], h0=values[-1]), *values)
        return y, pull(y)

    want, _ = compiled(both, *values)
    got, collectives = compiled(both, *map(jax.device_put, values, batched))
    assert collectives <= {"all-reduce"}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


X, A = jnp.ones((2, 5, 3)), jnp.ones(3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X[0], X[0], X[0], A), r"x \(5, 3\).*x, r and i \(b, t, c\)"),
        ((X[:, :0], X[:, :0], X[:, :0], A), "at least one step"),
        ((X, X[:1], X, A), r"r \(1, 5, 3\)"),
        ((X, X, X[..., :1], A), r"i \(2, 5, 1\)"),
        ((X, X, X, A[:2]), r"a_param \(2,\)"),
        ((X.astype(int), X, X, A), "x of int32, r of float32.*none of them wider than float32"),
        ((X, X, X, A * 1j), "a_param of complex64"),
    ],
)
def test_arrays_that_are_refused(args, message):
    with pytest.raises(ShapeError, match=f"^rg_lru: got .*?{message}"):
        rg_lru(*args)


def test_options_that_are_refused():
    with pytest.raises(ShapeError, match=r"^rg_lru: got h0 of float32 and shape \(2,\)"):
        rg_lru(X, X, X, A, h0=jnp.ones(2))
    with pytest.raises(ConfigError, match=r"^rg_lru: got c=0\.0\. Expected a positive.*c=8\.0\?"):
        rg_lru(X, X, X, A, c=0.0)
    with pytest.raises(ConfigError, match="one of 'sequential'"):
        rg_lru(X, X, X, A, implementation="fast")
    with pytest.raises(ShapeError, match=r"^rg_lru_step: got x \(2, 5, 3\).*\(b, c\)"):
        rg_lru_step(jnp.ones((2, 3)), X, X, X, A)
    with pytest.raises(ShapeError, match=r"^rg_lru_step: got h of float32 and shape \(1, 3\)"):
        rg_lru_step(jnp.ones((1, 3)), X[:, 0], X[:, 0], X[:, 0], A)
