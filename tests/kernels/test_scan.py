"""The linear recurrence: values by hand, identities, finite differences, what is refused."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from biojax.errors import ShapeError, UnsupportedError
from biojax.kernels import linear_scan
from biojax.kernels.scan import chunked, sequential

both = pytest.mark.parametrize("implementation", ["sequential", "associative"])
each = pytest.mark.parametrize("implementation", ["sequential", "associative", "chunked"])

# One compiled program for each shape, implementation and direction.
scan = jax.jit(linear_scan, static_argnames=["axis", "reverse", "implementation"])


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_loop(a, b, h0) -> np.ndarray:
    """Every state, (b, t, c), in double precision."""
    h = np.asarray(h0, np.result_type(b, np.float64))
    states = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return np.stack(states, axis=1)


@both
def test_by_hand(implementation):
    a = jnp.array([0.5, 2.0, 0.0, 1.0, -1.0]).reshape(1, 5, 1)
    b = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(1, 5, 1)
    h, last = scan(a, b, jnp.full((1, 1), 8.0), implementation=implementation)
    assert h.ravel().tolist() == [5.0, 12.0, 3.0, 7.0, -2.0]
    assert last.tolist() == [[-2.0]]
    h, last = scan(a, b, jnp.full((1, 1), 8.0), reverse=True, implementation=implementation)
    assert h.ravel().tolist() == [5.0, 8.0, 3.0, 1.0, -3.0]
    assert last.tolist() == [[5.0]]


@both
@pytest.mark.parametrize("t", [1, 2, 7, 13])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_against_a_loop(implementation, t, dtype):
    a, b, h0 = normal(0, 2, t, 3), normal(1, 2, t, 3), normal(2, 2, 3)
    if dtype == np.complex64:
        a, b, h0 = a + 1j * normal(3, 2, t, 3), b + 1j * normal(4, 2, t, 3), h0 * 1j
        a /= np.abs(a)  # a rotation: the state neither fades nor grows
    a, b, h0 = (v.astype(dtype) for v in (a, b, h0))
    h, last = scan(a, b, h0, implementation=implementation)
    expected = by_loop(a, b, h0)
    assert h.dtype == last.dtype == dtype
    np.testing.assert_allclose(h, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(last, expected[:, -1], rtol=2e-5, atol=2e-5)


@both
def test_a_decay_of_zero_forgets_everything_before(implementation):
    a, b, h0 = np.array(normal(0, 2, 7, 3)), normal(1, 2, 7, 3), normal(2, 2, 3)
    a[:, 4] = 0
    h, _ = scan(a, b, h0, implementation=implementation)
    fresh, _ = scan(a, np.where(np.arange(7)[:, None] < 4, 100 * b, b), -h0)
    np.testing.assert_allclose(h[:, 4:], fresh[:, 4:], rtol=1e-6)
    np.testing.assert_array_equal(h[:, 4], b[:, 4])


@both
def test_a_decay_of_one_is_a_running_sum(implementation):
    b = normal(1, 2, 13, 3)
    h, _ = scan(1.0, b, implementation=implementation)
    np.testing.assert_allclose(h, np.cumsum(b, axis=1), rtol=1e-5, atol=1e-5)


@both
def test_reverse_is_the_flipped_scan(implementation):
    a, b, h0 = normal(0, 2, 7, 3), normal(1, 2, 7, 3), normal(2, 2, 3)
    h, last = scan(a, b, h0, reverse=True, implementation=implementation)
    flipped, flipped_last = scan(a[:, ::-1], b[:, ::-1], h0, implementation=implementation)
    np.testing.assert_allclose(h, flipped[:, ::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, flipped_last, rtol=1e-5, atol=1e-6)


@both
def test_an_initial_state_is_one_more_step_in_front(implementation):
    a, b, h0 = normal(0, 2, 7, 3), normal(1, 2, 7, 3), normal(2, 2, 3)
    h, _ = scan(a, b, h0, implementation=implementation)
    a1 = np.concatenate([normal(3, 2, 1, 3), a], axis=1)
    b1 = np.concatenate([h0[:, None], b], axis=1)
    longer, _ = scan(a1, b1, implementation=implementation)
    np.testing.assert_allclose(h, longer[:, 1:], rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize(("axis", "order"), [(0, (1, 0, 2)), (2, (0, 2, 1)), (-1, (0, 2, 1))])
def test_any_axis_may_be_time(implementation, axis, order):
    a, b, h0 = normal(0, 2, 5, 3), normal(1, 2, 5, 3), normal(2, 2, 3)
    h, last = scan(a, b, h0, implementation=implementation)
    moved, moved_last = scan(
        a.transpose(order), b.transpose(order), h0, axis=axis, implementation=implementation
    )
    np.testing.assert_allclose(moved.transpose(order), h, rtol=1e-6)
    np.testing.assert_allclose(moved_last, last, rtol=1e-6)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    cut=st.sampled_from([1, 4, 7]),
    values=st.lists(st.floats(-2, 2, width=32), min_size=16, max_size=16),
    implementation=st.sampled_from(["sequential", "associative"]),
)
def test_two_halves_make_the_whole(cut, values, implementation):
    a, b = np.asarray(values, np.float32).reshape(2, 1, 8, 1)
    whole, whole_last = scan(a, b, implementation=implementation)
    first, carried = scan(a[:, :cut], b[:, :cut])
    second, last = scan(a[:, cut:], b[:, cut:], carried)
    halves = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(whole, halves, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole_last, last, rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("reverse", [False, True])
def test_linear_scan_against_finite_differences(implementation, reverse):
    f = functools.partial(linear_scan, reverse=reverse, implementation=implementation)
    a, b, h0 = normal(0, 1, 3, 2), normal(1, 1, 3, 2), normal(2, 1, 2)
    check_grads(jax.jit(f), (a, b, h0), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@each
@pytest.mark.parametrize("real", [False, True])
def test_complex_gradients(implementation, real):
    """Against a loop in JAX, whose gradients are JAX's own; a real decay has a real one."""
    b = normal(0, 1, 4, 2) + 1j * normal(1, 1, 4, 2)
    a, h0 = normal(2, 1, 4, 2), normal(3, 1, 2) + 0j
    a = a if real else a + 1j * normal(4, 1, 4, 2)

    def total(scan, *given):
        h, last = scan(*given)
        return jnp.sum(jnp.abs(h) ** 2 * jnp.arange(8).reshape(h.shape)) + jnp.sum(last).imag

    def loop(a, b, h):
        states = [h := a[:, t] * h + b[:, t] for t in range(4)]
        return jnp.stack(states, axis=1), h

    ours = functools.partial(linear_scan, implementation=implementation)
    gradients = [
        jax.jit(jax.grad(functools.partial(total, each), argnums=(0, 1, 2)))(a, b, h0)
        for each in (ours, loop)
    ]
    for got, expected in zip(*gradients, strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_second_derivatives():
    x = jnp.full((1, 3, 1), 0.5)
    second = jax.grad(lambda a: jax.grad(lambda a: linear_scan(a, x)[0].sum())(a).sum())
    # h_1 + h_2 + h_3 = 3/2 + a_2 + a_3 (1 + a_2) / 2, and a_1 meets zeros.
    np.testing.assert_allclose(second(x).ravel(), [0.0, 0.5, 0.5], rtol=1e-6)
    with pytest.raises(UnsupportedError, match="derivative of a gradient in bfloat16"):
        jax.grad(lambda a: jax.grad(lambda a: linear_scan(a, x.astype(a.dtype))[0].sum())(a).sum())(
            x.astype(jnp.bfloat16)
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_long_sums_do_not_stall(dtype):
    ones = jnp.ones((1, 4096, 1), dtype)
    h, last = scan(ones, ones, implementation="sequential")
    assert h.dtype == last.dtype == dtype
    assert last.tolist() == [[4096.0]]


@both
def test_states_are_rounded_once(implementation):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.uniform(0.9, 1, (2, 37, 3)), jnp.bfloat16) for _ in range(2))
    h, last = scan(a, b, implementation=implementation)
    expected = by_loop(np.asarray(a, np.float64), np.asarray(b, np.float64), 0.0)
    np.testing.assert_allclose(np.asarray(h, np.float64), expected, rtol=2**-8 + 1e-5)
    np.testing.assert_array_equal(last, h[:, -1])


@each
@pytest.mark.parametrize(("t", "reverse"), [(4097, False), (65_535, True), (65_536, False)])
def test_long_sequences(implementation, t, reverse, quickly):
    """Decays of magnitude one, ones that fade, and resets; the state is float32 between chunks."""
    rng = np.random.default_rng(t)
    a = rng.choice([1.0, -1.0, 0.0, 0.9, 0.999], (1, t, 8), p=[0.4, 0.4, 0.001, 0.1, 0.099])
    a, b, h0 = a.astype(np.float32), normal(1, 1, t, 8), normal(2, 1, 8)
    run = functools.partial(linear_scan, reverse=reverse, implementation=implementation)
    for dtype, rounding in ((jnp.float32, 0.0), (jnp.bfloat16, 2**-8)):
        given = [jnp.asarray(v, dtype) for v in (a, b, h0)]
        h, last = jax.jit(run, compiler_options=quickly)(*given)
        exact = [np.asarray(v, np.float64) for v in given]
        exact[:2] = [v[:, :: -1 if reverse else 1] for v in exact[:2]]
        expected = by_loop(*exact)
        size = np.abs(expected).max()
        np.testing.assert_allclose(last, expected[:, -1], rtol=rounding, atol=2e-5 * size)
        expected = expected[:, ::-1] if reverse else expected
        np.testing.assert_allclose(h, expected, rtol=rounding, atol=2e-5 * size)


@pytest.mark.parametrize("implementation", ["sequential", "chunked"])
def test_memory_is_that_of_inputs_and_outputs_and_a_chunk(implementation):
    """Gradients of two inputs need the states, and by chunks the shifted decays and the inputs."""
    x, state = jax.ShapeDtypeStruct((1, 4096, 512), "float32"), jax.ShapeDtypeStruct((1, 512), "f4")
    f = functools.partial(linear_scan, implementation=implementation)

    def temporary(f, *args):
        analysis = jax.jit(f).lower(*args).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    def gradient(a, b, h0, cotangents):
        return jax.vjp(f, a, b, h0)[1](cotangents)

    array, chunk = 4 * math.prod(x.shape), 8 * chunked.CHUNK_BYTES
    assert temporary(f, x, x, state) < chunk
    arrays = {"sequential": 1, "chunked": 3}[implementation]
    assert temporary(gradient, x, x, state, (x, state)) < arrays * array + chunk


@pytest.mark.parametrize("t", [1, 6, 7, 11])
@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_of_any_length_make_the_whole(t, reverse):
    a, b, h0 = normal(0, t, 2), normal(1, t, 2), normal(2, 2)
    for decay in (a, a[:1]):
        whole = sequential.linear_scan(decay, b, h0, reverse)
        parts = chunked.linear_scan(decay, b, h0, reverse, chunk_bytes=3 * 8)
        for one, other in zip(whole, parts, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@both
def test_linear_scan_transforms(implementation, stands_every_transform):
    def f(b, a, h0):
        h0 = jnp.broadcast_to(h0, (b.shape[0], 2))
        h, last = linear_scan(a, b, h0, implementation=implementation)
        return jnp.concatenate([h, last[:, None]], axis=1)

    stands_every_transform(f, normal(1, 8, 3, 2), normal(0, 2), normal(2, 2))


def test_compile_once(compiles_once):
    compiles_once(linear_scan, jnp.ones(2), jnp.ones((1, 3, 2)))


B = jnp.ones((2, 5, 3))


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (B, B, {"axis": 3}, r"b of shape \(2, 5, 3\) and axis=3.*Name the axis of time"),
        (B, B, {"axis": -4}, "axis=-4"),
        (B[:, :0], B[:, :0], {}, "an axis of b with at least one step"),
        (jnp.ones(()), jnp.ones(()), {"axis": 0}, r"b of shape \(\)"),
        (jnp.ones((5, 1)), jnp.ones((2, 4, 3)), {}, r"a of shape \(5, 1\) and b of shape \(2, 4"),
        (B, B[:1], {}, "a that broadcasts to b"),
        (B, B, {"h0": jnp.ones((2, 5))}, r"h0 of float32 and shape \(2, 5\).*shape \(2, 3\)"),
        (B, B, {"h0": jnp.ones((2, 3)) * 1j}, "h0 of complex64.*no dtype wider than float32"),
        (B, B.astype(int), {}, r"b of int32.*b.astype\(float32\)"),
        (B * 1j, B, {}, r"a of complex64 and b of float32.*b.astype\(complex64\)"),
        (B, B.astype(jnp.bfloat16), {}, "a of no wider type"),
    ],
)
def test_what_linear_scan_refuses(a, b, options, message):
    with pytest.raises(ShapeError, match=f"^linear_scan: got .*?{message}"):
        linear_scan(a, b, **options)
