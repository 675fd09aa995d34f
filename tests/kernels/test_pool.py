"""Pooling: values by hand, a loop in numpy, and what is refused."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ShapeError, UnsupportedError
from biojax.kernels import avg_pool, explain, max_pool
from biojax.kernels.specs import LARGE


def line(*values: float) -> jax.Array:
    """One image of one channel along one axis."""
    return jnp.asarray(values, jnp.float32).reshape(1, -1, 1)


@pytest.mark.parametrize(
    ("options", "largest", "mean"),
    [
        ({"window": 2}, [4, 2], [2.5, 0]),
        ({"window": 2, "strides": 1}, [4, 4, 2, 2], [2.5, 1, 0, -1.5]),
        ({"window": 2, "padding": "SAME"}, [4, 2, -5], [2.5, 0, -5]),
        ({"window": 3, "strides": 2, "padding": "SAME"}, [4, 4, 2], [2.5, 4 / 3, -1.5]),
        ({"window": 2, "padding": 1}, [1, 4, 2], [1, 1, -1.5]),
        ({"window": (3,), "strides": (4,), "padding": [(2, 0)]}, [1, 2], [1, -5 / 3]),
        ({"window": 2, "padding": [(-1, 0)]}, [4, 2], [1, -1.5]),
    ],
)
def test_by_hand(options, largest, mean):
    x = line(1, 4, -2, 2, -5)
    assert max_pool(x, **options)[0, :, 0].tolist() == largest
    np.testing.assert_allclose(avg_pool(x, **options)[0, :, 0], mean, rtol=1e-6)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_against_a_loop_in_three_dimensions(pool):
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6, 3)).astype(np.float32)
    window, strides, before = (2, 3, 2), (1, 2, 3), (1, 0, 1)
    y = pool(x, window, strides=strides, padding=((1, 0), (0, 1), (1, 1)))
    expected = np.zeros((2, 4, 2, 3, 3))
    for o in itertools.product(range(4), range(2), range(3)):
        start = np.array(o) * strides - before
        box = tuple(slice(max(s, 0), s + k) for s, k in zip(start, window, strict=True))
        seen = x[:, *box].astype(np.float64).reshape(2, -1, 3)
        expected[:, *o] = seen.max(axis=1) if pool is max_pool else seen.mean(axis=1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_padding_never_counts():
    ones = jnp.ones((1, 3, 3, 1))
    options = {"strides": 2, "padding": ((1, 1), (1, 1))}
    assert set(avg_pool(ones, 3, **options).ravel().tolist()) == {1.0}
    assert set(max_pool(-ones, 3, **options).ravel().tolist()) == {-1.0}


def test_integers_keep_their_type():
    labels = jnp.array([[[3], [250], [7], [1]]], jnp.uint8)
    assert max_pool(labels, 2).dtype == jnp.uint8
    assert max_pool(labels, 2).ravel().tolist() == [250, 7]
    assert max_pool(-labels.astype(jnp.int16), 2, padding=1).ravel().tolist() == [-3, -7, -1]
    assert avg_pool(labels, 2).ravel().tolist() == [126, 4]  # 126.5 and 4, cut to whole


def test_nan_is_not_hidden():
    for pool in (max_pool, avg_pool):
        for implementation in ("xla", "tiles", "separable"):
            y = pool(line(1, jnp.nan, 3, 4), 2, implementation=implementation)[0, :, 0]
            assert np.isnan(y[0])
            assert np.isfinite(y[1])


@pytest.mark.parametrize("implementation", ["tiles", "separable"])
def test_the_gradient_of_a_window_with_nan_goes_to_the_first(implementation):
    nan = jnp.nan
    x = line(1, 2, nan, 3, nan, nan, 5, nan).reshape(1, 4, 2, 1)

    def weighted(pool, x):
        return (pool(x, 2, implementation=implementation).ravel() * jnp.array([1.0, 2.0])).sum()

    largest, mean = (jax.grad(partial(weighted, pool))(x).ravel() for pool in (max_pool, avg_pool))
    assert largest.tolist() == [0, 0, 1, 0, 2, 0, 0, 0]
    assert mean.tolist() == [0.25] * 4 + [0.5] * 4


def test_gradients_by_hand():
    x = line(1, 4, -2, 2, -5, 0)
    largest = jax.grad(lambda x: (max_pool(x, 2)[0, :, 0] * jnp.arange(1.0, 4.0)).sum())(x)
    assert largest[0, :, 0].tolist() == [0, 1, 0, 2, 0, 3]
    mean = jax.grad(lambda x: avg_pool(x, 2, strides=4, padding="SAME").sum())(x)
    assert mean[0, :, 0].tolist() == [0.5, 0.5, 0, 0, 0.5, 0.5]


WINDOWS = {
    "tiles": {"window": (2, 3)},
    "separable": {"window": 3, "strides": 2, "padding": ((1, 1), (-1, 2))},
}


def pulled_back(pool, implementation, options, dtype="float32"):
    """The gradient in x of a cotangent, as one program, and both arrays."""

    def gradient(x, dy):
        def run(x):
            return pool(x, **options, implementation=implementation)

        return jax.vjp(run, x)[1](dy)[0]

    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 6, 9, 5)), dtype)
    out = jax.eval_shape(lambda x: pool(x, **options), x)
    dy = jnp.asarray(np.random.default_rng(1).integers(-9, 9, out.shape), dtype)
    return jax.jit(gradient), x, dy


@pytest.mark.parametrize("options", [WINDOWS["separable"], {"window": 3, "padding": 2}])
@pytest.mark.parametrize("lowest", [0.0, -np.inf])
def test_one_device_finds_the_same_maxima_as_several(options, lowest, monkeypatch):
    """Windows of pairs and windows of taps, where some see nothing but -inf, or NaN."""
    gradient, x, dy = pulled_back(max_pool, "separable", options)
    x = jnp.where(x == 0, lowest, x).at[0, 2, :, 0].set(lowest).at[1, 3, 4].set(jnp.nan)
    several = gradient(x, dy)
    gradient, *_ = pulled_back(max_pool, "separable", options)
    assert "reduce_window[" not in str(jax.make_jaxpr(gradient)(x, dy))
    gradient, *_ = pulled_back(max_pool, "separable", options)
    monkeypatch.setattr("jax.device_count", lambda: 1)
    assert "reduce_window[" in str(jax.make_jaxpr(gradient)(x, dy))
    np.testing.assert_array_equal(gradient(x, dy), several)


@pytest.mark.parametrize("implementation", WINDOWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_equal_maxima_the_first_has_the_gradient(implementation, dtype):
    """Whole numbers, so that sums are exact: nearly every window has ties."""
    options = WINDOWS[implementation]
    ours, x, dy = pulled_back(max_pool, implementation, options, dtype)
    theirs, *_ = pulled_back(max_pool, "xla", options, dtype)
    np.testing.assert_array_equal(ours(x, dy), theirs(x, dy))
    assert ours(x, dy).dtype == dtype


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize("implementation", WINDOWS)
def test_gradients_do_not_scatter(pool, implementation, scatters):
    gradient, *arrays = pulled_back(pool, implementation, WINDOWS[implementation])
    assert not scatters(gradient, *arrays)
    theirs, *arrays = pulled_back(max_pool, "xla", WINDOWS[implementation])
    assert scatters(theirs, *arrays)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_overlapping_gradients_add_up_in_float32(pool):
    """All of 17 windows see the middle pixel; in bfloat16 their sum would be rounded 17 times."""
    x = jnp.zeros((1, 33, 1), jnp.bfloat16).at[0, 16].set(1)
    y, pull = jax.vjp(lambda x: pool(x, 17, strides=1, implementation="separable"), x)
    (dx,) = pull(jnp.full(y.shape, 1 + 2**-7, y.dtype))
    expected = (17 if pool is max_pool else 1) * (1 + 2**-7)
    assert float(dx[0, 16, 0]) == float(jnp.asarray(expected, jnp.bfloat16))


@pytest.mark.parametrize(
    ("pool", "options", "name", "reason"),
    [
        (max_pool, {"window": 2}, "tiles", "side by side"),
        (max_pool, {"window": 4, "strides": 2}, "separable", "one axis at a time"),
        (max_pool, {"window": 2, "padding": 1}, "separable", "one axis at a time"),
        (max_pool, {"window": (8, 8, 2)}, "separable", "one axis at a time"),
        (max_pool, {"window": 33, "strides": 1, "padding": 15}, "xla", "more than 32 windows"),
        (avg_pool, {"window": 5, "strides": 1}, "separable", "one axis at a time"),
        (avg_pool, {"window": (8, 2, 4)}, "tiles", "side by side"),
    ],
)
def test_the_rule(pool, options, name, reason, monkeypatch):
    x = jax.ShapeDtypeStruct((1, 8, 8, 8, 2), jnp.float32)
    (choice,) = explain(pool, x, **options)
    assert choice.implementation == name
    assert reason in choice.reason
    labels = jax.ShapeDtypeStruct(x.shape, jnp.int32)
    assert explain(pool, labels, **options)[0][1:] == ("xla", "integers have no gradient")
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    assert explain(pool, x, **options)[0][1:] == (
        "xla",
        "the platform's own windows: not measured on tpu",
    )


@pytest.mark.parametrize(
    "options", [{"window": 2}, {"window": 3, "strides": 1}, {"window": 3, "padding": [(0, 1)]}]
)
def test_tiles_are_refused_where_windows_do_not_tile(options):
    with pytest.raises(UnsupportedError, match=r"implementation='tiles'.*Use .*'separable'"):
        max_pool(jnp.ones((1, 5, 1)), **options, implementation="tiles")


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_axes_where_a_pixel_is_its_own_window_take_no_pass(pool, monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 1)
    x = jax.ShapeDtypeStruct((1, 4, 6, 5, 2), jnp.float32)

    def passes(window, strides):
        def gradient(x):
            y, pull = jax.vjp(lambda x: pool(x, window, strides=strides), x)
            return pull(y)

        return str(jax.make_jaxpr(gradient)(x)).count("reduce_window")

    assert passes((1, 3, 1), (1, 2, 1)) == 1
    assert passes((1, 3, 3), (1, 2, 2)) == 2
    assert passes((1, 3, 1), 2) == 3  # a pixel in two is no window of its own


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize("options", [{"window": 2}, {"window": 3, "strides": 1}])
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_an_empty_batch(pool, options, implementation):
    x = jnp.ones((0, 4, 6, 2))
    y, pull = jax.vjp(lambda x: pool(x, **options, implementation=implementation), x)
    assert y.shape[0] == 0
    assert pull(y)[0].shape == x.shape


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_long_means_do_not_stall(dtype):
    y = avg_pool(jnp.ones((1, 64, 64, 1), dtype), 64)
    assert y.dtype == dtype
    assert y.ravel().tolist() == [1.0]
    assert max_pool(jnp.ones((1, 8, 1), dtype), 8).dtype == dtype


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize(
    ("implementation", "options"),
    [("xla", {"padding": "SAME"}), ("separable", {"padding": "SAME"}), ("tiles", {})],
)
def test_transforms(pool, implementation, options, stands_every_transform):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4, 2, 6, 2)), jnp.float32)
    stands_every_transform(lambda x: pool(x, 2, **options, implementation=implementation), x)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_compiles_once(pool, compiles_once):
    compiles_once(lambda x: pool(x, 2, padding="SAME"), jnp.ones((1, 3, 3, 1)))


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize("spec", LARGE["max_pool"], ids=lambda spec: spec.name)
def test_memory_is_bounded(pool, spec, memory, monkeypatch):
    """On one device no more than the image once more, forward and with the gradient."""
    monkeypatch.setattr("jax.device_count", lambda: 1)
    (shape,) = spec.shapes
    assert max(memory(partial(pool, **spec.options), shape)) <= 4 * math.prod(shape)


X = jnp.ones((1, 4, 5, 2))


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X[0, 0], {"window": 2}, r"x of shape \(5, 2\).*one to three spatial axes"),
        (X[None, None, None], {"window": 2}, "one to three spatial axes"),
        (X > 0, {"window": 2}, r"x of bool.*Convert it: x.astype\(jnp.float32\)"),
        (X * 1j, {"window": 2}, "x of complex64"),
        (X, {"window": (2, 2, 2)}, r"window=\(2, 2, 2\).*or 2 of them"),
        (X, {"window": 0}, "window=0.*each at least 1"),
        (X, {"window": 2, "strides": 0}, "strides=0"),
        (X, {"window": 2, "padding": "REFLECT"}, "padding='REFLECT'.*'SAME', 'VALID'"),
        (X, {"window": 2, "padding": [1, 1]}, r"padding=\[1, 1\].*2 pairs"),
        (X, {"window": 5}, r"image of \(4, 5\), a window of \(5, 5\)"),
        (X, {"window": 2, "padding": 2}, "padding narrower than the window"),
        (X, {"window": 2, "padding": -2}, "Use a smaller window, or padding='SAME'"),
    ],
)
def test_what_is_refused(pool, x, options, message):
    with pytest.raises(ShapeError, match=rf"^{pool.__name__}: got .*?{message}"):
        pool(x, **options)
