"""Normalisation: large offsets, constants, statistics and their gradients, and what is refused."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ShapeError
from biojax.kernels import batch_norm, explain, group_norm, instance_norm, layer_norm
from biojax.kernels.specs import LARGE

NORMS = {
    "instance_norm": instance_norm,
    "group_norm": partial(group_norm, num_groups=2),
    "layer_norm": layer_norm,
    "batch_norm": lambda *args, **options: batch_norm(*args, **options)[0],
}
AXES = {"instance_norm": (1, 2, 3), "batch_norm": (0, 1, 2, 3), "layer_norm": (4, 5)}


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def standard(x: np.ndarray, name: str, epsilon: float) -> np.ndarray:
    """By the formula, in float64."""
    groups = {"group_norm": 2, "layer_norm": 1}.get(name, x.shape[-1])
    x = x.astype(np.float64)
    split = x.reshape(*x.shape[:-1], groups, -1)
    axes = AXES.get(name, (1, 2, 3)) + ((5,) if name == "group_norm" else ())
    mean, var = split.mean(axes, keepdims=True), split.var(axes, keepdims=True)
    return ((split - mean) / np.sqrt(var + epsilon)).reshape(x.shape)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("offset", "tolerance"), [(0, 3e-6), (1e4, 3e-4), (1e5, 3e-3)])
def test_an_offset_is_hardly_seen(name, offset, tolerance):
    """By the sum of squares less the square of the sum not even the sign would be right."""
    x = image(2, 16, 17, 18, 6) + np.float32(offset)
    y = jax.jit(partial(NORMS[name], epsilon=1e-6))(x)
    np.testing.assert_allclose(y, standard(x, name, 1e-6), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("value", [-1000, 2.8, 3, 10])
def test_padding_and_offsets_of_some_channels(name, value):
    """Means small and large beside their deviations, and the two next to each other."""
    x = image(2, 16, 17, 18, 6)
    x[:, :3] = x[..., 4] = value
    x[..., 1] += 1000
    x[1, ..., 2:4] -= 2.8
    y = jax.jit(partial(NORMS[name], epsilon=1e-3))(x)
    np.testing.assert_allclose(y, standard(x, name, 1e-3), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", NORMS)
def test_gradients_with_an_offset(name):
    x, dy = image(2, 4, 5, 6, 6), image(2, 4, 5, 6, 6)[::-1]
    scale, bias = np.arange(1.0, 7.0, dtype=np.float32), np.ones(6, np.float32)

    @jax.jit
    def gradients(x):
        y, pull = jax.vjp(partial(NORMS[name], epsilon=1e-3), x, scale, bias)
        return pull(dy.astype(y.dtype))

    # Multiples of 1/128 are the same numbers after 10000 was added.
    x = np.round(128 * x) / 128
    for plain, moved in zip(gradients(x), gradients(x + np.float32(1e4)), strict=True):
        np.testing.assert_allclose(plain, moved, rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_constant_image_becomes_zero(name, value):
    x = jnp.full((2, 8, 9, 10, 6), value)
    y = jax.jit(partial(NORMS[name], epsilon=1e-5))(x, jnp.ones(6), jnp.full(6, 0.5))
    np.testing.assert_allclose(y, 0.5, atol=1e-4)


def test_statistics_of_a_batch_and_their_gradients():
    x = 5 + 2 * image(2, 3, 4, 5, 6)
    _, mean, var = batch_norm(jnp.asarray(x, jnp.bfloat16))
    assert mean.dtype == var.dtype == jnp.float32
    _, mean, var = batch_norm(x)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 1, 2, 3)), rtol=1e-5)
    dmean, dvar = (jax.grad(lambda x, i=i: batch_norm(x)[i].sum())(x) for i in (1, 2))
    np.testing.assert_allclose(dmean, np.full(x.shape, 1 / 120), rtol=1e-5)
    np.testing.assert_allclose(dvar, 2 / 120 * (x - x.mean((0, 1, 2, 3))), rtol=1e-4, atol=1e-6)


def test_identities():
    """Groups of one channel are instances; one group of pixels without space is a layer."""
    x, scale, bias = image(2, 3, 4, 6), image(6), image(6)[::-1]
    one_each = group_norm(x, scale, bias, num_groups=6)
    np.testing.assert_allclose(one_each, instance_norm(x, scale, bias), atol=1e-6)
    flat = x.reshape(-1, 6)
    together = group_norm(flat, scale, bias, num_groups=1, epsilon=1e-6)
    np.testing.assert_allclose(together, layer_norm(flat, scale, bias), atol=1e-6)
    single, _, _ = batch_norm(x[:1], scale, bias)
    np.testing.assert_allclose(single, instance_norm(x[:1], scale, bias), atol=1e-6)


@pytest.mark.parametrize("name", NORMS)
def test_of_mixed_dtypes_each_keeps_its_own(name):
    x = jnp.asarray(3 + image(2, 3, 4, 5, 6), jnp.bfloat16)
    scale, bias = jnp.linspace(0.5, 1.5, 6), jnp.zeros(6, jnp.float16)
    y, pull = jax.vjp(jax.jit(NORMS[name]), x, scale, bias)
    assert y.dtype == jnp.bfloat16
    assert [d.dtype for d in pull(y)] == [jnp.bfloat16, jnp.float32, jnp.float16]
    expected = standard(np.asarray(x, np.float64), name, 1e-5) * np.asarray(scale)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.03)


@pytest.mark.parametrize("name", ["instance_norm", "group_norm", "layer_norm"])
def test_an_empty_batch(name):
    """Only the mean of a batch is a mean of nothing then."""
    x, scale, bias = jnp.ones((0, 3, 4, 6)), jnp.ones(6), jnp.ones(6)
    y, pull = jax.vjp(jax.jit(NORMS[name]), x, scale, bias)
    dx, *others = pull(y)
    assert y.shape == dx.shape == x.shape
    np.testing.assert_array_equal(others, np.zeros((2, 6)))


def test_float64_is_kept():
    with jax.enable_x64():
        x = np.random.default_rng(0).standard_normal((1, 5, 5, 5, 6)) + 1e9
        y = instance_norm(x)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, standard(x, "instance_norm", 1e-5), atol=1e-6)


@pytest.mark.parametrize("name", ["instance_norm", "group_norm", "layer_norm"])
def test_transforms(name, stands_every_transform):
    x, scale, bias = (jnp.asarray(image(*shape)) for shape in ((8, 4, 3, 2, 6), (6,), (6,)))
    stands_every_transform(NORMS[name], x, scale, bias)


def test_without_scale_or_bias_in_shard_map():
    x, scale = jnp.asarray(image(8, 3, 6)), jnp.asarray(image(6))
    mesh = jax.make_mesh((8,), ("b",), (jax.sharding.AxisType.Auto,))
    spec, whole = jax.sharding.PartitionSpec("b"), jax.sharding.PartitionSpec()
    for function, given in ((instance_norm, ()), (instance_norm, (scale,))):
        specs = (spec, *(whole for _ in given))
        sharded = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=spec)

        def total(run, *arrays):
            return jnp.sin(run(*arrays)).sum()

        numbers = tuple(range(1, 2 + len(given)))
        got = jax.jit(jax.grad(partial(total), argnums=numbers), static_argnums=0)
        for a, b in zip(got(sharded, x, *given), got(function, x, *given), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_batch_is_the_whole_one_under_jit_and_the_share_under_shard_map():
    x = jnp.asarray(image(8, 3, 2))
    mesh = jax.make_mesh((8,), ("b",), (jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("b")
    placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    np.testing.assert_allclose(jax.jit(batch_norm)(placed)[0], batch_norm(x)[0], atol=1e-5)
    share = jax.shard_map(NORMS["batch_norm"], mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(jax.jit(share)(x), instance_norm(x), atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_gradients_do_not_scatter_and_keep_nothing_of_the_images_size_but_x(name, scatters):
    x, scale, bias = (jnp.asarray(image(*shape)) for shape in ((1, 4, 4, 4, 6), (6,), (6,)))
    _, pull = jax.vjp(NORMS[name], x, scale, bias)
    kept = [leaf.size for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert len(kept) == 1
    assert not scatters(pull, x)


@pytest.mark.parametrize("name", NORMS)
def test_memory_is_bounded(name, memory):
    """A few rows of the image; for each pixel's own statistics, the image once more."""
    ((image, *others),) = (spec.shapes for spec in LARGE["instance_norm"])
    size = 4 * math.prod(image)
    assert max(memory(NORMS[name], image, *others)) <= (
        1.25 * size if name == "layer_norm" else size / 32
    )


def test_compiles_once(compiles_once):
    compiles_once(instance_norm, jnp.ones((1, 3, 3, 1)), jnp.ones(1), jnp.ones(1))


def test_the_rule():
    (choice,) = explain(instance_norm, jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32))
    assert str(choice) == "instance_norm: fused (the only one)"


X = jnp.ones((1, 4, 6))


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("instance_norm", (X[0],), "at least 3 axes"),
        ("instance_norm", (X[:, :0],), r"none of \(1, -1\) empty"),
        ("group_norm", (X[:, :0],), r"none of \(1, -1\) empty"),
        ("layer_norm", (X[..., :0],), r"none of \(-1,\) empty"),
        ("batch_norm", (X[:0],), r"none of \(0, 1, -1\) empty"),
        ("batch_norm", (X[0, 0],), "at least 2 axes"),
        ("layer_norm", (X.astype(int),), "x of int32.*Convert it"),
        ("layer_norm", (X, jnp.ones(5)), r"scale of shape \(5,\) for 6 channels"),
        ("layer_norm", (X, None, jnp.ones((1, 6))), r"bias of shape \(1, 6\) for 6 channels"),
        ("layer_norm", (X, None, jnp.ones(6, int)), "bias of int32.*bias.astype"),
    ],
)
def test_what_is_refused(name, arrays, message):
    with pytest.raises(ShapeError, match=f"^{name}: got .*?{message}"):
        NORMS[name](*arrays)


def test_groups_that_do_not_divide():
    for groups, fits in ((4, 3), (0, 1)):
        with pytest.raises(ShapeError, match=f"^group_norm: got num_groups={groups}.*={fits}"):
            group_norm(X, num_groups=groups)
