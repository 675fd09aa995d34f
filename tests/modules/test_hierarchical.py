"""Recurrence within recurrence against loops by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ShapeError
from biojax.modules import GRU, LSTM, RNN, make_recurrent
from biojax.modules.hierarchical import HierarchicalRNN

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 5, 2)), jnp.float32)


def test_rows_then_slices_then_time(with_parameters):
    rows, slices, time = GRU(3), RNN(4), LSTM(5)
    model = HierarchicalRNN([rows, slices, time])
    variables = with_parameters(model, X)
    h, last = model.apply(variables, X)
    params = [{"params": variables["params"][f"layers_{i}"]} for i in range(3)]
    volumes = []
    for volume in range(3):
        planes = []
        for plane in range(4):
            _, row = rows.apply(params[0], X[:, volume, plane])
            planes.append(row)
        _, plane = slices.apply(params[1], jnp.stack(planes, axis=1))
        volumes.append(plane)
    expected, expected_last = time.apply(params[2], jnp.stack(volumes, axis=1))
    assert h.shape == (2, 3, 5)
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, expected_last, rtol=1e-5, atol=1e-6)


def test_one_layer_is_that_layer(with_parameters):
    model = HierarchicalRNN([make_recurrent("gru", 3, bidirectional=True)])
    x = X[:, 0, 0]
    variables = with_parameters(model, x)
    inner = {"params": variables["params"]["layers_0"]}
    expected = make_recurrent("gru", 3, bidirectional=True).apply(inner, x)
    for got, want in zip(model.apply(variables, x), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_gradients_reach_every_layer(with_parameters):
    model = HierarchicalRNN([GRU(3), GRU(4)])
    variables = with_parameters(model, X[:, 0])
    gradients = jax.grad(lambda v: jnp.sum(model.apply(v, X[:, 0])[1]))(variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize("layers", [[], [GRU(3)], [GRU(3)] * 4])
def test_one_layer_for_each_axis(layers):
    with pytest.raises(ShapeError, match=r"HierarchicalRNN: got x of shape \(2, 3, 4, 5, 2\) for"):
        HierarchicalRNN(layers).init(jax.random.key(0), X)
