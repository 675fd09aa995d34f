"""Patches in raster order, and fixed positions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from biojax.errors import ConfigError, ShapeError
from biojax.modules import PatchEmbed, sincos_positions, unpatch


@pytest.mark.parametrize(
    ("shape", "patch"), [((6,), 2), ((4, 6), (2, 3)), ((4, 6, 4), 2), ((2, 6, 4), (1, 3, 2))]
)
def test_tokens_are_in_raster_order_z_slowest(shape, patch):
    size = (patch,) * len(shape) if isinstance(patch, int) else patch
    grid = tuple(n // k for n, k in zip(shape, size, strict=True))
    number = np.arange(np.prod(grid), dtype=np.float32).reshape(grid)
    image = number
    for axis, k in enumerate(size):
        image = image.repeat(k, axis)
    x = np.stack([image, -image])[..., None]
    mean = jnp.full((*size, 1, 1), 1 / np.prod(size))
    params = {"proj": {"kernel": jnp.concatenate([mean, 2 * mean], -1), "bias": jnp.ones(2)}}
    tokens = PatchEmbed(2, patch).apply({"params": params}, x)
    expected = np.stack([number.ravel(), -number.ravel()])[..., None] * [1, 2] + 1
    np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=1e-5)


def test_each_token_is_one_matrix_times_its_patch(with_parameters):
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
    module = PatchEmbed(5, (2, 3))
    variables = with_parameters(module, x)
    w, bias = (variables["params"]["proj"][part] for part in ("kernel", "bias"))
    patches = x.reshape(2, 2, 2, 2, 3, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, -1)
    expected = patches @ np.asarray(w).reshape(-1, 5) + bias
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_images_that_are_spread(kind, mesh_of, with_parameters, compiled):
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 1)).astype(np.float32)
    module = PatchEmbed(3, 2)
    variables = with_parameters(module, x)
    mesh = mesh_of(2, 2, kind=kind)
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("a", "b")))
        y, sent = compiled(lambda x: module.apply(variables, x), spread)
    assert not sent
    np.testing.assert_allclose(y, module.apply(variables, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "patch"), [((6,), 2), ((4, 6), (2, 3)), ((4, 2, 6), (2, 1, 3))])
def test_patches_are_put_together_again(shape, patch):
    x = np.random.default_rng(0).standard_normal((2, *shape, 3)).astype(np.float32)
    size = (patch,) * len(shape) if isinstance(patch, int) else patch
    pixels = np.prod(size) * 3
    kernel = jnp.eye(pixels).reshape(*size, 3, pixels)  # a token is its pixels
    params = {"proj": {"kernel": kernel, "bias": jnp.zeros(pixels)}}
    tokens = jnp.asarray(PatchEmbed(int(pixels), patch).apply({"params": params}, x))
    grid = tuple(n // k for n, k in zip(shape, size, strict=True))
    np.testing.assert_allclose(unpatch(tokens, grid, patch), x, rtol=1e-6)


@pytest.mark.parametrize("grid", [(2, 2), 5])
def test_tokens_that_make_no_image(grid):
    with pytest.raises(ShapeError, match=r"^unpatch: got tokens \(1, 5, 6\) for a grid"):
        unpatch(jnp.ones((1, 5, 6)), grid, 4)


def test_dtypes(keeps_dtypes):
    keeps_dtypes(partial(PatchEmbed, 3, 2), jnp.ones((1, 4, 2)))


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (4, r"image of \(5, 8\) with patches of \(4, 4\).*Did you mean \(8, 8\)\?"),
        ((5, 3), r"Pad or crop the image\. Did you mean \(5, 9\)\?"),
        ((2, 2, 2), r"patch_size=\(2, 2, 2\).*or 2 of them"),
        (0, "patch_size=0.*each at least 1"),
    ],
)
def test_what_is_refused(patch, message):
    with pytest.raises(ShapeError, match=f"^PatchEmbed: got .*?{message}"):
        jax.eval_shape(PatchEmbed(3, patch).init, jax.random.key(0), jnp.ones((1, 5, 8, 1)))


def test_positions_by_the_formula():
    p = sincos_positions(4, 6)
    assert p.dtype == np.float32
    for t in range(4):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)
            assert p[t, 2 * i : 2 * i + 2] == pytest.approx([np.sin(angle), np.cos(angle)])
    assert sincos_positions(2, 4)[1] == pytest.approx([0.841471, 0.540302, 0.01, 0.99995], abs=1e-6)
    np.testing.assert_allclose(sincos_positions(3, 5)[2, 4], np.sin(2 / 10_000 ** (4 / 5)), 1e-6)
    # The product of two positions depends on their distance alone.
    p = sincos_positions(8, 16)
    products = p @ p.T
    np.testing.assert_allclose(products[1:, 1:], products[:-1, :-1], rtol=1e-5)


@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)])
def test_axes_share_the_features(grid):
    axes = len(grid)
    features = 4 * axes + 1
    p = sincos_positions(grid, features)
    assert p.shape == (np.prod(grid), features)
    for place, row in zip(np.ndindex(*grid), p, strict=True):
        for axis, at in enumerate(place):
            expected = sincos_positions(max(grid), 4)[at]
            np.testing.assert_allclose(row[4 * axis : 4 * axis + 4], expected, rtol=1e-6)
    np.testing.assert_array_equal(p[:, -1], 0)
    np.testing.assert_array_equal(sincos_positions((7,), 5), sincos_positions(7, 5))


@pytest.mark.parametrize(
    ("grid", "features", "error", "message"),
    [
        ((), 4, ShapeError, r"got grid=\(\)\. Expected at least one axis"),
        ((3, 0), 4, ShapeError, r"got grid=\(3, 0\)\. Expected .* each with at least one token"),
        (5, 1, ConfigError, r"got features=1 for 1 axes\. .*Did you mean features=2\?"),
        ((2, 2, 2), 5, ConfigError, r"got features=5 for 3 axes\. .*Did you mean features=6\?"),
    ],
)
def test_positions_that_are_refused(grid, features, error, message):
    with pytest.raises(error, match=f"^sincos_positions: {message}"):
        sincos_positions(grid, features)
