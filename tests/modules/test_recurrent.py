"""Recurrent layers against the kernels with their own parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError
from biojax.modules import GRU, LSTM, RNN, BiRNN, make_recurrent

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3)), jnp.float32)
H0 = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4)), jnp.float32)
WEIGHTS = ("w_x", "w_h", "bias")


def run(kernel, variables, x, h0=None, **options):
    params = variables["params"]
    h, last = kernel(x, *(params[name] for name in WEIGHTS), h0, **options)
    return h, last[0] if isinstance(last, tuple) else last


@pytest.mark.parametrize(
    ("module", "kernel", "options"),
    [
        (RNN(4), kernels.rnn, {}),
        (RNN(4, activation="relu", reverse=True), kernels.rnn, {"activation": "relu"}),
        (LSTM(4), kernels.lstm, {}),
        (LSTM(4, reverse=True), kernels.lstm, {}),
        (GRU(4), kernels.gru, {"reset": "after"}),
        (GRU(4, reset="before", reverse=True), kernels.gru, {"reset": "before"}),
    ],
)
def test_each_is_its_kernel(module, kernel, options, with_parameters):
    variables = with_parameters(module, X)
    options = {**options, "reverse": module.reverse}
    if isinstance(module, GRU):
        options["bias_n"] = variables["params"]["bias_n"]
    for h0 in (None, H0):
        got = module.apply(variables, X, h0)
        expected = run(kernel, variables, X, h0, **options)
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_array_equal(g, e)


def test_reset_before_and_after_differ_by_where_r_stands(with_parameters):
    variables = with_parameters(GRU(4), X)
    after, before = (
        GRU(4, reset=reset).apply(variables, X, H0)[0] for reset in ("after", "before")
    )
    assert not np.allclose(after, before)
    variables["params"]["w_h"] = jnp.tile(jnp.eye(4), 3)  # (r * h) W = r * (h W)
    variables["params"]["bias_n"] = jnp.zeros(4)
    after, before = (
        GRU(4, reset=reset).apply(variables, X, H0)[0] for reset in ("after", "before")
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("module", "gates"), [(RNN(4), 1), (LSTM(4), 4), (GRU(4), 3)])
def test_names_and_shapes_of_parameters(module, gates):
    params = jax.eval_shape(module.init, jax.random.key(0), X)["params"]
    shapes = {"w_x": (3, gates * 4), "w_h": (4, gates * 4), "bias": (gates * 4,)}
    if gates == 3:
        shapes["bias_n"] = (4,)
    assert {name: leaf.shape for name, leaf in params.items()} == shapes


def test_initial_weights_and_forget_bias():
    params = LSTM(2).init(jax.random.key(0), X)["params"]
    np.testing.assert_array_equal(params["bias"], [0, 0, 1, 1, 0, 0, 0, 0])
    gates = np.split(params["w_h"], 4, axis=1)
    for w in gates:
        np.testing.assert_allclose(w @ w.T, np.eye(2), atol=1e-5)
    assert not np.allclose(gates[0], gates[1])
    init = LSTM(2, forget_bias=3.0).init
    bias = jax.jit(lambda: init(jax.random.key(0), X)["params"]["bias"])()
    np.testing.assert_array_equal(bias, [0, 0, 3, 3, 0, 0, 0, 0])


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_bidirectional_is_two_runs_by_hand(cell, with_parameters):
    module = make_recurrent(cell, 4, bidirectional=True)
    assert isinstance(module, BiRNN)
    variables = with_parameters(module, X)
    assert set(variables["params"]) == {"forward", "backward"}
    h, last = module.apply(variables, X)
    single = make_recurrent(cell, 4)
    forward, forward_last = single.apply({"params": variables["params"]["forward"]}, X)
    backward, backward_last = single.apply({"params": variables["params"]["backward"]}, X[:, ::-1])
    np.testing.assert_allclose(h[..., :4], forward, rtol=1e-6)
    np.testing.assert_allclose(h[..., 4:], backward[:, ::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last[:, :4], forward_last, rtol=1e-6)
    np.testing.assert_allclose(last[:, 4:], backward_last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dtypes(cell, bidirectional, keeps_dtypes):
    keeps_dtypes(partial(make_recurrent, cell, 4, bidirectional=bidirectional), X)


def test_what_is_refused():
    with pytest.raises(ConfigError, match=r"got cell='grru'. Expected one of 'rnn', 'lstm', 'gru'"):
        make_recurrent("grru", 4)
    with pytest.raises(ConfigError, match=r"Did you mean 'lstm'\?"):
        make_recurrent("lstn", 4)
    with pytest.raises(ConfigError, match=r"^gru: got reset='never'"):
        jax.eval_shape(GRU(4, reset="never").init, jax.random.key(0), X)
    with pytest.raises(ConfigError, match=r"^rnn: got activation='sigmoid'"):
        jax.eval_shape(RNN(4, activation="sigmoid").init, jax.random.key(0), X)
