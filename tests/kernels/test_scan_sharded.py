"""Recurrences whose time is spread over devices: the same values, and states are all that moves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from biojax.errors import ShapeError
from biojax.kernels import linear_scan, selective_scan
from biojax.kernels.scan.sharded import with_tokens_before

T, TIME = 24, P(None, "t")


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("t",), (AxisType.Auto,))


def normal(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def both(scan, sharded, args, quickly):
    """Outputs and gradients of the whole and of the parts, and the program of the parts."""

    def weighted(v):
        weights = jnp.arange(v.size).reshape(v.shape) % 7 - 2  # exact in bfloat16
        return jnp.sum(v.astype(jnp.float32) * weights)

    def compiled(f):
        def scalar(args):
            y, last = f(*args)
            return weighted(y) + weighted(last), (y, last)

        gradients = jax.jit(jax.value_and_grad(scalar, has_aux=True))
        return gradients.lower(args).compile(quickly)

    programs = [compiled(f) for f in (scan, sharded)]
    want, got = (jax.tree.leaves(program(args)) for program in programs)
    assert [v.dtype for v in got] == [v.dtype for v in want]
    return want, got, programs[1].as_text()


def close(want, got):
    """As near as dtypes allow: what is held in float32 beside bfloat16 is as near as any."""
    for w, g in zip(want, got, strict=True):
        half = w.dtype == jnp.bfloat16
        w, g = np.asarray(w, np.float32), np.asarray(g, np.float32)
        atol = 2**-8 * np.abs(w).max() if half else 2e-5
        np.testing.assert_allclose(g, w, rtol=2**-7 if half else 2e-4, atol=atol)


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
    want, got, text = both(scan, sharded, (a, b, h0), quickly)
    close(want, got)
    sizes = moved(text)
    assert sizes
    assert max(sizes) <= 2 * 3


def test_linear_scan_carries_more_than_bfloat16_holds(mesh, quickly):
    """Sums of whole numbers are exact in float32, and beyond 256 not in bfloat16."""
    rng = np.random.default_rng(0)
    signs, numbers = rng.choice([-1, 1], (2, T, 3)), rng.integers(-255, 256, (2, T, 3))
    args = *(jnp.asarray(v, jnp.bfloat16) for v in (signs, numbers)), jnp.ones((2, 3))
    sharded = jax.shard_map(
        lambda a, b, h0: linear_scan(a, b, h0, axis_name="t"),
        mesh=mesh,
        in_specs=(TIME, TIME, P()),
        out_specs=(TIME, P()),
    )
    want, got, _ = both(linear_scan, sharded, args, quickly)
    for w, g in zip(want, got, strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize(
    ("reverse", "dtype"), [(False, "float32"), (True, "float32"), (False, "bfloat16")]
)
def test_selective_scan(mesh, quickly, reverse, dtype):
    c, n = 4, 3
    u, delta, z = (normal(i, 2, T, c).astype(dtype) for i in range(3))
    B, C = (normal(i, 2, T, n).astype(dtype) for i in (3, 4))
    A, D, bias, h0 = -jnp.abs(normal(5, c, n)), normal(6, c), normal(7, c), normal(8, 2, c, n)
    args = u, delta, A, B, C, D, z, bias.astype(dtype), h0

    def scan(u, delta, A, B, C, D, z, bias, h0, axis_name=None):
        options = {"delta_bias": bias, "delta_softplus": True, "h0": h0, "chunk": 2}
        return selective_scan(
            u, delta, A, B, C, D, z, **options, reverse=reverse, axis_name=axis_name
        )

    specs = (TIME, TIME, P(), TIME, TIME, P(), TIME, P(), P())
    sharded = jax.shard_map(
        lambda *args: scan(*args, "t"), mesh=mesh, in_specs=specs, out_specs=(TIME, P())
    )
    want, got, text = both(scan, sharded, args, quickly)
    close(want, got)
    sizes = moved(text)
    assert sizes
    assert max(sizes) <= 2 * c * n


def test_parts_that_are_shorter_than_what_is_read_before_them(mesh):
    def run(x):
        return with_tokens_before("MambaBlock", x, 4, "t", reverse=False)

    spread = jax.shard_map(run, mesh=mesh, in_specs=TIME, out_specs=TIME)
    with pytest.raises(
        ShapeError,
        match=r"MambaBlock: got 2 tokens on each device and kernel_size=4\. Expected at least 3 "
        r"tokens on each device.*Did you mean kernel_size=3\?",
    ):
        jax.eval_shape(spread, jnp.zeros((1, 16, 2)))
    assert jax.eval_shape(spread, jnp.zeros((1, 24, 2))).shape == (1, 48, 2)
