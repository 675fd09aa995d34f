"""State space duality: what must not change the result, memory, what is refused."""

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

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.scan.chunks import segment_sums
from biojax.kernels.scan.ssd import ssd, ssd_step

every = pytest.mark.parametrize("implementation", ["chunked", "sequential"])


@pytest.fixture(scope="module")
def scan(quickly):
    names = ["chunk", "reverse", "implementation"]
    return jax.jit(ssd, static_argnames=names, compiler_options=quickly)


@pytest.fixture(scope="module")
def step(quickly):
    return jax.jit(ssd_step, compiler_options=quickly)


def arrays(t: int, b=2, n=4, k=3, g=2, s=5) -> list[np.ndarray]:
    """x, dt, A, B, C, D and h0, rounded to bfloat16."""
    rng = np.random.default_rng(t)
    normal = rng.standard_normal
    x, B, C = normal((b, t, n, k)), normal((b, t, g, s)), normal((b, t, g, s))
    dt, A = rng.uniform(0.05, 1, (b, t, n)), -rng.uniform(0.1, 2, n)
    values = x, dt, A, B, C, normal(n), normal((b, n, k, s))
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


@pytest.mark.parametrize("t", [1, 6, 130])
def test_segment_sums(t):
    """Each on its own: what a very negative step forgot leaves no error in the later ones."""
    x = np.random.default_rng(t).uniform(-1, 0, (2, t)).astype(np.float32)
    x[:, t // 2] = -1e8, -np.inf
    sums = np.asarray(segment_sums(jnp.asarray(x)))
    for i, j in np.ndindex(t, t):
        want = x[:, j + 1 : i + 1].sum(axis=1, dtype=np.float64) if i >= j else -np.inf
        np.testing.assert_allclose(sums[:, i, j], want, rtol=1e-5)


@every
def test_precision_reaches_every_product(implementation):
    """It is the highest without a wish."""
    values = [jnp.asarray(v, jnp.float32) for v in arrays(4)[:-1]]
    for precision, expected in ((None, "HIGHEST"), ("default", "DEFAULT")):
        options = {"chunk": 2, "implementation": implementation, "precision": precision}
        f = jax.grad(lambda *v, options=options: jnp.sum(ssd(*v, **options)[0]), range(len(values)))
        found = set(re.findall(r"precision=\(?([\w.]*)", str(jax.make_jaxpr(f)(*values))))
        sums = {"Precision.HIGHEST"} if implementation == "chunked" else set()
        assert found == {f"Precision.{expected}"} | sums


def test_against_finite_differences():
    values = [jnp.asarray(v, jnp.float32) for v in arrays(3, 1, 2, 2, 1, 2)]

    def f(*values):
        return ssd(*values[:-1], h0=values[-1], chunk=2)

    check_grads(jax.jit(f), values, order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@every
def test_a_step_of_zero_leaves_no_trace(implementation, scan):
    """This is what fills the last chunk."""
    x, dt, A, B, C, _, h0 = (jnp.asarray(v, jnp.float32) for v in arrays(7))
    there = np.array([0, 2, 3, 6, 8, 9, 10])
    between = np.setdiff1d(np.arange(11), there)
    longer = [
        jnp.full((2, 11, *v.shape[2:]), 9.0).at[:, there].set(v).at[:, between].set(fill)
        for v, fill in ((x, 7.0), (dt, 0.0), (B, 3.0), (C, 2.0))
    ]
    options = {"h0": h0, "chunk": 4, "implementation": implementation}
    y, h = scan(x, dt, A, B, C, **options)
    y_longer, h_longer = scan(longer[0], longer[1], A, *longer[2:], **options)
    np.testing.assert_allclose(y_longer[:, there], y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(h_longer, h, rtol=1e-5, atol=1e-5)


@every
def test_a_great_step_forgets_everything_before(implementation, scan, quickly):
    """Small decays after it keep their digits, and no gradient is lost or infinite."""
    x, dt, A, B, C, _, h0 = (jnp.asarray(v, jnp.float32) for v in arrays(8))
    great, A = dt.at[:, 5].set(1e7), A - 1
    x = x.at[:, 5].set(0)

    def after(x, dt, A, B, C, h0):
        y, h = ssd(x, dt, A, B, C, h0=h0, chunk=8, implementation=implementation)
        return y[:, 6:], h

    y, h, *gradients = with_gradients(after, [x, great, A, B, C, h0], quickly)
    fresh, h_fresh = scan(x[:, 6:], dt[:, 6:], A, B[:, 6:], C[:, 6:], chunk=8)
    np.testing.assert_allclose(y, fresh, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(h, h_fresh, rtol=2e-5, atol=1e-6)
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(gradients[0][:, :5])
    assert np.any(gradients[0][:, 6:])


@every
def test_groups_are_repeated_heads(implementation, scan):
    x, dt, A, B, C, D, _ = (jnp.asarray(v, jnp.float32) for v in arrays(5))
    options = {"chunk": 2, "implementation": implementation}
    y, h = scan(x, dt, A, B, C, D, **options)
    repeated = scan(x, dt, A, *(jnp.repeat(v, 2, axis=2) for v in (B, C)), D, **options)
    np.testing.assert_allclose(repeated[0], y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(repeated[1], h, rtol=1e-5, atol=1e-5)


@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_and_halves_make_the_whole(implementation, dtype, scan, step):
    x, dt, A, B, C, D, h0 = (jnp.asarray(v, dtype) for v in arrays(6))
    h0 = h0.astype(jnp.float32)
    options = {"chunk": 2, "implementation": implementation}
    y, h_last = scan(x, dt, A, B, C, D, h0=h0, **options)
    h, outputs = h0, []
    for t in range(6):
        out, h = step(h, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        outputs.append(out)
    assert outputs[0].dtype == dtype
    assert h.dtype == "float32"
    first, h_half = scan(x[:, :3], dt[:, :3], A, B[:, :3], C[:, :3], D, h0=h0, **options)
    second, h_end = scan(x[:, 3:], dt[:, 3:], A, B[:, 3:], C[:, 3:], D, h0=h_half, **options)
    rtol = 1e-5 if dtype == "float32" else 2**-7
    for got in (jnp.stack(outputs, axis=1), jnp.concatenate([first, second], axis=1)):
        got, want = (np.asarray(v, np.float64) for v in (got, y))
        np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-5)
    for got in (h, h_end):
        np.testing.assert_allclose(got, h_last, rtol=1e-5, atol=1e-5)


def test_long_sums_do_not_stall(scan):
    ones = jnp.ones((1, 4096, 1, 1), jnp.bfloat16)
    _, h = scan(ones, ones[..., 0], jnp.zeros(1), ones, ones)
    assert h.dtype == "float32"
    assert h.ravel().tolist() == [4096.0]


def test_transforms(stands_every_transform):
    x, _, A, *_ = (jnp.asarray(v, jnp.float32) for v in arrays(5, 8, 2, 3, 1, 2))

    def f(x, A, w):
        dt = jax.nn.softplus(x[..., 0])
        B, C = (jnp.einsum("btnk,nks->bts", x, part)[:, :, None] for part in w)
        y, h = ssd(x, dt, A, B, C, chunk=2)
        return y.at[:, 0, :, :2].add(h[:, :, 0])

    stands_every_transform(f, x, A, np.random.default_rng(9).standard_normal((2, 2, 3, 2)) / 3)


@every
def test_compiles_once(implementation, compiles_once, gradients_compile_once):
    values = [jnp.asarray(v, jnp.float32) for v in arrays(5)[:-1]]
    run = functools.partial(ssd, chunk=2, implementation=implementation)
    compiles_once(run, *values)
    gradients_compile_once(run, *values)


def test_a_sharded_batch_is_not_gathered(mesh_of, compiled):
    values = [jnp.asarray(v, jnp.float32) for v in arrays(5, 8)]
    batched = [NamedSharding(mesh_of(8), P("a") if v.ndim > 1 else P()) for v in values]

    def f(*values):
        return ssd(*values[:-1], h0=values[-1], chunk=2)

    def both(*values):
        y, pull = jax.vjp(f, *values)
        return y, pull(y)

    want, none = compiled(both, *values)
    got, collectives = compiled(both, *map(jax.device_put, values, batched))
    assert not none
    assert collectives <= {"all-reduce"}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@every
def test_memory(implementation, memory):
    """Copies of inputs and outputs, some matrices of one chunk, and a state for each chunk."""
    b, t, n, k, s, q = 1, 2048, 4, 16, 16, 32
    shapes = (b, t, n, k), (b, t, n), (n,), (b, t, 1, s), (b, t, 1, s)
    f = functools.partial(ssd, chunk=q, implementation=implementation)
    forward, backward = memory(f, *shapes)
    copies = 4 * (2 * math.prod(shapes[0]) + math.prod(shapes[1]) + 2 * math.prod(shapes[3]))
    of_chunk = 4 * b * n * (q * q if implementation == "chunked" else q * k * s)
    states = 4 * b * n * k * s * t // q
    assert forward <= copies + 8 * of_chunk
    assert backward <= 3 * copies + 16 * of_chunk + 2 * states
    assert backward < 4 * b * t * n * k * s  # every state


VALUES = dict(zip(["x", "dt", "A", "B", "C", "D"], arrays(5), strict=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 5, 4)}, r"x \(2, 5, 4\), dt .*x \(b, t, n, k\)"),
        ({"x": (2, 0, 4, 3), "dt": (2, 0, 4), "B": (2, 0, 2, 5)}, "at least one step"),
        ({"dt": (2, 5, 3)}, r"dt \(2, 5, 3\)"),
        ({"A": (3,)}, r"A \(3,\)"),
        ({"A": (4, 5)}, r"A \(4, 5\)"),
        ({"B": (2, 5, 5)}, r"B \(2, 5, 5\)"),
        ({"C": (2, 5, 2, 4)}, r"C \(2, 5, 2, 4\)"),
        ({"B": (2, 5, 3, 5), "C": (2, 5, 3, 5)}, "n a multiple of g"),
        ({"B": (2, 5, 0, 5), "C": (2, 5, 0, 5)}, r"B \(2, 5, 0, 5\)"),
        ({"D": (1,)}, r"D \(1,\)"),
        ({"h0": (2, 4, 5, 3)}, r"h0 of float32 and shape \(2, 4, 5, 3\).*shape \(2, 4, 3, 5\)"),
    ],
)
def test_shapes_that_are_refused(change, message):
    values = {name: jnp.asarray(v, jnp.float32) for name, v in VALUES.items()}
    values |= {name: jnp.ones(shape) for name, shape in change.items()}
    with pytest.raises(ShapeError, match=f"^ssd: got .*?{message}"):
        ssd(**values)


def test_dtypes_and_options_that_are_refused():
    values = [jnp.asarray(v, jnp.float32) for v in arrays(5)[:-1]]
    with pytest.raises(
        ShapeError, match=r"^ssd: got x of int32, dt of float32.*wider than float32"
    ):
        ssd(values[0].astype(int), *values[1:])
    with jax.enable_x64(), pytest.raises(ShapeError, match=r"A of float64.*wider than float32"):
        ssd(values[0], values[1], jnp.asarray(values[2], jnp.float64), *values[3:])
    with pytest.raises(ConfigError, match=r"^ssd: got chunk=0\. Expected at least one step.*chunk"):
        ssd(*values, chunk=0)
    one = [v[:, 0] if v.ndim > 2 else v for v in values]
    with pytest.raises(ShapeError, match=r"^ssd_step: got x \(2, 5, 4, 3\).*x \(b, n, k\)"):
        ssd_step(jnp.zeros((2, 4, 3, 5)), values[0], *one[1:])
    with pytest.raises(ShapeError, match=r"^ssd_step: got h of float32 and shape \(2, 4, 3\)"):
        ssd_step(jnp.zeros((2, 4, 3)), *one)
