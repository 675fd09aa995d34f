"""Neighbourhood attention of an image that is spread over eight devices, and what is sent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from biojax.errors import ShapeError
from biojax.kernels import axial_attention, neighborhood_attention


def image(*sizes: int, n=1, k=2) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((1, *sizes, n, k)), jnp.float32) for _ in range(3)]


def spread(mesh, names, **options):
    """`neighborhood_attention` of whole images, over the devices of a mesh."""
    part = P(None, *names)
    run = partial(neighborhood_attention, axis_names=names, **options)
    return jax.shard_map(run, mesh=mesh, in_specs=(part,) * 3, out_specs=part)


CASES = {
    "edges": ((24, 6), ("a", None), {"kernel_size": (5, 3)}),
    "parts_of_one_halo": ((16, 6), ("a", None), {"kernel_size": (3, 4), "stride": (2, 1)}),
    "dilated": ((16, 8), ("b", "a"), {"kernel_size": (2, 3), "dilation": (2, 1)}),
    "causal": ((16, 8), ("b", "a"), {"kernel_size": 3, "is_causal": (True, False)}),
}


@pytest.mark.parametrize(
    ("name", "implementation"), [*((name, "blocked") for name in CASES), ("dilated", "xla")]
)
def test_as_on_one_device(name, implementation, mesh_of, compiled, outputs_and_gradients):
    sizes, names, options = CASES[name]
    mesh = mesh_of(8) if "b" not in names else mesh_of(2, 4)
    options = {**options, "implementation": implementation}
    run = partial(outputs_and_gradients, spread(mesh, names, **options))
    whole = partial(neighborhood_attention, **options)
    got, sent = compiled(run, *image(*sizes))
    want, _ = compiled(partial(outputs_and_gradients, whole), *image(*sizes))
    assert sent == {"collective-permute"}
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_that_is_spread_sends_nothing(kind, mesh_of, compiled):
    """Left to the compiler, on meshes of either type; lines along an axis too."""

    def both(query, key, value):
        y = neighborhood_attention(query, key, value, kernel_size=3, implementation="blocked")
        return axial_attention(y, key, value, axis=2)

    whole = [jnp.concatenate([x * i for i in range(8)]) for x in image(5, 4)]
    mesh = mesh_of(8, kind=kind)
    with jax.set_mesh(mesh):
        parts = [jax.device_put(x, NamedSharding(mesh, P("a"))) for x in whole]
        got, sent = compiled(both, *parts)
        gradients, sent_back = compiled(jax.grad(lambda *x: both(*x).sum(), (0, 1, 2)), *parts)
    assert not sent
    assert not sent_back
    want, _ = compiled(both, *whole)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)


def test_memory_of_a_device_falls_with_their_number(mesh_of):
    def bytes_of_one(mesh) -> int:
        run = spread(mesh, ("a", None, None), kernel_size=3, implementation="blocked")
        sharding = NamedSharding(mesh, P(None, "a"))
        shape = (1, 512, 16, 16, 4, 8)
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)] * 3
        found = jax.jit(run).lower(*arrays).compile().memory_analysis()
        assert found is not None
        return found.temp_size_in_bytes + found.argument_size_in_bytes

    one, eight = bytes_of_one(mesh_of(1)), bytes_of_one(mesh_of(8))
    scores = 2**24  # of one step, however many devices there are
    assert eight < one / 8 + scores


def test_parts_that_are_too_small(mesh_of):
    run = spread(mesh_of(8), ("a", None), kernel_size=5)
    with pytest.raises(ShapeError, match=r"parts of 1 voxels on each of 8 .*at least 4 voxels"):
        run(*image(8, 6))
    run = spread(mesh_of(8), ("a", None), kernel_size=2, dilation=(2, 1))
    with pytest.raises(ShapeError, match=r"parts of 3 voxels.*a multiple of the dilation"):
        run(*image(24, 6))
