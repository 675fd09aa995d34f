"""Recurrences: values by hand, identities, gradients by finite differences, what is refused."""

import functools
import math
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from biojax.errors import ConfigError, ShapeError, UnsupportedError
from biojax.kernels import gru, linear_scan, lstm, rnn
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


# The cells.

CELLS = {"rnn": (rnn, 1), "lstm": (lstm, 4), "gru": (gru, 3)}
WEIGHTS = {
    name: (normal(0, 3, g * 2), normal(1, 2, g * 2), normal(2, g * 2))
    for name, (_, g) in CELLS.items()
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn_by_loop(x, w_x, w_h, bias, h, activation=np.tanh):
    return [h := activation(x_t @ w_x + h @ w_h + bias) for x_t in np.moveaxis(x, 1, 0)]


def lstm_by_loop(x, w_x, w_h, bias, h, c):
    states = []
    for x_t in np.moveaxis(x, 1, 0):
        i, f, g, o = np.split(x_t @ w_x + h @ w_h + bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append((h, c))
    return states


def gru_by_loop(x, w_x, w_h, bias, h, bias_n, reset):
    states = []
    for x_t in np.moveaxis(x, 1, 0):
        x_r, x_z, x_n = np.split(x_t @ w_x + bias, 3, axis=-1)
        h_r, h_z, h_n = np.split(h @ w_h, 3, axis=-1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        before = (r * h) @ np.split(w_h, 3, axis=1)[2] + bias_n
        n = np.tanh(x_n + (r * (h_n + bias_n) if reset == "after" else before))
        h = (1 - z) * n + z * h
        states.append(h)
    return states


@pytest.mark.parametrize("reverse", [False, True])
def test_the_cells_against_loops(reverse):
    x, h0, c0, bias_n = normal(5, 2, 4, 3), normal(6, 2, 2), normal(7, 2, 2), normal(8, 2)
    run = x[:, ::-1] if reverse else x

    def agrees(got, last, states):
        expected = np.stack(states, axis=1)
        expected = expected[:, ::-1] if reverse else expected
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(last, states[-1], rtol=1e-4, atol=1e-5)

    agrees(*rnn(x, *WEIGHTS["rnn"], h0, reverse=reverse), rnn_by_loop(run, *WEIGHTS["rnn"], h0))
    agrees(
        *rnn(x, *WEIGHTS["rnn"], h0, activation="relu", reverse=reverse),
        rnn_by_loop(run, *WEIGHTS["rnn"], h0, lambda x: np.maximum(x, 0)),
    )
    for reset in ("after", "before"):
        agrees(
            *gru(x, *WEIGHTS["gru"], h0, bias_n=bias_n, reset=reset, reverse=reverse),
            gru_by_loop(run, *WEIGHTS["gru"], h0, bias_n, reset),
        )
    h, (h_last, c_last) = lstm(x, *WEIGHTS["lstm"], h0, c0, reverse=reverse)
    states = lstm_by_loop(run, *WEIGHTS["lstm"], h0, c0)
    agrees(h, h_last, [h for h, _ in states])
    np.testing.assert_allclose(c_last, states[-1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"chunk": 2}], ids=str)
def test_steps_beyond_a_length_do_not_count(name, options):
    cell, _ = CELLS[name]
    x, weights, lengths = normal(5, 3, 5, 3), WEIGHTS[name], np.array([5, 2, 0])

    def scalar(x, weights):
        h, last = cell(x, *weights, lengths=lengths, **options)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in (h, *jax.tree.leaves(last))), (h, last)

    (_, (h, last)), (dx, _) = jax.value_and_grad(scalar, (0, 1), has_aux=True)(x, weights)
    alone, alone_last = cell(x[1:2, :2], *weights, reverse="reverse" in options)
    np.testing.assert_allclose(h[1, :2], alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(h[1, 2:], 0)
    np.testing.assert_array_equal(h[2], 0)
    np.testing.assert_array_equal(dx[1, 2:], 0)
    assert np.all(dx[1, :2] != 0)
    for got, want in zip(jax.tree.leaves(last), jax.tree.leaves(alone_last), strict=True):
        np.testing.assert_allclose(got[1], want[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got[2], 0)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_change_nothing_but_memory(name, reverse):
    cell, _ = CELLS[name]

    def gradients(x, weights, chunk):
        def scalar(x, weights):
            h, last = cell(x, *weights, reverse=reverse, chunk=chunk)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in (h, *jax.tree.leaves(last)))

        return jax.value_and_grad(scalar, (0, 1))(x, weights)

    x = normal(5, 2, 7, 3)
    whole = jax.tree.leaves(gradients(x, WEIGHTS[name], None))
    for got, want in zip(jax.tree.leaves(gradients(x, WEIGHTS[name], 3)), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "gates", "options"),
    [
        (rnn, 1, {}),
        (lstm, 4, {"chunk": 2}),
        (gru, 3, {"reset": "after"}),
        (gru, 3, {"reset": "before"}),
    ],
)
def test_precision_reaches_every_product(cell, gates, options):
    def loss(*values):
        return jnp.sum(cell(*values, precision="highest", **options)[0])

    values = (
        normal(5, 2, 3, 3),
        normal(0, 3, gates * 2),
        normal(1, 2, gates * 2),
        normal(2, gates * 2),
    )
    text = str(jax.make_jaxpr(jax.grad(loss, range(4)))(*values))
    assert set(re.findall(r"precision=\(?([\w.]*)", text)) == {"Precision.HIGHEST"}


@pytest.mark.parametrize("name", CELLS)
def test_long_sequences_by_chunks_take_little_memory(name, memory):
    cell, gates = CELLS[name]

    def last(chunk, *args):
        return jax.tree.leaves(cell(*args, chunk=chunk)[1])[0]

    shapes = (1, 16384, 2), (2, gates * 64), (64, gates * 64), (gates * 64,)
    whole, by_chunks = (memory(functools.partial(last, chunk), *shapes)[1] for chunk in (None, 128))
    states = 4 * 16384 * 64
    assert by_chunks < states
    assert whole > 2 * states


def test_the_order_of_the_gates():
    """One gate is opened or shut at a time, by its own part of the bias."""
    x, zeros = jnp.zeros((1, 1, 1)), jnp.zeros
    open_, shut, h0 = 50.0, -50.0, jnp.full((1, 1), 0.5)

    def of_lstm(*bias):
        _, (h, c) = lstm(
            x, zeros((1, 4)), zeros((1, 4)), jnp.array(bias), h0, jnp.full((1, 1), 3.0)
        )
        return float(h[0, 0]), float(c[0, 0])

    def of_gru(*bias):
        w_h = jnp.array([[0.0, 0.0, 100.0]])
        return float(gru(x, zeros((1, 3)), w_h, jnp.array(bias), h0)[1][0, 0])

    assert of_lstm(shut, open_, open_, open_) == pytest.approx((np.tanh(3), 3))  # keeps
    assert of_lstm(open_, shut, open_, open_) == pytest.approx((np.tanh(1), 1))  # takes tanh(g)
    assert of_lstm(open_, open_, open_, shut) == pytest.approx((0, 4))  # shows nothing
    assert of_gru(open_, open_, 0.0) == pytest.approx(0.5)  # z keeps the old state
    assert of_gru(open_, shut, 0.0) == pytest.approx(1)  # the candidate sees the old state
    assert of_gru(shut, shut, 0.0) == pytest.approx(0)  # r hides it


@pytest.mark.parametrize("name", CELLS)
def test_initial_states_are_zeros(name):
    cell, _ = CELLS[name]
    x, zeros = normal(5, 2, 3, 3), jnp.zeros((2, 2))
    given = cell(x, *WEIGHTS[name], zeros, *([zeros] if name == "lstm" else []))
    for got, want in zip(
        jax.tree.leaves(cell(x, *WEIGHTS[name])), jax.tree.leaves(given), strict=True
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", CELLS)
def test_cells_against_finite_differences(name):
    cell, _ = CELLS[name]
    weights = [w / 2 for w in WEIGHTS[name]]
    args = (normal(5, 1, 3, 3), *weights, normal(6, 1, 2))
    check_grads(jax.jit(cell), args, order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("name", "bias", "expected"),
    [
        ("rnn", [-4064], 32.0),
        ("lstm", [-4064] * 4, np.tanh(1)),
        ("gru", [-4064, -4352, -4064], 1.0),
    ],
)
def test_products_of_cells_do_not_stall(name, bias, expected):
    cell, gates = CELLS[name]
    options = {"activation": "relu"} if name == "rnn" else {}
    # The products are 4096, and less the bias 32 or -256; stalled at 256, all would be negative.
    x, w_x = jnp.ones((1, 1, 4096), jnp.bfloat16), jnp.ones((4096, gates), jnp.bfloat16)
    w_h = jnp.zeros((1, gates), jnp.bfloat16)
    h, _ = cell(x, w_x, w_h, jnp.asarray(bias, jnp.bfloat16), **options)
    assert h.dtype == jnp.bfloat16
    assert float(h[0, 0, 0]) == pytest.approx(expected, rel=1e-2)


# Transforms, and what is refused.


@both
def test_linear_scan_transforms(implementation, stands_every_transform):
    def f(b, a, h0):
        h0 = jnp.broadcast_to(h0, (b.shape[0], 2))
        h, last = linear_scan(a, b, h0, implementation=implementation)
        return jnp.concatenate([h, last[:, None]], axis=1)

    stands_every_transform(f, normal(1, 8, 3, 2), normal(0, 2), normal(2, 2))


@pytest.mark.parametrize("name", CELLS)
def test_cell_transforms(name, stands_every_transform):
    cell, _ = CELLS[name]
    stands_every_transform(lambda *args: cell(*args)[0], normal(5, 8, 3, 3), *WEIGHTS[name])


def test_compile_once(compiles_once, gradients_compile_once):
    compiles_once(linear_scan, jnp.ones(2), jnp.ones((1, 3, 2)))
    for name, (cell, _) in CELLS.items():
        given = jnp.ones((1, 3, 3)), *map(jnp.asarray, WEIGHTS[name])
        compiles_once(cell, *given)
        gradients_compile_once(cell, *given)


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


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: B[0]}, r"x \(5, 3\).*Expected x \(b, t, c\), w_x \(c, "),
        ({0: B[:, :0]}, r"x \(2, 0, 3\)"),
        ({0: B[..., :2]}, r"x \(2, 5, 2\)"),
        ({2: jnp.ones(3)}, r"w_h \(3,\)"),
        ({2: jnp.ones((2, 7))}, r"w_h \(2, 7\)"),
        ({2: jnp.ones((0, 0))}, r"w_h \(0, 0\)"),
        ({3: jnp.ones((1, 2))}, r"bias \(1, 2\).*Make the shapes agree"),
        ({0: B.astype(jnp.bfloat16)}, "x of bfloat16, w_x of float32.*one floating dtype"),
        ({3: WEIGHTS["rnn"][2].astype(np.float16)}, "bias"),
        ({0: B.astype(int)}, "x of int32"),
        ({4: jnp.ones((2, 3))}, r"h0 of float32 and shape \(2, 3\).*shape \(2, 2\)"),
        ({4: jnp.ones((2, 2)) * 1j}, "h0 of complex64"),
    ],
)
def test_what_cells_refuse(name, change, message):
    cell, _ = CELLS[name]
    args = [B, *WEIGHTS[name], jnp.zeros((2, 2))]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ShapeError, match=f"^{name}: got .*?{message}"):
        cell(*args)


def test_what_single_cells_refuse():
    with pytest.raises(ShapeError, match=r"^lstm: got c0 of float32 and shape \(2, 1\)"):
        lstm(B, *WEIGHTS["lstm"], c0=jnp.ones((2, 1)))
    with pytest.raises(ShapeError, match=r"^gru: got bias_n of float32 and shape \(1, 2\)"):
        gru(B, *WEIGHTS["gru"], bias_n=jnp.ones((1, 2)))
    with pytest.raises(ConfigError, match=r"^rnn: got activation='tanhh'.*mean 'tanh'\?"):
        rnn(B, *WEIGHTS["rnn"], activation="tanhh")
    with pytest.raises(ConfigError, match=r"^gru: got reset='befor'.*mean 'before'\?"):
        gru(B, *WEIGHTS["gru"], reset="befor")
