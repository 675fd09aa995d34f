"""Recurrences whose time is spread over devices: the same values, and states are all that moves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from biojax.kernels import linear_scan, selective_scan

T, TIME = 24, P(None, "t")


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("t",), (AxisType.Auto,))


def normal(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def compare(scan, sharded, args, quickly):
    """Outputs and gradients of both; returns the sharded program's text."""

    def run(f):
        def scalar(args):
            y, last = f(*args)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(last)), (y, last)

        return jax.jit(jax.value_and_grad(scalar, has_aux=True), compiler_options=quickly)

    want = jax.tree.leaves(run(scan)(args))
    got = jax.tree.leaves(run(sharded)(args))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-5)
    return run(sharded).lower(args).compile().as_text()


def moved(text: str) -> list[int]:
    """Numbers in each collective's result; the scalar loss is one of them."""
    shapes = re.findall(r"= f32\[([\d,]*)\]\S* (?:collective-permute|all-reduce)\(", text)
    assert "all-gather" not in text
    assert "all-to-all" not in text
    return [int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("implementation", ["sequential", "associative"])
def test_linear_scan(mesh, quickly, implementation, reverse):
    a, b, h0 = jnp.tanh(normal(0, 2, T, 3)), normal(1, 2, T, 3), normal(2, 2, 3)
    a = a.at[:, 10].set(0)  # forgets in the midst of a part

    def scan(a, b, h0, axis_name=None):
        return linear_scan(
            a, b, h0, reverse=reverse, axis_name=axis_name, implementation=implementation
        )

    sharded = jax.shard_map(
        lambda *args: scan(*args, "t"), mesh=mesh, in_specs=(TIME, TIME, P()), out_specs=(TIME, P())
    )
    sizes = moved(compare(scan, sharded, (a, b, h0), quickly))
    assert sizes
    assert max(sizes) <= 2 * 3


@pytest.mark.parametrize("reverse", [False, True])
def test_selective_scan(mesh, quickly, reverse):
    c, n = 4, 3
    args = (
        normal(0, 2, T, c), normal(1, 2, T, c), -jnp.abs(normal(2, c, n)),
        normal(3, 2, T, n), normal(4, 2, T, n), normal(5, c), normal(6, 2, T, c), normal(7, c),
        normal(8, 2, c, n),
    )  # fmt: skip

    def scan(u, delta, A, B, C, D, z, bias, h0, axis_name=None):
        options = {"delta_bias": bias, "delta_softplus": True, "h0": h0, "chunk": 2}
        return selective_scan(
            u, delta, A, B, C, D, z, **options, reverse=reverse, axis_name=axis_name
        )

    specs = (TIME, TIME, P(), TIME, TIME, P(), TIME, P(), P())
    sharded = jax.shard_map(
        lambda *args: scan(*args, "t"), mesh=mesh, in_specs=specs, out_specs=(TIME, P())
    )
    sizes = moved(compare(scan, sharded, args, quickly))
    assert sizes
    assert max(sizes) <= 2 * c * n
