"""Normalisation by name, against the formulas."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError
from biojax.modules import make_norm
from biojax.typing import Dtype


class Layer(nn.Module):
    """What `make_norm` makes, inside of a module as it must be."""

    norm: str | None
    num_groups: int = 2
    affine: bool = True
    epsilon: float | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x, train=False):
        fields = ("num_groups", "affine", "epsilon", "dtype")
        options = {field: getattr(self, field) for field in fields}
        return make_norm(self.norm, train, **options)(x)


X = np.random.default_rng(0).normal(3, 2, (2, 3, 4, 5, 6))


def standard(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon)


EXPECTED = {
    "instance": standard(X, (1, 2, 3), 1e-5),
    "group": standard(X.reshape(2, 3, 4, 5, 2, 3), (1, 2, 3, 5), 1e-5).reshape(X.shape),
    "layer": standard(X, (4,), 1e-6),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_against_the_formula(name, dtype, with_parameters):
    x, module = jnp.asarray(X, jnp.float32), Layer(name, dtype=dtype)
    variables = with_parameters(module, x)
    scale, bias = (variables["params"]["norm"][part] for part in ("scale", "bias"))
    y = jax.jit(module.apply)(variables, x)
    assert y.dtype == dtype
    assert scale.dtype == bias.dtype == jnp.float32
    tolerance = {"float32": 2e-5, "bfloat16": 2e-2}[dtype]
    expected = EXPECTED[name] * scale + bias
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance)


def test_batch_statistics_are_of_the_batch_and_are_remembered(with_parameters):
    x, module = jnp.asarray(X, jnp.float32), Layer("batch")
    variables = with_parameters(module, x)
    variables["batch_stats"]["norm"] = {"mean": jnp.full(6, 1.0), "var": jnp.full(6, 4.0)}
    scale, bias = (variables["params"]["norm"][part] for part in ("scale", "bias"))

    y, updated = module.apply(variables, x, train=True, mutable=["batch_stats"])
    expected = standard(X, (0, 1, 2, 3), 1e-5) * scale + bias
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)
    stats = updated["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.9 + 0.1 * X.mean((0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 3.6 + 0.1 * X.var((0, 1, 2, 3)), rtol=1e-5)

    y = module.apply(variables, x)
    expected = (X - 1) / np.sqrt(4 + 1e-5) * scale + bias
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_without_scale_and_bias(name):
    x, module = jnp.asarray(X, jnp.float32), Layer(name, affine=False)
    y, variables = jax.jit(module.init_with_output)(jax.random.key(0), x)
    assert not jax.tree.leaves(variables)
    np.testing.assert_allclose(y, EXPECTED[name], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "axes"), [("layer", (4,)), ("instance", (1, 2, 3))])
def test_another_epsilon(name, axes):
    module = Layer(name, affine=False, epsilon=0.5)
    y = module.apply({}, jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(y, standard(X, axes, 0.5), rtol=2e-5, atol=2e-5)


def test_none_is_the_identity():
    assert make_norm(None)(X) is X


@pytest.mark.parametrize(("name", "same"), [("layer", True), ("instance", False)])
def test_layer_alone_does_not_depend_on_the_window(name, same, with_parameters):
    x, module = jnp.asarray(X, jnp.float32), Layer(name)
    run = jax.jit(partial(module.apply, with_parameters(module, x)))
    whole, window = run(x)[:, 1:, :2, 2:4], run(x[:, 1:, :2, 2:4])
    assert np.allclose(whole, window, atol=1e-5) is same


def test_statistics_are_held_in_float32():
    """Ones and threes: in bfloat16 their sum would stall long before the 8192nd."""
    x = jnp.where(jnp.arange(8192) % 2, 1, 3).astype(jnp.bfloat16).reshape(1, 8192, 1)
    module = Layer("instance", dtype=jnp.bfloat16)
    variables = {"params": {"norm": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}}
    y = jax.jit(module.apply)(variables, x)
    assert set(jnp.ravel(y).tolist()) == {-1.0, 1.0}


def test_what_is_refused():
    with pytest.raises(ConfigError, match=r"^make_norm: got 'layr'.*, or None.*mean 'layer'\?"):
        make_norm("layr")
    with pytest.raises(ConfigError, match=r"got num_groups=4 for 6 channels.*mean num_groups=3"):
        jax.eval_shape(Layer("group", num_groups=4).init, jax.random.key(0), X)
    with pytest.raises(ConfigError, match=r"got num_groups=0 for 6 channels.*mean num_groups=1"):
        jax.eval_shape(Layer("group", num_groups=0).init, jax.random.key(0), X)
