"""Convolution and its transpose: values by hand, Flax, a loop in numpy, and what is refused."""

import itertools
from collections.abc import Sequence

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from biojax.errors import ShapeError
from biojax.kernels import conv, conv_transpose


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def line(values: Sequence[float]) -> jax.Array:
    """One image of one channel along one axis."""
    return jnp.asarray(values, jnp.float32).reshape(1, -1, 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [210, 321, 432, 43]),
        ({"padding": "VALID"}, [321, 432]),
        ({"padding": "same"}, [210, 321, 432, 43]),
        ({"padding": 1}, [210, 321, 432, 43]),
        ({"padding": [(2, 0)]}, [100, 210, 321, 432]),
        ({"padding": [(-1, 0)]}, [432]),
        ({"strides": 2}, [321, 43]),
        ({"strides": (3,)}, [210, 43]),
        ({"kernel_dilation": 2}, [310, 420, 31, 42]),
    ],
)
def test_one_dimension_by_hand(options, expected):
    x, w = line([1, 2, 3, 4]), jnp.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    assert conv(x, w, **options)[0, :, 0].tolist() == expected


def test_groups_by_hand():
    x = jnp.array([[[1.0, 10.0], [2.0, 20.0]]])
    y = conv(x, jnp.array([[[3.0, 5.0]]]), feature_group_count=2)
    assert y.tolist() == [[[3.0, 50.0], [6.0, 100.0]]]


def test_neighbours_are_counted_in_two_dimensions():
    y = conv(jnp.ones((1, 3, 4, 1)), jnp.ones((3, 3, 1, 1)))
    assert y[0, ..., 0].tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]


@pytest.mark.parametrize("implementation", ["xla", "planes"])
@pytest.mark.parametrize("channels", [1, 17])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tap_shifts_along_its_own_axis(implementation, channels, axis):
    x = jnp.asarray(normal(0, 1, 2, 3, 4, channels))
    w = np.zeros((3, 3, 3, channels, channels), np.float32)
    tap = [1, 1, 1]
    tap[axis] = 0
    w[tuple(tap)] = np.eye(channels)
    y = conv(x, jnp.asarray(w), implementation=implementation)
    before = [(0, 0)] * 5
    before[axis + 1] = (1, 0)
    shifted = np.pad(x, before)[tuple(slice(n) for n in x.shape)]
    np.testing.assert_array_equal(y, shifted)


def weights_of(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """A random kernel in the layout that the layer asks for."""
    variables = jax.eval_shape(
        layer.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, "float32")
    )
    return normal(2, *variables["params"]["kernel"].shape)


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 7, 4), (4,), {"strides": 2, "feature_group_count": 2}),
        ((2, 7, 6, 4), (3, 2), {"strides": (2, 1), "padding": "VALID"}),
        ((1, 7, 6, 4), (3, 3), {"kernel_dilation": (2, 1), "feature_group_count": 4}),
        ((1, 5, 6, 7, 4), (3, 1, 2), {"strides": (1, 2, 2), "padding": ((1, 1), (0, 0), (2, 0))}),
        ((1, 5, 6, 7, 20), (3, 3, 3), {"strides": 2}),
    ],
)
def test_the_parameters_of_flax_conv(shape, kernel, options):
    layer = nn.Conv(8, kernel, use_bias=False, **options)
    x, w = normal(1, *shape), weights_of(layer, shape)
    y = layer.apply({"params": {"kernel": w}}, x)
    np.testing.assert_allclose(conv(x, w, **options), y, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 5, 3), (2,), {"strides": (2,)}),
        ((2, 5, 3), (2,), {"strides": (3,)}),
        ((2, 5, 3), (2,), {"strides": (3,), "padding": "VALID"}),
        ((1, 4, 5, 3), (3, 4), {"strides": (2, 3)}),
        ((1, 4, 5, 3), (5, 2), {"strides": (2, 2), "padding": "VALID"}),
        ((1, 3, 4, 5, 3), (2, 2, 2), {"strides": (2, 2, 2)}),
        ((1, 3, 4, 5, 3), (1, 2, 2), {"strides": (1, 2, 2)}),
        ((1, 3, 4, 5, 3), (3, 3, 2), {"strides": (2, 1, 2), "kernel_dilation": (1, 2, 1)}),
    ],
)
def test_the_parameters_of_flax_conv_transpose(shape, kernel, options):
    layer = nn.ConvTranspose(4, kernel, use_bias=False, **options)
    x, w = normal(1, *shape), weights_of(layer, shape)
    y = layer.apply({"params": {"kernel": w}}, x)
    np.testing.assert_allclose(conv_transpose(x, w, **options), y, rtol=2e-5, atol=2e-5)


def test_xla_is_lax():
    x, w = normal(0, 2, 6, 5, 4), normal(1, 3, 2, 2, 6)
    y = lax.conv_general_dilated(
        x, w, (2, 1), ((1, 2), (0, 1)), (1, 1), (1, 2), ("NHWC", "HWIO", "NHWC"), 2
    )
    options = {"strides": (2, 1), "padding": ((1, 2), (0, 1)), "kernel_dilation": (1, 2)}
    np.testing.assert_array_equal(conv(x, w, **options, feature_group_count=2), y)


def by_loop(x, w, strides, dilation, before, out) -> np.ndarray:
    """The sum in the docstring, term by term, in float64."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    spatial = x.shape[1:-1]
    y = np.zeros((x.shape[0], *out, w.shape[-1]))
    for o in itertools.product(*map(range, out)):
        for k in itertools.product(*map(range, w.shape[:-2])):
            i = tuple(np.array(o) * strides + np.array(k) * dilation - before)
            if all(0 <= at < n for at, n in zip(i, spatial, strict=True)):
                y[:, *o] += x[:, *i] @ w[k]
    return y


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
    n=st.tuples(*[st.integers(1, 5)] * 3),
    k=st.tuples(*[st.integers(1, 3)] * 3),
    strides=st.tuples(*[st.integers(1, 3)] * 3),
    dilation=st.tuples(*[st.integers(1, 2)] * 3),
    channels=st.sampled_from([1, 17]),
    seed=st.integers(0, 99),
)
def test_same_padding_in_three_dimensions(n, k, strides, dilation, channels, seed):
    x, w = normal(seed, 1, *n, channels), normal(seed + 1, *k, channels, 2)
    extent = (np.array(k) - 1) * dilation + 1
    out = tuple(-(-np.array(n) // strides))
    missing = np.maximum((np.array(out) - 1) * strides + extent - n, 0)
    expected = by_loop(x, w, strides, dilation, missing // 2, out)
    y = conv(x, w, strides=strides, kernel_dilation=dilation, implementation="planes")
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
    n=st.integers(1, 6),
    k=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.sampled_from(["SAME", "VALID"]),
)
def test_transpose_is_the_convolution_of_the_spread_image(n, k, stride, padding):
    x, w = normal(n, 1, n, 2), normal(k, k, 2, 3)
    spread = np.zeros((1, (n - 1) * stride + 1, 2), np.float32)
    spread[:, ::stride] = x
    y = conv_transpose(x, w, strides=stride, padding=padding)
    size = n * stride + (max(k - stride, 0) if padding == "VALID" else 0)
    # The first output sees the first pixel with its last tap, or is cropped evenly to n * stride.
    before = k - 1
    if padding == "SAME" and k > stride:
        before -= (k - stride) // 2
    expected = by_loop(spread, w, (1,), (1,), (before,), (size,))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


IMPLEMENTATIONS = {
    "conv-xla-2d": (conv, (8, 4, 5, 4), (3, 3, 2, 4), {"feature_group_count": 2, "strides": 2}),
    "conv-xla-3d": (conv, (8, 2, 3, 4, 2), (2, 3, 3, 2, 2), {"implementation": "xla"}),
    "conv-planes-stacked": (conv, (8, 2, 3, 4, 2), (3, 3, 3, 2, 2), {"strides": (1, 2, 2)}),
    "conv-planes-summed": (conv, (8, 2, 3, 2, 17), (2, 3, 1, 17, 2), {}),
    "conv-winograd": (conv, (8, 5, 3, 3), (3, 2, 3, 2), {"implementation": "winograd"}),
    "conv-patches": (
        conv,
        (8, 4, 3, 3),
        (3, 2, 3, 2),
        {"strides": (1, 2), "implementation": "patches"},
    ),
    "conv-depthwise": (conv, (8, 3, 4, 3, 2), (3, 3, 3, 1, 2), {"feature_group_count": 2}),
    "conv-depthwise-large": (
        conv,
        (8, 3, 4, 6, 1),
        (3, 5, 5, 1, 1),
        {"implementation": "depthwise"},
    ),
    "conv-grouped": (
        conv,
        (8, 4, 3, 5, 6),
        (3, 3, 3, 2, 9),
        {"feature_group_count": 3, "implementation": "grouped"},
    ),
    "conv-pointwise": (conv, (8, 4, 3, 3), (1, 1, 3, 2), {"strides": (2, 1)}),
    "transpose-xla": (conv_transpose, (8, 3, 2, 2), (3, 3, 2, 2), {"implementation": "xla"}),
    "transpose-phases": (conv_transpose, (8, 3, 2, 2), (3, 3, 2, 2), {"strides": 2}),
    "transpose-matmul": (conv_transpose, (8, 2, 2, 2, 2), (2, 2, 1, 2, 3), {"strides": (2, 2, 1)}),
}
# Products of each that are not one: convolutions of planes, or phases, or the kernel's transform.
PRODUCTS = {
    "conv-planes-summed": 2,
    "conv-winograd": 7,
    "conv-depthwise": 0,
    "conv-depthwise-large": 0,
    "transpose-phases": 4,
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_transforms(name, stands_every_transform):
    kernel, shape, w, options = IMPLEMENTATIONS[name]
    x, w = jnp.asarray(normal(0, *shape)), jnp.asarray(normal(1, *w))
    stands_every_transform(lambda x, w: kernel(x, w, **options), x, w)


@pytest.mark.parametrize("name", ["conv-planes-summed", "conv-winograd", "transpose-matmul"])
def test_compiles_once(name, compiles_once):
    kernel, shape, w, options = IMPLEMENTATIONS[name]
    compiles_once(lambda x, w: kernel(x, w, **options), jnp.ones(shape), jnp.ones(w))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_precision_reaches_every_product(name):
    kernel, shape, w, options = IMPLEMENTATIONS[name]
    x, w = jnp.ones(shape), jnp.ones(w)

    def run(x, w):
        return kernel(x, w, precision="highest", **options)

    def total(x, w):
        return run(x, w).sum()

    traced = str(jax.make_jaxpr(run)(x, w))
    products = traced.count("conv_general_dilated[") + traced.count("dot_general[")
    assert products == PRODUCTS.get(name, 1)
    assert traced.count("HIGHEST") >= products
    assert "precision=None" not in traced
    assert "precision=None" not in str(jax.make_jaxpr(jax.grad(total, (0, 1)))(x, w))


@pytest.mark.parametrize(
    ("kernel", "x", "w", "options"),
    [
        (conv, (1, 4096, 1), (4096, 1, 1), {"padding": "VALID"}),
        (conv, (1, 1, 1, 4096), (1, 1, 4096, 1), {}),
        (conv, (1, 1, 1, 1, 4096), (1, 1, 1, 4096, 1), {"implementation": "planes"}),
        (conv_transpose, (1, 1, 4096), (3, 4096, 1), {"strides": 3}),
        (conv_transpose, (1, 1, 4096), (1, 4096, 1), {"implementation": "xla"}),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_long_sums_do_not_stall(kernel, x, w, options, dtype):
    y = kernel(jnp.ones(x, dtype), jnp.ones(w, dtype), **options)
    assert y.dtype == dtype
    assert set(y.ravel().tolist()) == {4096.0}


def test_planes_are_added_in_float32():
    w = np.zeros((3, 1, 1, 17, 1), np.float32)
    w[:2, 0, 0, :2, 0] = [[256, 1], [1, 0]]
    y = conv(jnp.ones((1, 3, 1, 1, 17), jnp.bfloat16), jnp.asarray(w, jnp.bfloat16))
    assert y[0, 1, 0, 0, 0] == 258  # 257 of one plane and 1 of another; in bfloat16, 256 + 1 = 256


@pytest.mark.parametrize("rank", [1, 3])
def test_gradients_of_kernels_do_not_stall(rank):
    x = jnp.ones((4, *[1024 if i == 0 else 1 for i in range(rank)], 1), jnp.bfloat16)
    w = jnp.ones((*[1] * rank, 1, 1), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda w: conv(x, w).astype(jnp.float32).sum()))(w)
    assert gradient.ravel().tolist() == [4096.0]


X = jnp.ones((1, 4, 5, 6))


def test_gradients_in_bfloat16_multiply_bfloat16():
    """Or accelerators would train at half their speed."""
    x, w = jnp.ones((1, 6, 6, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 4), jnp.bfloat16)
    gradient = jax.grad(lambda x, w: conv(x, w, implementation="xla").sum(), (0, 1))
    lines = jax.jit(gradient).lower(x, w).as_text().splitlines()
    products = [line for line in lines if "stablehlo.convolution" in line]
    assert len(products) >= 2
    assert not any("f32" in line.rpartition(":")[2].partition("->")[0] for line in products)


@pytest.mark.parametrize(("argument", "maps"), [(0, 3), (1, 2), ((0, 1), 3)])
def test_only_gradients_that_are_wanted(argument, maps):
    """An image is no function of the parameters: the first layer has no gradient for it."""
    x, w = jnp.ones((1, 6, 6, 6, 4)), jnp.ones((3, 3, 3, 4, 4))
    gradient = jax.grad(lambda x, w: conv(x, w, implementation="planes").sum(), argument)
    assert str(jax.make_jaxpr(gradient)(x, w)).count("custom_partitioning[") == maps


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        (X[0, 0], (3, 6, 2), {}, "one to three spatial axes"),
        (X[None, None, None], (1, 1, 1, 1, 3, 6, 2), {}, "one to three spatial axes"),
        (X, (3, 6, 2), {}, "Add a batch axis in front or a channel axis at the end"),
        (X, (3, 0, 6, 2), {}, "nothing empty but the batch"),
        (X[:, :0], (3, 3, 6, 2), {"padding": 4}, "nothing empty but the batch"),
        (X[..., :0], (3, 3, 0, 2), {}, "nothing empty but the batch"),
        (X, (3, 3, 6, 0), {}, "nothing empty but the batch"),
        (X, (3, 3, 4, 2), {}, "6 input channels and a kernel for 4 to 2"),
        (X, (3, 3, 3, 2), {}, r"kernel shape \(\*k, 6, f\).*mean feature_group_count=2\?"),
        (X, (3, 3, 3, 3), {}, r"Change the kernel, or the number of groups\.$"),
        (X, (3, 3, 6, 2), {"feature_group_count": 0}, "Did you mean feature_group_count=1"),
        (X, (3, 3, 2, 4), {"feature_group_count": 3}, r"\(\*k, 2, f\), f a multiple of"),
        (X.astype(int), (3, 3, 6, 2), {}, r"x of int32.*same floating dtype.*astype\(float32\)"),
        (X.astype(jnp.bfloat16), (3, 3, 6, 2), {}, r"x of bfloat16 and a kernel of float32"),
        (X, (3, 3, 6, 2), {"strides": (1, 1, 1)}, r"strides=\(1, 1, 1\).*or 2 of them"),
        (X, (3, 3, 6, 2), {"strides": 0}, "strides=0.*each at least 1"),
        (X, (3, 3, 6, 2), {"strides": 1.5}, "strides=1.5.*one integer"),
        (X, (3, 3, 6, 2), {"kernel_dilation": (1, 0)}, r"kernel_dilation=\(1, 0\)"),
        (X, (3, 3, 6, 2), {"padding": "FULL"}, "padding='FULL'.*'SAME', 'VALID', one integer"),
        (X, (3, 3, 6, 2), {"padding": ((1, 1),)}, r"or 2 pairs \(before, after\)"),
        (X, (3, 3, 6, 2), {"padding": (1, 1)}, r"padding=\(1, 1\)"),
        (X, (3, 3, 6, 2), {"padding": None}, "padding=None"),
        (X, (5, 3, 6, 2), {"padding": "VALID"}, r"image of \(4, 5\).* spans \(5, 3\)"),
        (X, (7, 3, 6, 2), {"padding": "VALID", "strides": 2}, "no smaller than the kernel"),
        (X, (3, 3, 6, 2), {"padding": "VALID", "kernel_dilation": 2}, r"spans \(5, 5\)"),
        (X, (3, 3, 6, 2), {"padding": -1}, "Pad the image, or use padding='SAME'"),
        (X, (3, 3, 6, 2), {"padding": ((0.9, 1.7), (1, 1))}, r"padding=\(\(0.9, 1.7\)"),
        (X, (3, 3, 6, 2), {"padding": ((-6, 5), (1, 1))}, "padded or cropped"),
        (X.astype(jnp.complex64), (3, 3, 6, 2), {}, r"astype\(float32\)"),
    ],
)
def test_what_conv_refuses(x, w, options, message):
    with pytest.raises(ShapeError, match=rf"^conv: got .*?{message}"):
        conv(x, jnp.ones(w), **options)


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        (X[0, 0], (3, 6, 2), {}, "one to three spatial axes"),
        (X, (3, 3, 3, 2), {}, r"kernel shape \(\*k, 6, f\).*mean feature_group_count=2\?$"),
        (X, (3, 3, 6, 2), {"strides": (2,)}, r"strides=\(2,\).*or 2 of them"),
        (X, (3, 3, 6, 2), {"kernel_dilation": 0}, "kernel_dilation=0"),
        (X, (3, 3, 6, 2), {"padding": "FULL"}, "padding='FULL'"),
        (X, (3, 3, 6, 2), {"padding": ((0, 0),) * 3}, "or 2 pairs"),
        (X, (3, 3, 6, 2), {"padding": -1}, "no smaller than the kernel"),
        (X.astype(jnp.float16), (3, 3, 6, 2), {}, "x of float16 and a kernel of float32"),
    ],
)
def test_what_conv_transpose_refuses(x, w, options, message):
    with pytest.raises(ShapeError, match=rf"^conv_transpose: got .*{message}"):
        conv_transpose(x, jnp.ones(w), **options)


def test_an_empty_batch_passes():
    assert conv(jnp.ones((0, 3, 3, 3, 2)), jnp.ones((3, 3, 3, 2, 4))).shape == (0, 3, 3, 3, 4)
