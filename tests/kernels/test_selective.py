"""Mamba's selective state space: the loop, its gradients, single steps, chunks, and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import selective_scan
from biojax.kernels.scan import selective_step
from biojax.kernels.scan.reference_selective import selective_scan as reference

C, N, G = 4, 3, 2
both = pytest.mark.parametrize("implementation", ["sequential", "associative"])


def inputs(seed: int, t: int, groups: int | None = None, softplus: bool = True) -> dict:
    rng = np.random.default_rng(seed)
    ports = (2, t, N) if groups is None else (2, t, groups, N)
    delta = rng.standard_normal((2, t, C))
    values = {
        "u": rng.standard_normal((2, t, C)),
        "delta": delta if softplus else np.abs(delta),
        "A": -rng.uniform(0.1, 2, (C, N)),
        "B": rng.standard_normal(ports),
        "C": rng.standard_normal(ports),
        "D": rng.standard_normal(C),
        "z": rng.standard_normal((2, t, C)),
        "delta_bias": rng.uniform(0, 1, C),
        "h0": rng.standard_normal((2, C, N)),
    }
    return {name: v.astype(np.float32) for name, v in values.items()}


def expected(value_and_gradients, given: dict, softplus: bool, reverse: bool):
    """The reference in float64: outputs, last state and gradients."""

    def run(given):
        B, C = (given[k] if given[k].ndim == 4 else given[k][:, :, None] for k in "BC")
        rest = [given.get(name) for name in ("A", "D", "delta_bias", "h0")]
        arrays = given["u"], given["delta"], given.get("z")
        return reference(*arrays, B, C, *rest, softplus, reverse, 1)

    with jax.enable_x64():
        given = {name: jnp.asarray(v, jnp.float64) for name, v in given.items()}
        return [np.asarray(v) for v in value_and_gradients(run, given)]


@pytest.fixture(scope="module")
def value_and_gradients(quickly):
    def call(run, given):
        def scalar(given):
            y, h = run(given)
            return jnp.sum(jnp.sin(y.astype(h.dtype))) + jnp.sum(jnp.cos(h)), (y, h)

        both = jax.jit(jax.value_and_grad(scalar, has_aux=True), compiler_options=quickly)
        (_, out), gradients = both(given)
        return *out, *(gradients[name] for name in sorted(gradients))

    return call


def check(got, want, tolerance=2e-5):
    for g, w in zip(got, want, strict=True):
        scale = max(1.0, float(np.abs(w).max()))
        np.testing.assert_allclose(
            np.asarray(g).astype(np.float64) / scale, w / scale, atol=tolerance
        )


@both
@pytest.mark.parametrize(
    ("t", "groups", "softplus", "reverse", "chunk"),
    [(1, None, True, False, None), (7, None, False, True, 3), (7, G, True, False, 3)],
)
def test_against_the_loop(implementation, t, groups, softplus, reverse, chunk, value_and_gradients):
    given = inputs(0, t, groups, softplus)
    options = {"delta_softplus": softplus, "reverse": reverse, "chunk": chunk}

    def run(given):
        return selective_scan(**given, **options, implementation=implementation)

    want = expected(value_and_gradients, given, softplus, reverse)
    check(value_and_gradients(run, given), want)


def test_gradients_against_finite_differences(quickly):
    def scalar(given):
        y, h = selective_scan(**given, delta_softplus=True, chunk=2)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(h))

    with jax.enable_x64():
        given, way = ({k: v.astype(float) for k, v in inputs(i, 3, G).items()} for i in (9, 10))
        run = jax.jit(jax.value_and_grad(scalar), compiler_options=quickly)
        _, gradients = run(given)
        ends = (run({k: v + e * way[k] for k, v in given.items()})[0] for e in (1e-5, -1e-5))
        after, before = map(float, ends)
    slope = sum(np.vdot(gradients[k], way[k]) for k in given)
    np.testing.assert_allclose((after - before) / 2e-5, slope, rtol=1e-7)


def test_what_is_left_out_counts_for_nothing():
    given = {k: v for k, v in inputs(1, 5, softplus=False).items() if k in ("u", "delta", *"ABC")}
    neutral = {"D": jnp.zeros(C), "z": jnp.full((2, 5, C), 40.0), "h0": jnp.zeros((2, C, N))}
    y, h = selective_scan(**given)
    same, same_h = selective_scan(**given, **neutral, delta_bias=jnp.zeros(C))
    np.testing.assert_allclose(same / 40, y, rtol=1e-6)
    np.testing.assert_array_equal(same_h, h)


def test_bfloat16_holds_states_in_float32():
    given = inputs(2, 9)
    half = {k: jnp.asarray(v, jnp.bfloat16) for k, v in given.items() if k != "h0"}
    y, h = selective_scan(**half, h0=given["h0"], delta_softplus=True)
    assert (y.dtype, h.dtype) == (jnp.bfloat16, jnp.float32)
    rounded = {k: np.asarray(v, np.float32) for k, v in half.items()} | {"h0": given["h0"]}
    want, want_h = selective_scan(**rounded, delta_softplus=True)
    np.testing.assert_allclose(h, want_h, rtol=1e-5)
    np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


@both
def test_extreme_steps_stay_finite(implementation, value_and_gradients):
    given = inputs(3, 6)
    given["delta"] = np.where(np.arange(6)[:, None] % 2, 1e4, -1e4) * np.ones((2, 6, C), np.float32)

    def run(given):
        return selective_scan(**given, delta_softplus=True, chunk=4, implementation=implementation)

    got = value_and_gradients(run, given)
    assert all(np.isfinite(v).all() for v in got)


@pytest.mark.parametrize("groups", [None, G])
def test_single_steps_make_the_whole(groups):
    given = inputs(4, 5, groups)
    y, last = selective_scan(**given, delta_softplus=True)
    h, outputs = jnp.asarray(given.pop("h0")), []
    per_step = ("u", "delta", "B", "C", "z")
    for t in range(5):
        now = {k: v[:, t] if k in per_step else v for k, v in given.items()}
        out, h = selective_step(h, **now, delta_softplus=True)
        outputs.append(out)
    np.testing.assert_allclose(np.stack(outputs, 1), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(h, last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("b", "t", "c"), [(1, 4096, 64), (64, 1024, 384)])
def test_the_states_of_all_steps_are_never_held(memory, b, t, c):
    n = 16

    def run(u, delta, A, B, C):
        return selective_scan(u, delta, A, B, C)[0]

    shapes = (b, t, c), (b, t, c), (c, n), (b, t, n), (b, t, n)
    forward, backward = memory(run, *shapes)
    touched = 4 * b * (3 * t * c + 2 * t * n)  # inputs and outputs
    assert forward < 2 * touched
    assert backward < 4 * touched < 4 * b * t * c * n


@both
def test_transforms(implementation, stands_every_transform):
    rng = np.random.default_rng(5)
    u, A = rng.standard_normal((8, 3, C)), -rng.uniform(0.1, 1, (C, N))
    w = rng.standard_normal((C, N))

    def f(u, A, w):
        y, h = selective_scan(
            u, u, A, u @ w, u @ w, delta_softplus=True, chunk=2, implementation=implementation
        )
        return y + h.sum((1, 2))[:, None, None]

    stands_every_transform(f, *(v.astype(np.float32) for v in (u, A, w)))


def test_compile_once(compiles_once, gradients_compile_once):
    given = [
        jnp.asarray(v)
        for k, v in inputs(6, 3, softplus=False).items()
        if k in ["u", "delta", "A", "B", "C"]
    ]
    run = functools.partial(selective_scan, chunk=2)
    compiles_once(run, *given)
    gradients_compile_once(run, *given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": np.ones((2, 5), np.float32)}, r"u \(2, 5\).*Expected u, delta and z \(b, t, c\)"),
        ({"delta": np.ones((2, 5, 3), np.float32)}, r"delta \(2, 5, 3\)"),
        ({"A": np.ones((C,), np.float32)}, r"A \(4,\).*Make the shapes agree"),
        ({"B": np.ones((2, 5, 3, N), np.float32)}, r"B \(2, 5, 3, 3\)"),
        ({"D": np.ones((3,), np.float32)}, r"D \(3,\)"),
        ({"z": np.ones((2, 4, C), np.float32)}, r"z \(2, 4, 4\)"),
        ({"h0": np.ones((2, N, C), np.float32)}, r"h0 of float32 and shape \(2, 3, 4\)"),
        ({"u": np.ones((2, 5, C), np.int32)}, "u of int32"),
    ],
)
def test_what_is_refused(change, message):
    given = {k: jnp.asarray(v) for k, v in (inputs(7, 5) | change).items()}
    with pytest.raises(ShapeError, match=f"^selective_scan: got .*?{message}"):
        selective_scan(**given)


def test_other_mistakes():
    given = {k: jnp.asarray(v) for k, v in inputs(8, 5).items()}
    with pytest.raises(ConfigError, match=r"^selective_scan: got chunk=0"):
        selective_scan(**given, chunk=0)
    with pytest.raises(ConfigError, match=r"implementation='sequental'.*mean 'sequential'\?"):
        selective_scan(**given, implementation="sequental")
    h = jnp.asarray(given.pop("h0"))
    with pytest.raises(ShapeError, match=r"^selective_step: got .*u \(2, 5, 4\)"):
        selective_step(h, **given)
