"""One volume over several devices: a network's logits and gradients, of which only halos move."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from biojax.kernels import avg_pool, max_pool, resize
from biojax.models import create_model

LAYOUTS = {
    "depth": ((2,), P(None, "a")),
    "depth-height": ((2, 2), P(None, "a", "b")),
    "batch-width": ((2, 2), P("a", None, None, "b")),
}
EIGHT = {
    "depth": ((8,), P(None, "a")),
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


@pytest.mark.parametrize(("name", "fields", "layouts"), VOLUMES)
def test_networks(name, fields, layouts, compiled, mesh_of, with_parameters):
    model = create_model(name, out_channels=3, **fields)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((2, 16, 8, 8, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (2, 16, 8, 8)))
    params = with_parameters(model, image)

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
        mesh = mesh_of(*sizes)
        whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, spec)
        arrays = jax.device_put((params, image, labels), (whole, split, split))
        results, collectives = compiled(step, *arrays)
        np.testing.assert_allclose(results[0], logits, atol=1e-4)
        for got, want in zip(*map(jax.tree.leaves, (results[1], gradients)), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, largest))
        assert collectives == {"all-reduce", "collective-permute"}


def test_a_network_over_explicit_axes(compiled, mesh_of, with_parameters):
    model = create_model("unet", out_channels=3, features=(4, 8), num_convs=1)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 8, 1)), jnp.float32)
    params = with_parameters(model, image)

    def step(params, image):
        def loss(params):
            logits = model.apply(params, image)
            return jnp.mean(jnp.sin(logits)), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    expected, _ = compiled(step, params, image)
    sizes, spec = LAYOUTS["batch-width"]
    mesh = mesh_of(*sizes, kind=AxisType.Explicit)
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, spec)
    arrays = jax.device_put((params, image), (whole, split))
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
def test_pooling(pool, layout, options, compiled, mesh_of):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 8, 4)), jnp.float32)
    f = partial(output_and_gradient, partial(pool, **options))
    expected, _ = compiled(f, x)
    sizes, spec = LAYOUTS[layout]
    results, collectives = compiled(f, jax.device_put(x, NamedSharding(mesh_of(*sizes), spec)))
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert collectives <= {"collective-permute"}


RESAMPLINGS = {
    f"{kernel.__name__}-{name}": (kernel, options)
    for kernel in (max_pool, avg_pool)
    for name, options in {
        "side-by-side": {"window": 2},
        "overlapping": {"window": 3, "strides": 2, "padding": 1},
        "uneven": {"window": 3, "strides": 2, "implementation": "separable"},
        "xla": {"window": 3, "strides": 2, "padding": 1, "implementation": "xla"},
    }.items()
} | {
    "doubled": (resize, {"size": 16}),
    "uneven": (resize, {"size": (3, 16, 5)}),
    "nearest": (resize, {"size": 4, "method": "nearest"}),
    "matmul": (resize, {"size": 16, "implementation": "matmul"}),
}


@pytest.mark.parametrize("name", RESAMPLINGS)
def test_pooling_and_resizing_over_explicit_axes(name, compiled, mesh_of):
    kernel, options = RESAMPLINGS[name]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 8, 4)), jnp.float32)
    f = partial(output_and_gradient, partial(kernel, **options))
    expected, _ = compiled(f, x)
    sizes, spec = LAYOUTS["batch-width"]
    mesh = mesh_of(*sizes, kind=AxisType.Explicit)
    results, _ = compiled(f, jax.device_put(x, NamedSharding(mesh, spec)))
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
        width = "b" if want.shape[3] % 2 == 0 else None
        assert jax.typeof(got).sharding.spec == P("a", None, None, width, None)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_images_of_one_shape_may_be_split_in_two_ways(kind, compiled, mesh_of):
    """What does not divide, and results that are split otherwise than the image."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.standard_normal((2, 8, 8, 8, 4)), jnp.float32) for _ in range(2))

    def f(x, y):
        one = output_and_gradient(partial(max_pool, window=3, strides=2), x)
        return one, output_and_gradient(partial(max_pool, window=3, strides=2), y)

    expected, _ = compiled(f, x, y)
    mesh = mesh_of(2, 2, kind=kind)
    for specs in ((P("a", "b"), P("b", None, "a")), (P("a", None, None, "b"), P())):
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        results, _ = compiled(f, *jax.device_put((x, y), shardings))
        for got, want in zip(*map(jax.tree.leaves, (results, expected)), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)


def output_and_gradient(kernel, x):
    y, pull = jax.vjp(kernel, x)
    return y, *pull(jnp.cos(y))
