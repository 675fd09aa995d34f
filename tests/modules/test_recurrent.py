"""Recurrent layers against the kernels with their own parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError, ShapeError
from biojax.modules import GRU, LSTM, RNN, BiRNN, StackedRNN, make_recurrent

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3)), jnp.float32)
H0 = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4)), jnp.float32)
LENGTHS = jnp.asarray([5, 2])
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
    for h0, lengths in ((None, None), (H0, LENGTHS)):
        got = module.apply(variables, X, h0, lengths=lengths)
        expected = run(kernel, variables, X, h0, lengths=lengths, **options)
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


def test_initial_weights_and_forget_bias(quickly):
    @partial(jax.jit, compiler_options=quickly)
    def init():
        usual, other = (layer.init(jax.random.key(0), X) for layer in (LSTM(2), LSTM(2, 3.0)))
        return usual["params"], other["params"]["bias"]

    params, bias = init()
    np.testing.assert_array_equal(params["bias"], [0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(bias, [0, 0, 3, 3, 0, 0, 0, 0])
    gates = np.split(params["w_h"], 4, axis=1)
    for w in gates:
        np.testing.assert_allclose(w @ w.T, np.eye(2), atol=1e-5)
    assert not np.allclose(gates[0], gates[1])


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


def test_each_direction_has_its_own_state(with_parameters, quickly):
    forward, backward = LSTM(4), LSTM(4, reverse=True)
    module = BiRNN(forward, backward)
    variables = with_parameters(module, X)
    states = (H0, -H0), (H0 / 2, H0)

    @partial(jax.jit, compiler_options=quickly)
    def both(x):
        def alone(layer, name, state):
            params = {"params": variables["params"][name]}
            return layer.apply(params, x, *state, lengths=LENGTHS, method="run")

        pair = alone(forward, "forward", states[0]), alone(backward, "backward", states[1])
        return module.apply(variables, x, *states, lengths=LENGTHS, method="run"), pair

    (h, last), ((f, f_last), (b, b_last)) = both(X)
    np.testing.assert_allclose(h, np.concatenate([f, b], axis=-1), rtol=1e-6)
    np.testing.assert_allclose(last, (f_last, b_last), rtol=1e-6)


def test_of_ragged_batches_the_steps_that_count(with_parameters, quickly):
    layers = [make_recurrent(cell, 3, bidirectional=True) for cell in ("rnn", "gru")]
    stack = StackedRNN(layers)
    variables = with_parameters(stack, X)

    @partial(jax.jit, compiler_options=quickly)
    def both(x):
        below, _ = layers[0].apply({"params": variables["params"]["layers_0"]}, x[1:, :2])
        above = layers[1].apply({"params": variables["params"]["layers_1"]}, below)
        return stack.apply(variables, x, lengths=LENGTHS), above

    (h, last), (alone, alone_last) = both(X)
    np.testing.assert_allclose(h[1:, :2], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(h[1, 2:], 0)
    np.testing.assert_allclose(last[1:], alone_last, rtol=1e-5, atol=1e-6)
    assert np.abs(h[0]).min() > 0


def test_a_sequence_may_come_in_pieces(with_parameters, quickly):
    stack = StackedRNN([RNN(4), LSTM(3), GRU(2)])
    variables = with_parameters(stack, X)

    @partial(jax.jit, compiler_options=quickly)
    def both(x):
        run = partial(stack.apply, variables, method="run")
        first, states = run(x[:, :2])
        second, states = run(x[:, 2:], *states)
        return (jnp.concatenate([first, second], axis=1), states), run(x), stack.apply(variables, x)

    pieces, whole, (h, last) = both(X)
    assert [len(state) for state in whole[1]] == [1, 2, 1]
    for got, expected in zip(*map(jax.tree.leaves, (pieces, whole)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole[0], h, rtol=1e-6)
    np.testing.assert_allclose(whole[1][-1][0], last, rtol=1e-6)


def test_dropout_is_between_layers(with_parameters, quickly):
    stack = StackedRNN([RNN(4), RNN(4)], dropout_rate=0.5)
    variables = with_parameters(stack, X)

    @partial(jax.jit, compiler_options=quickly)
    def outputs(x):
        options = {"train": True, "rngs": {"dropout": jax.random.key(0)}}
        still = stack.apply(variables, x, method="each")
        (h, _) = stack.apply(variables, x, method="run", **options)
        return still, stack.apply(variables, x, method="each", **options), h

    still, trained, h = outputs(X)
    np.testing.assert_allclose(still[0][0], trained[0][0], rtol=1e-6)
    assert not np.allclose(still[1][0], trained[1][0])
    np.testing.assert_allclose(trained[1][0], h, rtol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_chunks_are_the_kernel_s(cell, with_parameters):
    variables = with_parameters(make_recurrent(cell, 3), X)
    for chunk in (None, 2):
        program = jax.make_jaxpr(make_recurrent(cell, 3, chunk=chunk).apply)(variables, X)
        assert ("remat" in str(program)) == (chunk is not None)


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
    with pytest.raises(ConfigError, match=r"^StackedRNN: got no layers"):
        StackedRNN([]).init(jax.random.key(0), X)
    init = partial(StackedRNN([GRU(4), GRU(4)]).init, method="run")
    with pytest.raises(ShapeError, match=r"^StackedRNN: got 1 states for 2 layers"):
        jax.eval_shape(init, jax.random.key(0), X, (H0,))
