"""Mamba in both directions over a sequence that is spread over devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from biojax.errors import UnsupportedError
from biojax.modules import MambaBlock

FIELDS = {"orders": ("x", "-x"), "state_size": 3, "kernel_size": 3}


def test_a_spread_sequence_gives_the_same(quickly, with_parameters):
    mesh = jax.make_mesh((8,), ("t",), (AxisType.Auto,))
    u = jnp.asarray(np.random.default_rng(0).standard_normal((2, 24, 4)), jnp.float32)
    variables = with_parameters(MambaBlock(**FIELDS), u)
    time = P(None, "t")
    whole = MambaBlock(**FIELDS).apply
    spread = jax.shard_map(
        MambaBlock(**FIELDS, axis_name="t").apply, mesh=mesh, in_specs=(P(), time), out_specs=time
    )

    def lowered(apply, u):
        def scalar(variables, u):
            y = apply(variables, u)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

        return jax.jit(jax.value_and_grad(scalar, (0, 1), has_aux=True)).lower(variables, u)

    def moved(program) -> list[tuple[str, str]]:
        """What devices send each other, and the types of what arrives."""
        pattern = r"stablehlo\.(all_\w+|collective_\w+|reduce_scatter)\b.*?-> (tensor<[^>]*>)"
        return sorted(re.findall(pattern, program.as_text(), re.DOTALL))

    programs = [lowered(apply, u) for apply in (whole, spread)]
    want, got = (jax.tree.leaves(p.compile(quickly)(variables, u)) for p in programs)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)

    longer = lowered(spread, jax.ShapeDtypeStruct((2, 48, 4), jnp.float32))
    assert not moved(programs[0])
    assert moved(programs[1]) == moved(longer) != []  # states, halos and gradients of weights


def test_volumes_are_not_spread():
    block = MambaBlock(orders=("yx",), axis_name="t")
    with pytest.raises(UnsupportedError, match="MambaBlock: got axis_name='t' for tokens"):
        block.init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
