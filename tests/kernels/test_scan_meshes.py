"""Scans and their modules over a batch that is spread over devices, by axes of both types."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from biojax.kernels.scan import (
    conv_gru,
    conv_lstm,
    gru,
    linear_scan,
    lstm,
    mlstm,
    rg_lru,
    selective_scan,
    selective_step,
    slstm,
    ssd,
)
from biojax.modules import ConvLSTM, GriffinBlock, Mamba2Block, MambaBlock, ViLBlock, VSSBlock

B, T, K = 4, 3, 2


def normal(*shape: int) -> jax.Array:
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.standard_normal(shape) / 2, jnp.float32)


def states(u, B, C, A):
    return selective_scan(u, jnp.exp(u), -jnp.exp(A), B, C, chunk=2, implementation="associative")


def heads(x, dt, B, C, A):
    return ssd(x, jnp.exp(dt), -jnp.exp(A), B, C, chunk=2)


X, W = normal(B, T, K), (normal(K, 4 * K), normal(K, 4 * K), normal(4 * K))
CLIP, KERNELS = normal(B, T, 4, K), (normal(3, K, 4 * K), normal(3, K, 4 * K), normal(4 * K))
HEADS, GATE = normal(B, T, 2, K), normal(B, T, 2)
# The function, what has a batch, and what has none.
SCANS = {
    "lstm": (lstm, (X,), W),
    "gru": (partial(gru, chunk=2), (X,), tuple(w[..., : 3 * K] for w in W)),
    "linear_scan": (partial(linear_scan, axis=2), (normal(B, K, T), normal(B, K, T)), ()),
    "selective_scan": (states, (X, X, X), (normal(K, K),)),
    "ssd": (heads, (HEADS, GATE, HEADS, HEADS), (normal(2),)),
    "rg_lru": (rg_lru, (X, X, X), (normal(K),)),
    "mlstm": (partial(mlstm, chunk=2), (HEADS, HEADS, HEADS, GATE, GATE), ()),
    "slstm": (partial(slstm, chunk=2), (normal(B, T, 1, 4, K),), (normal(1, K, 4, K),)),
    "conv_lstm": (conv_lstm, (CLIP,), KERNELS),
    "conv_gru": (partial(conv_gru, chunk=2), (CLIP,), tuple(w[..., : 3 * K] for w in KERNELS)),
}


@pytest.fixture(scope="module")
def moved(compiled):
    """Compares outputs and gradients, spread and not; returns the outputs and the collectives."""

    def run(f, arrays, mesh, specs):
        def both(*arrays):
            y, pull = jax.vjp(f, *arrays)
            return y, pull(y)

        spread = [
            jax.device_put(array, NamedSharding(mesh, spec))
            for array, spec in zip(arrays, specs, strict=True)
        ]
        with jax.set_mesh(mesh):
            got, collectives = compiled(both, *spread)
        want, _ = compiled(both, *arrays)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)
        return jax.tree.leaves(got[0]), collectives

    return run


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", SCANS)
def test_batches(name, kind, mesh_of, moved):
    """The same values, and nothing of the batch moves: only gradients of weights are added up."""
    f, batched, weights = SCANS[name]
    specs = [P("a")] * len(batched) + [P()] * len(weights)
    results, collectives = moved(f, batched + weights, mesh_of(4, kind=kind), specs)
    assert collectives <= {"all-reduce"}
    assert all(result.sharding.spec[0] == "a" for result in results)


@pytest.mark.parametrize(
    ("name", "spec", "allowed"),
    [
        ("conv_gru", P("a", None, "b"), {"all-reduce", "collective-permute"}),
        ("mlstm", P("a", None, "b"), set()),
    ],
)
def test_space_and_heads(name, spec, allowed, mesh_of, moved):
    """They stay where they are over Explicit axes, with halos of images for what moves."""
    f, batched, weights = SCANS[name]
    specs = [spec] * len(batched) + [P()] * len(weights)
    mesh = mesh_of(2, 2, kind=AxisType.Explicit)
    (y, *states), collectives = moved(f, batched + weights, mesh, specs)
    assert collectives <= allowed
    assert y.sharding.spec[:3] == ("a", None, "b")
    assert all(state.sharding.spec[:2] == ("a", "b") for state in states)


MODULES = {
    "mamba": (MambaBlock(orders=("x", "-x")), X),
    "mamba-3d": (MambaBlock(orders=("zyx", "-yxz"), merge="sum"), normal(B, 2, 1, 3, K)),
    "mamba2": (Mamba2Block(head_size=2, state_size=2), X),
    "vss": (VSSBlock(), CLIP),
    "vil": (ViLBlock(num_heads=2, block_size=2, reverse=True), CLIP),
    "griffin": (GriffinBlock(), X),
    "conv_lstm": (ConvLSTM(K), CLIP),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_how_they_are_spread(name, mesh_of):
    """Over Explicit axes that is in the types, which need no compiler."""
    module, x = MODULES[name]
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    mesh = mesh_of(4, kind=AxisType.Explicit)

    def typed(v, *spec):
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(mesh, P(*spec)))

    def both(variables, x):
        y, pull = jax.vjp(module.apply, variables, x)
        return y, pull(y)

    with jax.set_mesh(mesh):
        y, (_, dx) = jax.eval_shape(both, jax.tree.map(typed, variables), typed(x, "a"))
    for result in (*jax.tree.leaves(y), dx):
        assert result.sharding.spec[0] == "a"


def test_a_step(mesh_of):
    mesh = mesh_of(4, kind=AxisType.Explicit)
    h, u, A = normal(B, K, K), normal(B, K), -jnp.exp(normal(K, K))
    want = selective_step(h, u, u, A, u, u)
    h, u = jax.device_put((h, u), NamedSharding(mesh, P("a")))
    for g, w in zip(selective_step(h, u, u, A, u, u), want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)
        assert jax.typeof(g).sharding.spec[0] == "a"
