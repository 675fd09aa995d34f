"""Convolutional recurrent layers against the kernels with their own parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ShapeError
from biojax.kernels.scan.convolutional import conv_gru, conv_lstm
from biojax.modules import BiRNN
from biojax.modules.convrecurrent import ConvGRU, ConvLSTM

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 5, 2)), jnp.float32)
H0, C0 = jnp.asarray(np.random.default_rng(1).standard_normal((2, 2, 4, 5, 3)), jnp.float32)
WEIGHTS = ("w_x", "w_h", "bias")


def weights(variables):
    return [variables["params"][name] for name in WEIGHTS]


@pytest.mark.parametrize("reverse", [False, True])
def test_each_is_its_kernel(reverse, with_parameters):
    layer = ConvLSTM(3, (3, 1), reverse=reverse)
    variables = with_parameters(layer, X)
    h, (h_last, c_last) = conv_lstm(X, *weights(variables), H0, reverse=reverse)
    for got, expected in zip(layer.apply(variables, X, H0), (h, h_last), strict=True):
        np.testing.assert_array_equal(got, expected)
    h, (h_last, c_last) = conv_lstm(X, *weights(variables), H0, C0, reverse=reverse)
    got = jax.tree.leaves(layer.apply(variables, X, H0, C0, method="run"))
    for g, e in zip(got, (h, h_last, c_last), strict=True):
        np.testing.assert_array_equal(g, e)
    layer = ConvGRU(3, reverse=reverse)
    variables = with_parameters(layer, X)
    expected = conv_gru(X, *weights(variables), H0, reverse=reverse)
    for g, e in zip(layer.apply(variables, X, H0), expected, strict=True):
        np.testing.assert_array_equal(g, e)


@pytest.mark.parametrize(("module", "gates"), [(ConvLSTM(3, (3, 1)), 4), (ConvGRU(3, (3, 1)), 3)])
def test_names_and_shapes_of_parameters(module, gates):
    def shapes(x):
        params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        return {name: leaf.shape for name, leaf in params.items()}

    state = {"w_h": (3, 1, 3, gates * 3), "bias": (gates * 3,)}
    assert shapes(X) == {"w_x": (3, 1, 2, gates * 3), **state}
    assert shapes(X[..., :0]) == state


def test_without_input_it_goes_on_by_itself(with_parameters):
    layer = ConvLSTM(3)
    variables = with_parameters(layer, X)
    without = {k: v for k, v in variables["params"].items() if k != "w_x"}
    h, _ = layer.apply({"params": without}, X[..., :0], H0, C0, method="run")
    expected, _ = layer.apply(variables, jnp.zeros_like(X), H0, C0, method="run")
    np.testing.assert_allclose(h, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [ConvLSTM, ConvGRU])
def test_chunks_are_the_kernel_s(layer, with_parameters):
    variables = with_parameters(layer(3), X)
    for chunk in (None, 2):
        program = jax.make_jaxpr(layer(3, chunk=chunk).apply)(variables, X)
        assert ("remat" in str(program)) == (chunk is not None)


def test_initial_weights_and_forget_bias():
    init = jax.jit(lambda: ConvLSTM(2, forget_bias=3.0).init(jax.random.key(0), X)["params"])
    params = init()
    np.testing.assert_array_equal(params["bias"], [0, 0, 3, 3, 0, 0, 0, 0])
    gates = [w.reshape(-1, 2) for w in np.split(params["w_h"], 4, axis=-1)]
    for w in gates:
        np.testing.assert_allclose(w.T @ w, np.eye(2), atol=1e-5)
    assert not np.allclose(gates[0], gates[1])
    assert params["w_x"].std() == pytest.approx((3 * 3 * 2) ** -0.5, rel=0.2)


@pytest.mark.parametrize("layer", [ConvLSTM, ConvGRU])
def test_bidirectional_is_two_runs_by_hand(layer, with_parameters):
    module = BiRNN(layer(3), layer(3, reverse=True))
    variables = with_parameters(module, X)
    h, last = module.apply(variables, X)
    forward, forward_last = layer(3).apply({"params": variables["params"]["forward"]}, X)
    backward, backward_last = layer(3).apply(
        {"params": variables["params"]["backward"]}, X[:, ::-1]
    )
    np.testing.assert_allclose(h[..., :3], forward, rtol=1e-6)
    np.testing.assert_allclose(h[..., 3:], backward[:, ::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last[..., :3], forward_last, rtol=1e-6)
    np.testing.assert_allclose(last[..., 3:], backward_last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [ConvLSTM, ConvGRU])
def test_dtypes(layer, keeps_dtypes):
    keeps_dtypes(partial(layer, 3), X)


@pytest.mark.parametrize("layer", [ConvLSTM, ConvGRU])
def test_what_is_refused(layer):
    init = layer(3, (3, 3, 3)).init
    with pytest.raises(ShapeError, match=rf"^{layer.__name__}: got kernel_size=\(3, 3, 3\)"):
        jax.eval_shape(init, jax.random.key(0), X)
