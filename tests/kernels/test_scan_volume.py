"""Images as sequences and back, without a scatter, and scans along several orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import linear_scan
from biojax.kernels.scan.orders import cross_scan_orders, permutation
from biojax.kernels.scan.volume import scan_volume, traverse, untraverse

ORDERS = {
    1: ["x", "-x", "hilbert"],
    2: ["yx", "-xy", "snake", "-hilbert:xy"],
    3: ["zyx", "yxz", "-xzy", "-snake", "morton:xyz", "hilbert"],
}
SHAPES = {1: (2, 5, 3), 2: (2, 3, 4, 2), 3: (2, 3, 5, 2, 2)}
CASES = [(order, SHAPES[rank]) for rank, orders in ORDERS.items() for order in orders]
every_order = pytest.mark.parametrize(("order", "shape"), CASES)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@every_order
def test_voxels_in_their_order_and_back(order, shape):
    x = normal(0, *shape)
    y = traverse(x, order)
    indices, inverse = permutation(order, shape[1:-1])
    flat = x.reshape(shape[0], -1, shape[-1])
    np.testing.assert_array_equal(y, flat[:, indices])
    np.testing.assert_array_equal(untraverse(y, order, shape[1:-1]), x)
    image = untraverse(jnp.asarray(flat), order, shape[1:-1])
    np.testing.assert_array_equal(image.reshape(flat.shape), flat[:, inverse])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8, jnp.complex64])
def test_dtypes_are_kept(dtype):
    x = jnp.arange(24).astype(dtype).reshape(1, 3, 4, 2)
    for order in ("-xy", "hilbert"):
        y = traverse(x, order)
        assert y.dtype == dtype
        np.testing.assert_array_equal(untraverse(y, order, (3, 4)), x)


@every_order
def test_gradients_are_put_back(order, shape):
    x, weight = normal(0, *shape), normal(1, shape[0], int(np.prod(shape[1:-1])), shape[-1])
    dx = jax.grad(lambda x: jnp.sum(traverse(x, order) * weight))(x)
    np.testing.assert_array_equal(dx, untraverse(weight, order, shape[1:-1]))
    dy = jax.grad(lambda y: jnp.sum(untraverse(y, order, shape[1:-1]) * x))(weight)
    np.testing.assert_array_equal(dy, traverse(x, order))


def test_second_derivatives():
    x = normal(0, 1, 2, 3, 1)

    def slope(x):
        return jnp.sum(jax.grad(lambda x: jnp.sum(traverse(x, "hilbert") ** 3))(x) ** 2)

    np.testing.assert_allclose(jax.grad(slope)(x), 36 * x**3, rtol=1e-5)


@pytest.mark.parametrize("order", ["zyx", "-yxz", "snake", "-morton", "hilbert"])
def test_nothing_is_scattered(order, scatters):
    x = jnp.asarray(normal(0, 1, 3, 4, 5, 2))

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(traverse(x, order))))(x)

    def gradient_of_inverse(x):
        y = x.reshape(1, 60, 2)
        return jax.grad(lambda y: jnp.sum(jnp.sin(untraverse(y, order, (3, 4, 5)))))(y)

    for f in (gradient, gradient_of_inverse):
        assert not scatters(f, x)
        gathers = str(jax.jit(f).lower(x).as_text()).count('"stablehlo.gather"(')
        assert gathers == (0 if order in ("zyx", "-yxz") else 2)
    assert scatters(lambda x: x.at[permutation("snake", (3,))[0]].add(1.0), jnp.zeros(3))


def test_gathers_of_constants_are_left_to_the_program():
    """The compiler would take a minute for those in the gradient of a few sums over 10^6 voxels."""
    step = jax.jit(jax.grad(lambda x: traverse(x, "hilbert").sum()))
    assert " gather(" in str(step.lower(jnp.zeros((1, 4, 4, 1))).compile().as_text())


@pytest.mark.parametrize("order", ["-yxz", "hilbert"])
def test_transforms(order, stands_every_transform):
    def f(x, weight):
        y = traverse(x, order) * weight
        return untraverse(jnp.cumsum(y, axis=1), order, x.shape[1:-1])

    stands_every_transform(f, normal(0, 8, 2, 3, 2, 2), normal(1, 12, 2))


@pytest.mark.parametrize("order", ["xyz", "-zyx", "-hilbert"])
@pytest.mark.parametrize("split", [P("a"), P("a", "b")])
def test_over_devices(order, split, mesh_of):
    x = jnp.asarray(normal(0, 4, 4, 3, 2, 2))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of(4, 2, kind=kind)
        with jax.set_mesh(mesh):
            spread = jax.device_put(x, NamedSharding(mesh, split))
            y = jax.jit(traverse, static_argnums=1)(spread, order)
            back = jax.jit(untraverse, static_argnums=(1, 2))(y, order, (4, 3, 2))
        np.testing.assert_array_equal(y, traverse(x, order))
        np.testing.assert_array_equal(back, x)


def test_compile_once(compiles_once):
    x = jnp.asarray(normal(0, 2, 3, 4, 2))
    for order in ("-xy", "hilbert"):
        compiles_once(lambda x, order=order: traverse(x, order), x)
    step = jax.jit(lambda x: scan_volume(x, lambda s: 2 * s, ["snake", "yx"]))
    compiles_once(step, x)


# Scans.


def decayed(decay: float):
    return lambda s: linear_scan(jnp.float32(decay), s)[0]


def by_loop(x: np.ndarray, decay: float, order: str) -> np.ndarray:
    """One voxel after the other, in float64."""
    indices, _ = permutation(order, x.shape[1:-1])
    flat = x.reshape(x.shape[0], -1, x.shape[-1]).astype(np.float64)
    y, h = np.zeros_like(flat), 0.0
    for voxel in indices:
        h = decay * h + flat[:, voxel]
        y[:, voxel] = h
    return y.reshape(x.shape)


@pytest.mark.parametrize("shape", [(2, 4, 3, 2), (1, 2, 3, 4, 2)])
def test_scans_against_a_loop(shape):
    x = normal(0, *shape)
    orders = [*cross_scan_orders(len(shape) - 2), "hilbert", "-snake"]
    parts = [by_loop(x, 0.5, order) for order in orders]

    def close(got, want):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

    close(scan_volume(x, decayed(0.5), orders), np.mean(parts, axis=0))
    close(scan_volume(x, decayed(0.5), orders, merge="sum"), np.sum(parts, axis=0))
    close(scan_volume(x, decayed(0.5), orders, merge="concatenate"), np.concatenate(parts, -1))
    largest = scan_volume(x, decayed(0.5), orders, merge=lambda ys: jnp.max(jnp.stack(ys), axis=0))
    close(largest, np.max(parts, axis=0))
    close(scan_volume(x, decayed(0.5), "hilbert"), parts[-2])


def test_a_scan_for_each_order():
    x = normal(0, 1, 3, 4, 2)
    decays, orders = [0.1, 0.5, 0.9], ["yx", "-xy", "morton"]
    y = scan_volume(x, [decayed(d) for d in decays], orders, merge="concatenate")
    expected = [by_loop(x, d, order) for d, order in zip(decays, orders, strict=True)]
    np.testing.assert_allclose(y, np.concatenate(expected, axis=-1), rtol=1e-5, atol=1e-5)
    widened = scan_volume(x, lambda s: jnp.repeat(s, 3, axis=-1), orders)
    np.testing.assert_allclose(widened, np.repeat(x, 3, axis=-1), rtol=1e-6)


def test_gradients_of_scans(outputs_and_gradients):
    """A decaying scan is linear: its gradient is the scan along the orders walked backwards."""
    x, orders = normal(0, 1, 3, 4, 2), ["yx", "-hilbert", "snake"]
    backwards = [order[1:] if order[0] == "-" else f"-{order}" for order in orders]
    run = jax.jit(lambda x: scan_volume(x, decayed(0.5), orders, merge="sum"))
    y, dx = outputs_and_gradients(run, x)
    dy = np.cos(np.arange(y.size)).reshape(y.shape)
    expected = sum(by_loop(dy, 0.5, order) for order in backwards)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-5)


def test_sums_are_rounded_once():
    x = jnp.ones((1, 2, 2, 1), jnp.bfloat16)
    scans = [lambda s: 256 * s, lambda s: s, lambda s: s]
    y = scan_volume(x, scans, ["yx", "xy", "hilbert"], merge="sum")
    assert y.dtype == jnp.bfloat16
    assert y.ravel().tolist() == [258.0] * 4


# What is refused.


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 2, 2, 2, 1), (1, 0, 3, 1)])
def test_images_that_are_none(shape):
    x = jnp.zeros(shape)
    with pytest.raises(ShapeError, match=r"^traverse: got x of shape .*Expected \(b, \*spatial"):
        traverse(x, "yx")
    with pytest.raises(ShapeError, match=r"^scan_volume: got x of shape .*none of them empty"):
        scan_volume(x, lambda s: s, "yx")


def test_sequences_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"y of shape \(1, 5, 2\) and .*Expected \(b, 6, c\)"):
        untraverse(jnp.zeros((1, 5, 2)), "yx", (2, 3))
    with pytest.raises(ShapeError, match=r"^untraverse: got y of shape \(6, 2\)"):
        untraverse(jnp.zeros((6, 2)), "yx", (2, 3))
    with pytest.raises(ShapeError, match=r"^untraverse: got shape="):
        untraverse(jnp.zeros((1, 6, 2)), "yx", (2, 0))
    with pytest.raises(ConfigError, match=r"^untraverse: got order='xz' for 2 spatial axes"):
        untraverse(jnp.zeros((1, 6, 2)), "xz", (2, 3))


X = jnp.ones((1, 2, 3, 2))


@pytest.mark.parametrize(
    ("scan", "orders", "options", "message"),
    [
        (decayed(0.5), [], {}, "0 scans and 0 orders"),
        ([decayed(0.5)], ["yx", "xy"], {}, "1 scans and 2 orders.*as many scans as orders"),
        (decayed(0.5), "yx", {"merge": "maen"}, r"merge='maen'.*'concatenate'.*mean 'mean'\?"),
        (decayed(0.5), ["yx", "yz"], {}, "order='yz' for 2 spatial axes"),
    ],
)
def test_options_that_are_none(scan, orders, options, message):
    with pytest.raises(ConfigError, match=rf"^(scan_volume|traverse): got .*?{message}"):
        scan_volume(X, scan, orders, **options)


@pytest.mark.parametrize(
    ("scan", "orders", "message"),
    [
        (lambda s: linear_scan(1.0, s), "yx", r"tuple from the scan along 'yx'.*6, f\).*alone"),
        (lambda s: s[:, 0], "yx", r"\(1, 2\) from the scan"),
        (lambda s: s[:, 1:], "-yx", r"\(1, 5, 2\) from the scan along '-yx'"),
        (
            [lambda s: s, lambda s: s[..., :1]],
            ["yx", "xy"],
            r"\(1, 2, 3, 1\), \(1, 2, 3, 2\).*to add up.*mean merge='concatenate'\?",
        ),
    ],
)
def test_scans_that_do_not_fit(scan, orders, message):
    with pytest.raises(ShapeError, match=f"^scan_volume: got .*?{message}"):
        scan_volume(X, scan, orders)
