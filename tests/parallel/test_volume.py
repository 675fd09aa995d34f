"""One volume over several devices: a network's logits and gradients, of which only halos move."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from biojax.kernels import avg_pool, max_pool
from biojax.models import create_model

COMPILE_QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
LAYOUTS = {
    "depth": ((2,), P(None, "a")),
    "depth-height": ((2, 2), P(None, "a", "b")),
    "batch-width": ((2, 2), P("a", None, None, "b")),
}
EIGHT = {
    "depth": ((8,), P(None, "a")),
    "batch-height": ((2, 4), P("a", None, "b")),
    "batch-depth-width": ((2, 2, 2), P("a", "b", None, "c")),
}
VOLUMES = [
    pytest.param("unet", {"features": (4, 8), "num_convs": 1}, EIGHT, id="unet"),
    pytest.param(
        "unet",
        {"features": (4, 8), "num_convs": 1, "norm": "layer"},
        {"depth-height": LAYOUTS["depth-height"]},
        id="unet-layer",
    ),
    pytest.param(
        "mednext_s",
        {"features": 4, "num_blocks": (1, 1, 1), "expansion_ratio": (2, 2, 2)},
        {"batch-depth-width": EIGHT["batch-depth-width"]},
        id="mednext",
    ),
]


def place(tree, sizes, spec, kind=AxisType.Auto):
    mesh = jax.make_mesh(sizes, ("a", "b", "c")[: len(sizes)], (kind,) * len(sizes))
    return jax.device_put(tree, NamedSharding(mesh, spec))


def compiled(f, *arrays):
    """The results, and the collectives in the program."""
    program = jax.jit(f).lower(*arrays).compile(COMPILE_QUICKLY)
    results = jax.block_until_ready(program(*arrays))
    return results, set(
        re.findall(r" (all-\w+|collective-permute)(?:-start)?\(", program.as_text())
    )


@pytest.mark.parametrize(("name", "fields", "layouts"), VOLUMES)
def test_networks(name, fields, layouts):
    model = create_model(name, out_channels=3, **fields)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((2, 16, 8, 8, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (2, 16, 8, 8)))
    params = model.init(jax.random.key(0), image)

    def step(params, image, labels):
        def loss(params):
            logits = model.apply(params, image)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
            return -jnp.mean(chosen), logits

        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, gradients

    (logits, gradients), none = compiled(step, params, image, labels)
    assert not none
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    for sizes, spec in layouts.values():
        arrays = place(params, sizes, P()), *place((image, labels), sizes, spec)
        results, collectives = compiled(step, *arrays)
        np.testing.assert_allclose(results[0], logits, atol=1e-4)
        for got, want in zip(*map(jax.tree.leaves, (results[1], gradients)), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, largest))
        assert collectives == {"all-reduce", "collective-permute"}


def test_a_network_over_explicit_axes():
    model = create_model("unet", out_channels=3, features=(4, 8), num_convs=1)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 8, 1)), jnp.float32)
    params = model.init(jax.random.key(0), image)

    def step(params, image):
        def loss(params):
            logits = model.apply(params, image)
            return jnp.mean(jnp.sin(logits)), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    expected, _ = compiled(step, params, image)
    sizes, spec = LAYOUTS["batch-width"]
    arrays = (
        place(params, sizes, P(), AxisType.Explicit),
        place(image, sizes, spec, AxisType.Explicit),
    )
    results, collectives = compiled(step, *arrays)
    for got, want in zip(*map(jax.tree.leaves, (results, expected)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    assert collectives == {"all-reduce", "collective-permute"}
    assert jax.typeof(results[0][1]).sharding.spec == P("a", None, None, "b", None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"window": 2}, id="side-by-side"),
        pytest.param({"window": 3, "strides": 2, "padding": 1}, id="overlapping"),
    ],
)
def test_pooling(pool, layout, options):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 8, 4)), jnp.float32)

    def both(x):
        y, pull = jax.vjp(lambda x: pool(x, **options), x)
        return y, *pull(jnp.cos(y))

    expected, _ = compiled(both, x)
    results, collectives = compiled(both, place(x, *LAYOUTS[layout]))
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert collectives <= {"collective-permute"}
