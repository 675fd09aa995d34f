"""Resampling: values by hand, against `jax.image`, identities, and what is refused."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError, UnsupportedError
from biojax.kernels import explain, resize
from biojax.kernels.specs import LARGE

IMPLEMENTATIONS = ("gather", "matmul")


def line(*values: float) -> jax.Array:
    """One image of one channel along one axis."""
    return jnp.asarray(values, jnp.float32).reshape(1, -1, 1)


def image(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("size", "method", "expected"),
    [
        (6, "linear", [0, 1, 3, 6, 10, 12]),
        (2, "linear", [1, 10]),
        (1, "linear", [4]),
        (9, "linear", [0, 0, 4 / 3, 8 / 3, 4, 20 / 3, 28 / 3, 12, 12]),
        (6, "nearest", [0, 0, 4, 4, 12, 12]),
        (2, "nearest", [0, 12]),
        (4, "nearest", [0, 4, 4, 12]),
        (1, "nearest", [4]),
    ],
)
def test_by_hand(implementation, size, method, expected):
    y = resize(line(0, 4, 12), size, method=method, implementation=implementation)
    np.testing.assert_allclose(y[0, :, 0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "nearest"])
@pytest.mark.parametrize("size", [(8, 3, 10), (2, 12, 4)])
def test_as_jax_image_without_antialiasing(method, size):
    x = image(2, 4, 6, 5, 3)
    expected = jax.image.resize(x, (2, *size, 3), method, antialias=False)
    np.testing.assert_allclose(resize(x, size, method=method), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_the_same_size_is_the_identity(implementation, method):
    x = image(1, 3, 4, 5, 2)
    y = resize(x, (3, 4, 5), method=method, implementation=implementation)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [(7, 2), (1, 9), (12, 12)])
def test_constants_and_ramps_are_kept(implementation, size):
    constant = resize(jnp.full((1, 4, 6, 1), 3.7), size, implementation=implementation)
    np.testing.assert_allclose(constant, 3.7, rtol=1e-6)
    ramp = jnp.arange(4.0).reshape(1, 4, 1, 1) + jnp.zeros((1, 4, 6, 1))
    at = np.clip((np.arange(size[0]) + 0.5) * 4 / size[0] - 0.5, 0, 3)
    y = resize(ramp, size, implementation=implementation)
    np.testing.assert_allclose(y[0, :, 0, 0], at, rtol=1e-6, atol=1e-6)


def test_nearest_and_back_is_the_identity():
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 2**31, (1, 3, 5, 2)), jnp.int32)
    larger = resize(labels, (9, 15), method="nearest")
    assert larger.dtype == jnp.int32
    np.testing.assert_array_equal(larger, np.repeat(np.repeat(labels, 3, 1), 3, 2))
    np.testing.assert_array_equal(resize(larger, (3, 5), method="nearest"), labels)
    assert resize(labels > 5, 2, method="nearest").dtype == jnp.bool_


def test_a_pixel_that_is_not_finite_stays_where_it_is():
    y = resize(line(0, 1, jnp.nan, 3, 4, 5), 12)[0, :, 0]
    assert np.flatnonzero(np.isnan(y)).tolist() == [3, 4, 5, 6]
    y = resize(line(0, 1, jnp.inf, 3, 4, 5), 12, method="nearest")[0, :, 0]
    assert np.flatnonzero(np.isinf(y)).tolist() == [4, 5]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_the_gradient_is_the_adjoint(implementation, method):
    """<resize(x), dy> = <x, gradient of dy>, also where an image is enlarged a lot."""
    x = image(1, 2, 5, 2)
    for size in ((3, 11), (100, 2)):
        dy = jnp.cos(jnp.arange(2.0 * size[0] * size[1])).reshape(1, *size, 2)

        def run(x, size=size):
            return resize(x, size, method=method, implementation=implementation)

        y, pull = jax.vjp(run, x)
        np.testing.assert_allclose(jnp.vdot(y, dy), jnp.vdot(x, pull(dy)[0]), rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_gradients_do_not_scatter(implementation, method, scatters):
    def total(x):
        return (resize(x, (6, 4, 7), method=method, implementation=implementation) ** 2).sum()

    assert not scatters(jax.grad(total), image(1, 3, 8, 5, 2))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_transforms(implementation, stands_every_transform):
    x = image(8, 2, 3, 4, 2)
    stands_every_transform(lambda x: resize(x, (4, 2, 5), implementation=implementation), x)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_empty_batch(implementation):
    x = jnp.ones((0, 4, 6, 2))
    y, pull = jax.vjp(lambda x: resize(x, (8, 3), implementation=implementation), x)
    assert y.shape == (0, 8, 3, 2)
    assert pull(y)[0].shape == x.shape


@pytest.mark.parametrize("spec", LARGE["resize"], ids=lambda spec: spec.name)
def test_memory_is_bounded(spec, memory):
    """No more than half of the larger image, forward and for the gradient."""
    (shape,) = spec.shapes
    size = (1, *[spec.options["size"]] * 3, shape[-1])
    larger = max(math.prod(shape), math.prod(size))
    assert max(memory(partial(resize, **spec.options), shape)) <= 2 * larger


def test_compiles_once(compiles_once):
    compiles_once(lambda x: resize(x, 5), jnp.ones((1, 3, 3, 1)))


def test_the_rule(monkeypatch):
    x = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.int32)
    assert explain(resize, x, 8)[0].implementation == "gather"
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    assert explain(resize, x, 8)[0].implementation == "matmul"
    assert explain(resize, labels, 8, method="nearest")[0].implementation == "gather"


@pytest.mark.parametrize(
    ("error", "x", "size", "options", "message"),
    [
        (ShapeError, jnp.ones((4, 2)), 3, {}, "one to three spatial axes"),
        (ShapeError, jnp.ones((1, 0, 2)), 3, {}, "none of them empty"),
        (ShapeError, jnp.ones((1, 4, 2)), 0, {}, "size=0.*each at least 1"),
        (ShapeError, jnp.ones((1, 4, 2)), (3, 3), {}, r"size=\(3, 3\)"),
        (ShapeError, jnp.ones((1, 4, 2), int), 3, {}, "int32.*Did you mean method='nearest'"),
        (ConfigError, jnp.ones((1, 4, 2)), 3, {"method": "linaer"}, "Did you mean 'linear'"),
        (
            UnsupportedError,
            jnp.ones((1, 4, 2), int),
            3,
            {"method": "nearest", "implementation": "matmul"},
            "implementation='matmul' for x of int32.*'gather'",
        ),
    ],
)
def test_what_is_refused(error, x, size, options, message):
    with pytest.raises(error, match=f"^resize: got .*?{message}"):
        resize(x, size, **options)
