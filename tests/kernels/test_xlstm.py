"""Matrix and scalar memories of xLSTM: extreme gates, what must not change the result, memory."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from biojax.kernels.scan.xlstm import mlstm, mlstm_step, slstm, slstm_step

every = pytest.mark.parametrize("implementation", ["chunked", "parallel", "sequential"])


@pytest.fixture(scope="module")
def matrix(quickly):
    return jax.jit(mlstm, static_argnames=["chunk", "implementation"], compiler_options=quickly)


@pytest.fixture(scope="module")
def scalar(quickly):
    return jax.jit(slstm, compiler_options=quickly)


@pytest.fixture(scope="module")
def matrix_step(quickly):
    return jax.jit(mlstm_step, compiler_options=quickly)


@pytest.fixture(scope="module")
def scalar_step(quickly):
    return jax.jit(slstm_step, compiler_options=quickly)


def rounded(*values) -> list[np.ndarray]:
    """To bfloat16, which float32 holds without a change."""
    return [np.asarray(jnp.asarray(v, jnp.bfloat16), np.float64) for v in values]


def of_matrix(t: int, b=2, n=2, k=4, v=3) -> list[np.ndarray]:
    """query, key, value, i, f, and the state C, n and m."""
    normal = np.random.default_rng(t).standard_normal
    inputs = normal((b, t, n, k)), normal((b, t, n, k)), normal((b, t, n, v))
    gates = 2 * normal((b, t, n)), 2 * normal((b, t, n)) + 1
    return rounded(*inputs, *gates, normal((b, n, k, v)), normal((b, n, k)), normal((b, n)))


def of_scalar(t: int, b=2, n=2, k=3) -> list[np.ndarray]:
    """gates, w_h, and the state h, c, n and m."""
    rng = np.random.default_rng(t)
    normal, shape = rng.standard_normal, (b, n, k)
    state = normal(shape), normal(shape), rng.uniform(1, 2, shape), normal(shape)
    return rounded(2 * normal((b, t, n, 4, k)), normal((n, k, 4, k)) / 2, *state)


def flat_matrix(*values, **options):
    h, state = mlstm(*values[:5], state0=values[5:] or None, **options)
    return h, *state


def flat_scalar(*values, **options):
    h, state = slstm(*values[:2], state0=values[2:] or None, **options)
    return h, *state


def with_gradients(f, values, compiler_options) -> list:
    """The outputs, and the gradients of a fixed weighting of them, as one program."""

    def weighted(values):
        out = f(*values)
        weigh = np.random.default_rng(0).standard_normal
        return sum(jnp.sum(leaf * weigh(leaf.shape).astype(leaf.dtype)) for leaf in out), out

    program = jax.jit(jax.value_and_grad(weighted, has_aux=True), compiler_options=compiler_options)
    (_, outputs), gradients = program(values)
    return [*outputs, *gradients]


def test_against_finite_differences():
    values = [jnp.asarray(v, jnp.float32) for v in of_matrix(3, 1, 1, 2, 2)[:5]]
    f = jax.jit(lambda *values: mlstm(*values, chunk=2)[0])
    check_grads(f, values, order=1, modes=["rev"], atol=2e-2, rtol=2e-2)
    values = [jnp.asarray(v, jnp.float32) for v in of_scalar(3, 1, 2, 2)[:2]]
    f = jax.jit(lambda *values: slstm(*values)[0])
    check_grads(f, values, order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mlstm_by_loop(q, k, v, i, f) -> np.ndarray:
    """Without a stabiliser, as the paper begins."""
    C, n, outputs = 0.0, 0.0, []
    for t in range(q.shape[1]):
        forget, enter = sigmoid(f[:, t])[..., None], np.exp(i[:, t])[..., None]
        key = enter * k[:, t] / np.sqrt(k.shape[-1])
        C = forget[..., None] * C + key[..., None] * v[:, t, :, None]
        n = forget * n + key
        size = np.maximum(np.abs(np.sum(n * q[:, t], axis=-1)), 1)
        outputs.append(np.einsum("bnkv,bnk->bnv", C, q[:, t]) / size[..., None])
    return np.stack(outputs, axis=1)


def slstm_by_loop(gates, w_h) -> np.ndarray:
    """Without a stabiliser, as the paper begins."""
    h, c, n, outputs = np.zeros(gates[:, 0, :, 0].shape), 0.0, 0.0, []
    for t in range(gates.shape[1]):
        i, f, z, o = np.moveaxis(gates[:, t] + np.einsum("bnk,nkgj->bngj", h, w_h), 2, 0)
        c, n = (sigmoid(f) * old + np.exp(i) * new for old, new in ((c, np.tanh(z)), (n, 1)))
        h = sigmoid(o) * c / n
        outputs.append(h)
    return np.stack(outputs, axis=1)


@pytest.mark.parametrize(
    ("implementation", "size"), [("chunked", 50.0), ("parallel", 1.0), ("sequential", 50.0)]
)
def test_mlstm_at_extreme_gates(implementation, size, quickly):
    q, k, v, *_ = of_matrix(8)
    rng = np.random.default_rng(0)
    i, f = (rng.choice([-size, 0, size], (2, 8, 2)) for _ in range(2))
    values = [jnp.asarray(x, jnp.float32) for x in (q, k, v, i, f)]
    options = {"chunk": 4, "implementation": implementation}
    results = with_gradients(functools.partial(flat_matrix, **options), values, quickly)
    h, _, _, m = results[:4]
    np.testing.assert_allclose(h, mlstm_by_loop(q, k, v, i, f), rtol=1e-3, atol=1e-4)
    assert np.abs(m).max() <= 50
    assert all(np.isfinite(r).all() for r in results)


@every
def test_mlstm_beyond_what_exponentials_hold(implementation, quickly):
    """Also where a query is zero, whatever it meets."""
    q, k, v, *_ = (jnp.asarray(x, jnp.float32) for x in of_matrix(8))
    q = q.at[:, 3].set(0)

    @functools.partial(jax.jit, compiler_options=quickly)
    def run(*values):
        f = functools.partial(mlstm, chunk=4, implementation=implementation)
        h, pull = jax.vjp(lambda *values: f(*values)[0], *values)
        return h, *pull(jnp.ones_like(h))

    numbers = (1e4, 50.0), (-1e4, 50.0), (1e4, -1e4), (-1e4, -1e4), (100.0, 0.0)
    for gates in (*numbers, (-np.inf, 50.0), (50.0, -np.inf), (-np.inf, -np.inf)):
        h, *gradients = run(q, k, v, *(jnp.full(q.shape[:3], gate) for gate in gates))
        assert not np.any(h[:, 3])
        assert np.any(h[:, 4]) == (gates[0] > 0)
        assert all(np.isfinite(x).all() for x in (h, *gradients))


def test_slstm_at_extreme_gates(quickly):
    @functools.partial(jax.jit, compiler_options=quickly)
    def run(*values):
        h, pull = jax.vjp(lambda *values: slstm(*values)[0], *values)
        return h, *pull(jnp.ones_like(h))

    for size in (1.0, 50.0, 1e4):
        gates, w_h = of_scalar(8)[:2]
        gates[..., :2, :] = np.random.default_rng(0).choice([-size, 0, size], (2, 8, 2, 2, 3))
        values = jnp.asarray(gates, jnp.float32), jnp.asarray(w_h, jnp.float32)
        h, *gradients = run(*values)
        assert all(np.isfinite(x).all() for x in (h, *gradients))
        assert np.abs(h).max() <= 1
        if size <= 50:
            np.testing.assert_allclose(h, slstm_by_loop(gates, w_h), rtol=1e-3, atol=1e-4)


@every
def test_a_gate_that_forgets_all(implementation, matrix):
    """Small logarithms after a great one keep their digits."""
    q, k, v, i, f, *_ = (jnp.asarray(x, jnp.float32) for x in of_matrix(8))
    options = {"chunk": 8, "implementation": implementation}
    for gate in (-1e8, -np.inf):
        h, _ = matrix(q, k, v, i, f.at[:, 3].set(gate), **options)
        fresh, _ = matrix(q[:, 3:], k[:, 3:], v[:, 3:], i[:, 3:], f[:, 3:], **options)
        np.testing.assert_allclose(h[:, 3:], fresh, rtol=1e-4, atol=1e-5)
    empty = i.at[:, 3].set(-np.inf), f.at[:, 3].set(-np.inf)
    h, _ = matrix(q, k, v, *empty, **options)
    fresh, _ = matrix(q[:, 3:], k[:, 3:], v[:, 3:], *(gate[:, 3:] for gate in empty), **options)
    assert not np.any(h[:, 3])
    np.testing.assert_allclose(h[:, 3:], fresh, rtol=1e-4, atol=1e-5)


@every
def test_steps_and_halves_make_the_whole(implementation, matrix, matrix_step):
    values = [jnp.asarray(x, jnp.float32) for x in of_matrix(6)]
    inputs, state0 = values[:5], tuple(values[5:])
    options = {"chunk": 2, "implementation": implementation}
    whole, last = matrix(*inputs, state0=state0, **options)
    state, outputs = state0, []
    for t in range(6):
        h, state = matrix_step(state, *(x[:, t] for x in inputs))
        outputs.append(h)
    first, half = matrix(*(x[:, :3] for x in inputs), state0=state0, **options)
    second, end = matrix(*(x[:, 3:] for x in inputs), state0=half, **options)
    for h in (jnp.stack(outputs, axis=1), jnp.concatenate([first, second], axis=1)):
        np.testing.assert_allclose(h, whole, rtol=1e-4, atol=1e-5)
    for parts in (state, end):
        for got, want in zip(parts, last, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_steps_and_halves_of_slstm_make_the_whole(scalar, scalar_step):
    gates, w_h, *_ = (jnp.asarray(x, jnp.float32) for x in of_scalar(6))
    whole, last = scalar(gates, w_h)
    state = zeros = (jnp.zeros((2, 2, 3)),) * 4
    outputs = []
    for t in range(6):
        h, state = scalar_step(state, gates[:, t], w_h)
        outputs.append(h)
    first, half = scalar(gates[:, :3], w_h, state0=zeros)
    second, end = scalar(gates[:, 3:], w_h, state0=half)
    for h in (jnp.stack(outputs, axis=1), jnp.concatenate([first, second], axis=1)):
        np.testing.assert_allclose(h, whole, rtol=1e-5, atol=1e-6)
    for parts in (state, end):
        for got, want in zip(parts, last, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mlstm", "slstm"])
def test_steps_in_bfloat16(name, matrix, scalar, matrix_step, scalar_step):
    """The state stays in float32: 300 steps lose no more than the last rounding."""
    if name == "mlstm":
        inputs = [jnp.asarray(x, jnp.bfloat16) for x in of_matrix(300, 1, 1)[:5]]
        whole, last = matrix(*inputs, chunk=32)
        step, state = matrix_step, tuple(jnp.zeros_like(part) for part in last)
        weights = []
    else:
        inputs, weights = ([jnp.asarray(x, jnp.bfloat16)] for x in of_scalar(300, 1, 1)[:2])
        whole, last = scalar(*inputs, *weights)
        step, state = scalar_step, (jnp.zeros((1, 1, 3)),) * 4
    outputs = []
    for t in range(300):
        h, state = step(state, *(x[:, t] for x in inputs), *weights)
        outputs.append(h)
    got, want = (np.asarray(v, np.float64) for v in (jnp.stack(outputs, axis=1), whole))
    np.testing.assert_allclose(got, want, rtol=2**-7, atol=1e-3)
    assert whole.dtype == outputs[0].dtype == "bfloat16"
    assert all(part.dtype == "float32" for part in (*state, *last))


def test_gradients_cross_states_as_if_there_were_none(quickly):
    """Though m is a constant to them: what reads a state does not depend on its multiple."""
    inputs = [jnp.asarray(x, jnp.float32) for x in of_matrix(7)[:5]]
    recurrent = [jnp.asarray(x, jnp.float32) for x in of_scalar(7)[:2]]

    def of_halves(*values):
        _, half = mlstm(*(x[:, :3] for x in values), chunk=2)
        return (mlstm(*(x[:, 3:] for x in values), state0=half, chunk=3)[0],)

    def of_scalar_halves(gates, w_h):
        _, half = slstm(gates[:, :3], w_h)
        return (slstm(gates[:, 3:], w_h, state0=half)[0],)

    for halves, whole, values in (
        (of_halves, mlstm, inputs),
        (of_scalar_halves, slstm, recurrent),
    ):
        got = with_gradients(halves, values, quickly)
        want = with_gradients(lambda *v, f=whole: (f(*v)[0][:, 3:],), values, quickly)
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-4)


def test_h_does_not_depend_on_the_multiple(matrix):
    *inputs, C, n, m = (jnp.asarray(x, jnp.float32) for x in of_matrix(7))
    h, _ = matrix(*inputs, state0=(C, n, m), chunk=4)
    other, _ = matrix(*inputs, state0=(C * jnp.exp(-3), n * jnp.exp(-3), m + 3), chunk=4)
    np.testing.assert_allclose(other, h, rtol=1e-4, atol=1e-5)


@every
def test_steps_that_take_nothing_in_and_forget_nothing(implementation, matrix):
    values = [jnp.asarray(x, jnp.float32) for x in of_matrix(7)[:5]]
    options = {"chunk": 4, "implementation": implementation}
    h, last = matrix(*values, **options)
    there = np.array([0, 2, 3, 6, 8, 9, 10])
    between = np.setdiff1d(np.arange(11), there)
    longer = [
        jnp.zeros((2, 11, *x.shape[2:])).at[:, there].set(x).at[:, between].set(fill)
        for x, fill in zip(values, (1.0, 2.0, 3.0, -jnp.inf, jnp.inf), strict=True)
    ]
    h_longer, last_longer = matrix(*longer, **options)
    np.testing.assert_allclose(h_longer[:, there], h, rtol=1e-4, atol=1e-5)
    for got, want in zip(last_longer, last, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_scale_is_that_of_the_keys(matrix):
    query, key, *rest = (jnp.asarray(x, jnp.float32) for x in of_matrix(5)[:5])
    for scale, factor in ((0.3, 0.3), (None, 0.5)):
        h, state = matrix(query, key, *rest, scale=scale)
        expected = matrix(query, factor * key, *rest, scale=1.0)
        for got, want in zip((h, *state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_order_of_the_gates_of_slstm():
    """One gate is opened or shut at a time."""
    w_h = jnp.zeros((1, 1, 4, 1))
    state = tuple(jnp.full((1, 1, 1), x) for x in (0.0, 1.5, 2.0, 0.0))

    def of(i, f, z, o):
        h, (_, c, n, m) = slstm_step(state, jnp.array([i, f, z, o]).reshape(1, 1, 4, 1), w_h)
        return [float(x[0, 0, 0]) for x in (h, c * jnp.exp(m), n * jnp.exp(m))]

    assert of(-100.0, 100.0, 9.0, 100.0) == pytest.approx([0.75, 1.5, 2])  # keeps
    assert of(0.0, -100.0, 1.0, 100.0) == pytest.approx([np.tanh(1), np.tanh(1), 1])  # takes z
    assert of(np.log(3), 100.0, 100.0, 100.0) == pytest.approx([4.5 / 5, 4.5, 5])  # adds 3 z
    assert of(0.0, 100.0, 100.0, -100.0) == pytest.approx([0, 2.5, 3])  # shows nothing


def test_heads_of_slstm_see_themselves_alone(quickly):
    gates, w_h, *_ = (jnp.asarray(x, jnp.float32) for x in of_scalar(5))
    _, g_gates, g_w = with_gradients(lambda *v: (slstm(*v)[0][:, :, 0],), (gates, w_h), quickly)
    assert not np.any(g_gates[:, :, 1])
    assert not np.any(g_w[1])
    assert np.all(np.any(g_w[0], axis=(0, 2)))


def test_slstm_before_anything_was_taken_in(scalar, quickly):
    """And once all of it is forgotten."""
    gates, w_h, *_ = (jnp.asarray(x, jnp.float32) for x in of_scalar(5))
    shut = gates.at[:, :2, :, 0].set(-jnp.inf).at[:, 3, :, :2].set(-jnp.inf)
    h, *gradients = with_gradients(lambda *values: slstm(*values)[:1], (shut, w_h), quickly)
    assert not np.any(h[:, np.array([0, 1, 3])])
    for t in (2, 4):
        first, _ = scalar(gates[:, t : t + 1], w_h)
        np.testing.assert_allclose(h[:, t], first[:, 0], rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(g).all() for g in gradients)


def test_mlstm_transforms(stands_every_transform):
    def f(x, w):
        q, k, v = (jnp.einsum("btnk,nkj->btnj", x, part) for part in w)
        return mlstm(q, k, v, x[..., 0], x[..., 1], chunk=2)[0]

    x = jnp.asarray(of_matrix(5, 8)[0], jnp.float32)
    stands_every_transform(f, x, np.random.default_rng(9).standard_normal((3, 2, 4, 3)) / 3)


def test_slstm_transforms(stands_every_transform):
    gates, w_h, *_ = (jnp.asarray(x, jnp.float32) for x in of_scalar(5, 8))
    stands_every_transform(lambda *values: slstm(*values)[0], gates, w_h)


@pytest.mark.parametrize("implementation", ["chunked", "sequential"])
def test_mlstm_compiles_once(implementation, compiles_once, gradients_compile_once):
    values = [jnp.asarray(x, jnp.float32) for x in of_matrix(5)[:5]]
    run = functools.partial(mlstm, chunk=2, implementation=implementation)
    compiles_once(run, *values)
    gradients_compile_once(run, *values)


def test_precision_reaches_every_product():
    """Without a wish, the memories of matrices are written and read at the highest."""

    def precisions(f, *values, **options) -> set[str]:
        gradient = jax.grad(lambda *values: jnp.sum(f(*values, **options)[0]), (0, 1))
        return set(re.findall(r"precision=\(?([\w.]*)", str(jax.make_jaxpr(gradient)(*values))))

    inputs, recurrent = of_matrix(5)[:5], of_scalar(5)[:2]
    for implementation in ("chunked", "parallel", "sequential"):
        options = {"chunk": 2, "implementation": implementation}
        assert precisions(mlstm, *inputs, **options) == {"Precision.HIGHEST"}
    options = {"implementation": "sequential", "precision": "high"}
    assert precisions(mlstm, *inputs, **options) == {"Precision.HIGH"}
    assert precisions(slstm, *recurrent, chunk=2, precision="high") == {"Precision.HIGH"}


def test_slstm_compiles_once(compiles_once, gradients_compile_once):
    values = [jnp.asarray(x, jnp.float32) for x in of_scalar(5)[:2]]
    compiles_once(slstm, *values)
    gradients_compile_once(slstm, *values)


@pytest.mark.parametrize("name", ["mlstm", "slstm"])
def test_a_sharded_batch_is_not_gathered(name, mesh_of, compiled):
    if name == "slstm":
        f, values = flat_scalar, of_scalar(5, 8)
    else:
        f = functools.partial(flat_matrix, chunk=2)
        values = of_matrix(5, 8)
    values = [jnp.asarray(v, jnp.float32) for v in values]
    batched = [NamedSharding(mesh_of(8), P("a") if v.shape[0] == 8 else P()) for v in values]

    def both(*values):
        y, pull = jax.vjp(f, *values)
        return y, pull(y)

    want, _ = compiled(both, *values)
    got, collectives = compiled(both, *map(jax.device_put, values, batched))
    assert collectives <= {"all-reduce"}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["chunked", "sequential"])
def test_memory(implementation, memory):
    """Copies of inputs and outputs, some matrices of one chunk, and a state for each chunk."""
    b, t, n, k, v, q = 1, 2048, 4, 16, 16, 32
    shapes = (b, t, n, k), (b, t, n, k), (b, t, n, v), (b, t, n), (b, t, n)
    forward, backward = memory(
        functools.partial(mlstm, chunk=q, implementation=implementation), *shapes
    )
    copies = 4 * (sum(map(math.prod, shapes)) + b * t * n * v)
    of_chunk = 4 * b * n * (q * q if implementation == "chunked" else q * k * v)
    states = 4 * b * n * (k * v + k + 1) * t // q
    assert forward <= copies + 8 * of_chunk
    assert backward <= 3 * copies + 16 * of_chunk + 2 * states
    assert backward < 4 * b * t * n * k * v  # every state
