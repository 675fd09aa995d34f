"""Convolutions of images spread over devices: the same values, and halos are all that moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from biojax.kernels import conv, conv_transpose

BATCH, DEPTH, BATCH_AND_WIDTH = P("a"), P(None, "a"), P("b", None, None, "a")
DEPTH_AND_HEIGHT, BATCH_AND_DEPTH = P(None, "a", "b"), P("b", "a")
BATCH_DEPTH_AND_WIDTH = P("c", "a", None, "b")


def outputs_and_gradients(kernel, **options):
    def run(x, w, dy):
        y, pull = jax.vjp(lambda x, w: kernel(x, w, **options), x, w)
        return y, *pull(dy)

    return run


def normal(*shapes, dtype="float32"):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


@pytest.fixture(scope="module")
def check(compiled):
    """Compares forward and VJP, sharded and not; returns the collectives."""

    def run(kernel, shape, w, spec, mesh, tolerance=1e-5, **options):
        x, w = normal(shape, w, dtype=options.pop("dtype", "float32"))
        f = outputs_and_gradients(kernel, **options)
        y = jax.eval_shape(lambda x, w: kernel(x, w, **options), x, w)
        (dy,) = normal(y.shape, dtype=y.dtype)
        image = NamedSharding(mesh, spec)
        whole = NamedSharding(mesh, P())
        try:
            image.shard_shape(y.shape)
            outputs = image
        except ValueError:  # an output that does not divide starts out whole
            outputs = whole
        expected, none = compiled(f, x, w, dy)
        assert not none
        arrays = jax.device_put((x, w, dy), (image, whole, outputs))
        results, collectives = compiled(f, *arrays)
        for got, want in zip(results, expected, strict=True):
            got, want = (np.asarray(a, np.float64) for a in (got, want))
            atol = tolerance * np.abs(want).max()
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=atol)
        assert results[1].sharding.is_equivalent_to(image, x.ndim)
        return collectives

    return run


VOLUME = (4, 8, 8, 8, 4)
CONVS = {
    "planes": ("planes", VOLUME, (3, 3, 3, 4, 4), {}),
    "planes-strided": ("planes", VOLUME, (3, 3, 3, 4, 4), {"strides": 2, "padding": 1}),
    "winograd": ("winograd", VOLUME, (3, 3, 3, 4, 4), {}),
    "depthwise": ("depthwise", VOLUME, (3, 3, 3, 1, 4), {"feature_group_count": 4}),
    "grouped": ("grouped", VOLUME, (3, 3, 3, 2, 4), {"feature_group_count": 2}),
    "pointwise": ("pointwise", VOLUME, (1, 1, 1, 4, 4), {"strides": 2}),
    "fft": ("fft", VOLUME, (5, 5, 5, 1, 4), {"feature_group_count": 4}),
    "xla": ("xla", VOLUME, (3, 3, 3, 4, 4), {}),
    "xla-strided": ("xla", VOLUME, (3, 3, 3, 4, 4), {"strides": 2, "padding": 1}),
    "xla-depthwise": ("xla", VOLUME, (3, 3, 3, 1, 4), {"feature_group_count": 4}),
    "xla-depthwise-strided": (
        "xla",
        VOLUME,
        (3, 3, 3, 1, 4),
        {"feature_group_count": 4, "strides": 2, "padding": 1},
    ),
    "xla-multiplier": ("xla", VOLUME, (3, 3, 3, 1, 8), {"feature_group_count": 4}),
    "xla-groups": ("xla", VOLUME, (3, 3, 3, 2, 4), {"feature_group_count": 2}),
    "xla-groups-strided": (
        "xla",
        VOLUME,
        (3, 3, 3, 2, 4),
        {"feature_group_count": 2, "strides": 2, "padding": 1},
    ),
}
TRANSPOSES = {
    "phases": ("phases", VOLUME, (3, 3, 3, 4, 4), {"strides": 2}),
    "phases-depthwise": (
        "phases",
        VOLUME,
        (3, 3, 3, 1, 4),
        {"strides": 2, "feature_group_count": 4},
    ),
    "matmul": ("matmul", VOLUME, (2, 2, 2, 4, 4), {"strides": 2}),
    "xla": ("xla", VOLUME, (3, 3, 3, 4, 4), {"strides": 2}),
    "xla-depthwise": ("xla", VOLUME, (3, 3, 3, 1, 4), {"strides": 2, "feature_group_count": 4}),
    "xla-groups": ("xla", VOLUME, (3, 3, 3, 2, 4), {"strides": 2, "feature_group_count": 2}),
}
CASES = [
    *((conv, name, *case) for name, case in CONVS.items()),
    *((conv_transpose, f"transpose-{name}", *case) for name, case in TRANSPOSES.items()),
]


@pytest.mark.parametrize(
    ("kernel", "implementation", "shape", "w", "options"),
    [pytest.param(case[0], *case[2:], id=case[1]) for case in CASES],
)
@pytest.mark.parametrize(
    ("spec", "sizes"),
    [(BATCH, (4,)), (DEPTH_AND_HEIGHT, (2, 4)), (BATCH_DEPTH_AND_WIDTH, (2, 2, 2))],
    ids=["batch", "depth-height", "batch-depth-width"],
)
def test_only_halos_move(kernel, implementation, shape, w, options, spec, sizes, check, mesh_of):
    options = {**options, "implementation": implementation}
    collectives = check(kernel, shape, w, spec, mesh_of(*sizes), **options)
    allowed = {"all-reduce"} if spec == BATCH else {"all-reduce", "collective-permute"}
    assert collectives <= allowed
    assert "all-reduce" in collectives


PLANE = (3, 3, 3, 4, 4)


@pytest.mark.parametrize(
    ("implementation", "shape", "w", "spec", "sizes", "options"),
    [
        pytest.param(
            "depthwise",
            (1, 8, 8, 8, 4),
            (7, 7, 7, 1, 4),
            DEPTH_AND_HEIGHT,
            (4, 2),
            {"feature_group_count": 4},
            id="halos-longer-than-parts",
        ),
        pytest.param(
            "planes",
            (1, 8, 4, 4, 4),
            PLANE,
            DEPTH,
            (4,),
            {"padding": ((4, -2), (1, 1), (1, 1))},
            id="shifted",
        ),
        pytest.param(
            "planes", (1, 16, 4, 4, 4), PLANE, DEPTH, (8,), {"strides": 2, "padding": 1}, id="eight"
        ),
        pytest.param("planes", (1, 8, 4, 4, 4), PLANE, P(None, ("a", "b")), (4, 2), {}, id="a-b"),
        pytest.param("planes", (1, 8, 4, 4, 4), PLANE, P(None, ("b", "a")), (4, 2), {}, id="b-a"),
        pytest.param(
            "planes",
            (1, 12, 4, 4, 4),
            PLANE,
            DEPTH,
            (3,),
            {"kernel_dilation": 2, "strides": 2, "padding": 2},
            id="dilated-three-devices",
        ),
        pytest.param("planes", (1, 8, 8, 2), (3, 3, 2, 4), DEPTH_AND_HEIGHT, (2, 2), {}, id="2d"),
        pytest.param("planes", (2, 16, 2), (5, 2, 4), DEPTH, (8,), {}, id="1d"),
    ],
)
def test_halos_of_every_length(implementation, shape, w, spec, sizes, options, check, mesh_of):
    options = {**options, "implementation": implementation}
    assert check(conv, shape, w, spec, mesh_of(*sizes), **options) == {
        "all-reduce",
        "collective-permute",
    }


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        pytest.param((2,), {"padding": "VALID"}, id="fewer-outputs-than-pixels"),
        pytest.param((8,), {"padding": 1, "strides": 2}, id="more-devices-than-outputs"),
        pytest.param((8,), {"padding": 0, "strides": 3}, id="neither"),
    ],
)
@pytest.mark.parametrize(("implementation", "groups"), [("planes", 1), ("xla", 2)])
def test_what_does_not_divide_is_right_too(implementation, groups, sizes, options, check, mesh_of):
    options = {**options, "implementation": implementation, "feature_group_count": groups}
    check(conv, (1, 8, 4, 4, 4), (3, 3, 3, 4 // groups, 4), DEPTH, mesh_of(*sizes), **options)


@pytest.mark.parametrize(("implementation", "groups"), [("planes", 1), ("xla", 2)])
def test_bfloat16(implementation, groups, check, mesh_of):
    options = {"implementation": implementation, "feature_group_count": groups}
    w = (3, 3, 3, 4 // groups, 4)
    check(conv, VOLUME, w, BATCH_AND_DEPTH, mesh_of(2, 2), 2e-2, dtype="bfloat16", **options)


@pytest.mark.parametrize(("implementation", "groups"), [("planes", 1), ("xla", 2)])
def test_second_derivatives(implementation, groups, compiled, mesh_of):
    """The gradient of a gradient's norm, through all three maps and their adjoints."""
    options = {"implementation": implementation, "feature_group_count": groups, "strides": 2}

    def norm(x, w):
        dx, dw = jax.grad(lambda x, w: jnp.sum(conv(x, w, **options) ** 3), (0, 1))(x, w)
        return jnp.sum(dx**2) + jnp.sum(dw**2)

    arrays = normal((2, 8, 4, 4, 4), (3, 3, 3, 4 // groups, 4))
    mesh = mesh_of(2, 2)
    shardings = (NamedSharding(mesh, BATCH_AND_DEPTH), NamedSharding(mesh, P()))
    expected, _ = compiled(jax.grad(norm, (0, 1)), *arrays)
    arrays = jax.device_put(arrays, shardings)
    results, collectives = compiled(jax.grad(norm, (0, 1)), *arrays)
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * float(jnp.abs(want).max()))
    assert collectives <= {"all-reduce", "collective-permute"}


@pytest.mark.parametrize(("implementation", "groups"), [("planes", 1), ("xla", 2)])
def test_transforms(implementation, groups, mesh_of):
    """Inside of vmap and of shard_map, over all axes of the mesh or some."""

    def f(x, w):
        return jnp.sin(conv(x, w, implementation=implementation, feature_group_count=groups))

    x, w = normal((4, 4, 4, 4, 4), (3, 3, 3, 4 // groups, 4))
    mesh = mesh_of(2, 2)
    ways = {
        "vmap": (mesh, jax.vmap(lambda x, w: f(x[None], w)[0], (0, None))),
        "all": (
            mesh,
            jax.shard_map(f, mesh=mesh, in_specs=(P(("a", "b")), P()), out_specs=P(("a", "b"))),
        ),
        "some": (
            mesh,
            jax.shard_map(f, mesh=mesh, axis_names={"a"}, in_specs=(P("a"), P()), out_specs=P("a")),
        ),
    }
    want = f(x, w)
    gradient = jax.grad(lambda w: f(x, w).sum())(w)
    for name, (mesh, way) in ways.items():
        arrays = jax.device_put((x, w), (NamedSharding(mesh, BATCH), NamedSharding(mesh, P())))
        got = jax.block_until_ready(jax.jit(way)(*arrays))
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
        slope = jax.jit(jax.grad(lambda w, x, way=way: way(x, w).sum()))
        got = jax.block_until_ready(slope(arrays[1], arrays[0]))
        np.testing.assert_allclose(got, gradient, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("name", ["planes-strided", "depthwise", "xla-groups", "fft"])
def test_convolutions_over_explicit_axes(name, check, mesh_of):
    implementation, shape, w, options = CONVS[name]
    options = {**options, "implementation": implementation}
    mesh = mesh_of(2, 2, kind=AxisType.Explicit)
    expected = {"all-reduce", "collective-permute"}
    assert check(conv, shape, w, BATCH_AND_WIDTH, mesh, **options) == expected
    with jax.set_mesh(mesh):
        assert check(conv, shape, w, BATCH_AND_WIDTH, mesh, **options) == expected


@pytest.mark.parametrize("name", ["phases", "xla", "matmul"])
def test_transposed_convolutions_over_explicit_axes(name, check, mesh_of):
    implementation, shape, w, options = TRANSPOSES[name]
    options = {**options, "implementation": implementation}
    mesh = mesh_of(2, 2, kind=AxisType.Explicit)
    expected = {"all-reduce"} if name == "matmul" else {"all-reduce", "collective-permute"}
    assert check(conv_transpose, shape, w, BATCH_AND_WIDTH, mesh, **options) == expected


def test_what_explicit_axes_say_of_the_result(mesh_of):
    """The image's own split, where that divides; whatever the split of the weights."""
    mesh = mesh_of(2, 2, kind=AxisType.Explicit)
    x, w = normal((2, 8, 6, 4, 4), PLANE)
    shardings = NamedSharding(mesh, P("a", None, "b")), NamedSharding(mesh, P(*[None] * 4, "b"))
    arrays = jax.device_put((x, w), shardings)
    for padding, split in (("SAME", "b"), (((1, 1), (0, 1), (1, 1)), None)):
        f = jax.jit(lambda x, w, p=padding: conv(x, w, padding=p, implementation="planes"))
        y = jax.block_until_ready(f(*arrays))
        assert jax.typeof(y).sharding.spec == P("a", None, split, None, None)
        np.testing.assert_allclose(y, f(x, w), atol=1e-5)


@pytest.mark.parametrize("implementation", ["planes", "xla", "depthwise", "fft"])
def test_an_empty_batch(implementation, compiled, mesh_of):
    groups = 4 if implementation == "depthwise" else 1
    options = {"implementation": implementation, "feature_group_count": groups}
    f = outputs_and_gradients(conv, **options)
    arrays = normal((0, 4, 4, 4, 4), (3, 3, 3, 4 // groups, 4), (0, 4, 4, 4, 4))
    mesh = mesh_of(2, 2)
    image, whole = NamedSharding(mesh, BATCH_AND_DEPTH), NamedSharding(mesh, P())
    for given in (arrays, jax.device_put(arrays, (image, whole, image))):
        (y, dx, dw), _ = compiled(f, *given)
        assert y.shape == dx.shape == arrays[0].shape
        np.testing.assert_array_equal(dw, np.zeros_like(arrays[1]))


@pytest.mark.parametrize("implementation", ["planes", "xla"])
def test_one_device_knows_nothing_of_it(implementation):
    x, w = normal((1, 4, 4, 4, 4), (3, 3, 3, 2, 4) if implementation == "xla" else PLANE)
    groups = 4 // w.shape[-2]
    f = jax.jit(lambda x, w: conv(x, w, implementation=implementation, feature_group_count=groups))
    assert "CustomSPMDPartitioning" not in f.lower(x, w).as_text()
    exported = jax.export.export(f)(x, w)
    np.testing.assert_allclose(exported.call(x, w), f(x, w), atol=1e-6)
