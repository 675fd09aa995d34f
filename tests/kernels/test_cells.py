"""Recurrent cells: against loops, lengths, chunks, finite differences, what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import gru, lstm, rnn


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


@pytest.mark.parametrize("name", CELLS)
def test_cell_transforms(name, stands_every_transform):
    cell, _ = CELLS[name]
    stands_every_transform(lambda *args: cell(*args)[0], normal(5, 8, 3, 3), *WEIGHTS[name])


@pytest.mark.parametrize("name", CELLS)
def test_compile_once(name, compiles_once, gradients_compile_once):
    cell, _ = CELLS[name]
    given = jnp.ones((1, 3, 3)), *map(jnp.asarray, WEIGHTS[name])
    compiles_once(cell, *given)
    gradients_compile_once(cell, *given)


B = jnp.ones((2, 5, 3))


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
