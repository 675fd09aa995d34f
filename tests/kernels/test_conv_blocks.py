"""Convolution by blocks: the same as in one, in bounded memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.kernels import conv, conv_transpose
from biojax.kernels.conv import blocks
from biojax.kernels.conv.blocks import plan
from biojax.kernels.conv.winograd import matrices
from biojax.kernels.specs import LARGE, Spec

CASES = {
    "planes": (conv, (2, 7, 6, 5, 3), (3, 3, 2, 3, 4), {"strides": (2, 1, 2)}),
    "planes-outside": (
        conv,
        (1, 4, 6, 5, 2),
        (3, 3, 3, 2, 3),
        {"padding": ((0, 2), (4, 0), (3, 1))},
    ),
    "winograd": (conv, (2, 7, 6, 5, 3), (3, 3, 3, 3, 4), {}),
    "winograd-cropping": (conv, (1, 13, 6, 5, 2), (5, 3, 3, 2, 2), {"padding": -1}),
    "patches": (conv, (2, 5, 4, 6, 3), (3, 2, 3, 3, 4), {"strides": (1, 2, 1)}),
    "depthwise": (conv, (2, 5, 6, 7, 8), (3, 5, 5, 1, 8), {"feature_group_count": 8}),
    "depthwise-winograd": (conv, (2, 9, 6, 7, 8), (5, 5, 5, 1, 8), {"feature_group_count": 8}),
    "grouped": (conv, (2, 5, 6, 7, 6), (3, 2, 3, 2, 9), {"feature_group_count": 3}),
    "fft": (conv, (2, 5, 6, 7, 4), (3, 2, 3, 2, 2), {"feature_group_count": 2}),
    "pointwise": (conv, (3, 5, 6, 7, 2), (1, 1, 1, 2, 3), {"strides": (1, 2, 1)}),
    "phases": (conv_transpose, (2, 4, 3, 5, 3), (3, 4, 2, 3, 2), {"strides": (2, 3, 1)}),
}


NARROW = ["planes", "winograd-cropping", "depthwise", "phases", "pointwise"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in CASES]
    + [(name, "bfloat16") for name in NARROW]
    + [(name, "float16") for name in NARROW[:2]],
)
def test_many_blocks_equal_one(name, dtype, monkeypatch, outputs_and_gradients):
    kernel, shape, w, options = CASES[name]
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(s), dtype) for s in (shape, w))
    options = options | {"implementation": name.split("-")[0]}
    whole = outputs_and_gradients(kernel, x, w, **options)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    jax.clear_caches()
    parts = outputs_and_gradients(kernel, x, w, **options)
    jax.clear_caches()
    for part, one in zip(parts, whole, strict=True):
        rounding = 1e-5 if dtype == "float32" else float(jnp.finfo(dtype).eps)
        part, one = np.asarray(part, np.float32), np.asarray(one, np.float32)
        np.testing.assert_allclose(part, one, rtol=rounding, atol=rounding / 2 * abs(one).max())


@pytest.mark.parametrize("name", ["planes", "depthwise", "phases"])
def test_images_of_vmap_are_one_batch(name, monkeypatch):
    """Else each block would be gathered, pixel by pixel."""
    kernel, shape, w, options = CASES[name]
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((3, *shape), w))
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)

    def run(x):
        return kernel(x, w, implementation=name, **options)

    lowered = jax.jit(jax.vmap(jax.grad(lambda x: jnp.sin(run(x)).sum()))).lower(x)
    assert "gather" not in lowered.as_text()
    np.testing.assert_allclose(jax.vmap(run)(x)[1], run(x[1]), atol=1e-5)


@pytest.mark.parametrize(
    ("out", "scratch", "tile", "blocks"),
    [
        ((1, 64, 64, 64), 4 * 100, 4, [(1, 1), (16, 4), (1, 64)]),
        ((1, 48, 48, 48), 4, 1, [(1, 1), (1, 48), (1, 48)]),
        ((4, 1, 256, 256), 4 * 100, 1, [(4, 1), (1, 1), (4, 64)]),
        ((8, 4, 8, 8), 4 * 1000, 1, [(1, 8), (1, 4), (1, 8)]),
        ((2, 7, 3, 3), 2**30, 4, [(2, 1), (2, 4), (3, 1)]),
        ((0, 2, 3, 3), 4, 1, [(1, 1), (1, 2), (1, 3)]),
    ],
)
def test_blocks_are_of_the_size_that_fits(out, scratch, tile, blocks):
    cuts = plan(out, (2, 1), (3, 3), (1, 1), scratch, weights=0, tile=tile)
    assert [(cut.parts, cut.size) for cut in cuts] == blocks
    assert all(cut.parts * cut.size >= n for cut, n in zip(cuts, out[:3], strict=True))
    assert [cut.step for cut in cuts[1:]] == [2 * cuts[1].size, cuts[2].size]
    assert [cut.length for cut in cuts[1:]] == [2 * cuts[1].size + 1, cuts[2].size + 2]


@pytest.mark.parametrize(("outputs", "taps"), [(4, 3), (4, 5), (2, 7), (4, 7), (2, 9)])
def test_minimal_filtering(outputs, taps):
    a, g, b = matrices(outputs, taps)
    rng = np.random.default_rng(taps)
    x, w = rng.standard_normal(outputs + taps - 1), rng.standard_normal(taps)
    np.testing.assert_allclose(a @ ((g @ w) * (b @ x)), np.correlate(x, w), rtol=1e-12)


@pytest.mark.parametrize(
    ("implementation", "w", "groups"),
    [
        ("winograd", (3, 3, 3, 128, 16), 1),
        ("winograd", (5, 3, 3, 32, 16), 1),
        ("depthwise", (5, 5, 5, 1, 16), 16),
        ("depthwise", (7, 7, 7, 1, 16), 16),
        ("depthwise", (9, 3, 3, 1, 16), 16),
    ],
)
def test_fewer_products_cost_few_digits(implementation, w, groups):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 14, 8, 8, w[-2] * groups)), rng.standard_normal(w)
    with jax.enable_x64():
        expected = conv(
            jnp.asarray(x), jnp.asarray(w), feature_group_count=groups, implementation="xla"
        )
    narrow = (jnp.asarray(a, jnp.float32) for a in (x, w))
    got = conv(*narrow, feature_group_count=groups, implementation=implementation)
    assert np.abs(got - np.asarray(expected)).max() <= 1e-5 * np.abs(expected).max()


# Images and weights that some way of computing them would hold several times.
HEAVY = {
    "conv": [
        Spec("many_weights", ((1, 8, 8, 8, 640), (3, 3, 3, 640, 320))),
        Spec("few_outputs", ((1, 96, 96, 96, 32), (3, 3, 3, 32, 1)), {}, "bfloat16"),
    ],
    "conv_transpose": [
        Spec("many_pixels", ((1, 128, 128, 60, 8), (2, 2, 2, 8, 8)), {"strides": 2}),
        Spec("wide", ((1, 32, 32, 32, 128), (2, 2, 2, 128, 64)), {"strides": 2}, "bfloat16"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["conv", "conv_transpose"])
def test_memory_is_bounded(kernel, memory):
    """No more than 64 MiB beside the outputs, forward and both gradients."""
    function = {"conv": conv, "conv_transpose": conv_transpose}[kernel]
    for spec in [*LARGE[kernel], *HEAVY[kernel]]:
        call = partial(function, **spec.options)
        assert max(memory(call, *spec.shapes, dtype=spec.dtype)) <= 64 * 2**20, spec
