"""Convolution by Fourier transforms: exact where others are, and small beside the image."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.kernels import conv, explain

CASES = {  # groups, x, w, options
    "kernel-beyond-the-image": (2, (1, 5, 6, 4), (9, 11, 2, 6), {}),
    "strided-and-dilated": (3, (2, 6, 7, 8, 6), (2, 3, 2, 2, 3), {"strides": 2, "padding": 3,
                            "kernel_dilation": (2, 1, 3)}),
    "1d": (4, (2, 40, 4), (21, 1, 8), {"padding": [(3, 30)]}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_is_the_convolution(name, outputs_and_gradients):
    groups, *shapes, options = CASES[name]
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    options = {"feature_group_count": groups, **options}
    expected = outputs_and_gradients(conv, x, w, implementation="xla", **options)
    got = outputs_and_gradients(conv, x, w, implementation="fft", **options)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(
    ("x", "w", "options", "chosen"),
    [
        ((1, 64, 64, 64, 8), (15, 15, 15, 1, 8), {"feature_group_count": 8}, "fft"),
        ((1, 64, 64, 64, 4), (15, 15, 15, 4, 4), {}, "fft"),
        ((1, 64, 64, 64, 64), (15, 15, 15, 64, 64), {}, "planes"),
        ((1, 64, 64, 8), (21, 21, 1, 8), {"feature_group_count": 8, "strides": 2}, "depthwise"),
        ((1, 64, 64, 8), (15, 15, 1, 8), {"feature_group_count": 8}, "fft"),
        ((1, 64, 64, 8), (7, 7, 1, 8), {"feature_group_count": 8}, "depthwise"),
        ((1, 640, 8), (129, 1, 8), {"feature_group_count": 8}, "fft"),
        ((1, 640, 8), (65, 1, 8), {"feature_group_count": 8}, "depthwise"),
    ],
)  # fmt: skip
def test_is_chosen_for_many_taps_and_few_channels(x, w, options, chosen):
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, w))
    assert explain(conv, x, w, **options)[0].implementation == chosen


def test_stands_every_transform(stands_every_transform):
    rng = np.random.default_rng(0)
    shapes = (8, 7, 5, 4), (5, 4, 1, 4)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)

    def run(x, w):
        return conv(x, w, feature_group_count=4, implementation="fft")

    stands_every_transform(run, x, w)


@pytest.mark.slow
def test_memory_is_bounded(memory):
    """No more than 64 MiB beside the outputs, forward and both gradients."""
    apply = partial(conv, feature_group_count=16)
    assert max(memory(apply, (1, 96, 96, 96, 16), (15, 15, 15, 1, 16))) <= 64 * 2**20
