"""Convolution in groups of any size: the reference, one block or many, and bounded memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.kernels import conv, explain
from biojax.kernels.conv import blocks, grouped

CASES = {  # groups, x, w, options
    "merged": (4, (1, 5, 6, 7, 16), (3, 3, 3, 4, 24), {"strides": (2, 1, 2)}),
    "rest": (5, (2, 6, 7, 15), (3, 2, 3, 10), {"padding": ((2, 0), (-1, 3))}),
    "multiplier": (6, (1, 9, 8, 6), (5, 3, 1, 12), {"kernel_dilation": 2, "strides": 2}),
    "loop": (40, (1, 4, 5, 80), (3, 3, 2, 40), {}),
    "1d": (3, (2, 17, 6), (4, 2, 3), {"strides": 3}),
    "one": (1, (1, 4, 5, 6, 2), (3, 1, 3, 2, 3), {}),
}


def drawn(*shapes: tuple[int, ...]):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("name", CASES)
def test_is_the_convolution(name, monkeypatch, outputs_and_gradients):
    """Equal to XLA's own, which is tested against the reference, in one block and in many."""
    groups, x, w, options = CASES[name]
    x, w = drawn(x, w)
    options = {"feature_group_count": groups, **options}
    expected = outputs_and_gradients(conv, x, w, implementation="xla", **options)
    for block in (blocks.BLOCK_BYTES, 100):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
        jax.clear_caches()
        got = outputs_and_gradients(conv, x, w, implementation="grouped", **options)
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=5e-5)
    jax.clear_caches()


@pytest.mark.parametrize(
    ("groups", "kernel", "prepared"),
    [
        (32, (3, 3, 3, 4, 128), (16, 3, 3, 3, 8, 8)),
        (32, (1, 3, 3, 1, 64), (4, 1, 3, 3, 8, 16)),
        (5, (1, 1, 1, 3, 10), (2, 1, 1, 1, 12, 8)),
        (2, (3, 3, 3, 32, 64), (2, 3, 3, 3, 32, 32)),
        (3, (1, 1, 1, 1, 3), (1, 1, 1, 1, 3, 3)),
    ],
)
def test_groups_are_merged_until_they_fill_vectors(groups, kernel, prepared):
    method = grouped.method(groups)
    w = jax.ShapeDtypeStruct(kernel, jnp.float32)
    assert jax.eval_shape(method.prepare, w).shape == prepared


def test_the_kernel_of_merged_groups_is_zero_off_its_diagonal():
    w = jnp.arange(1.0, 13.0).reshape(1, 1, 1, 2, 6)
    (merged,) = grouped.method(3).prepare(w)[:, 0, 0, 0]
    one, two, three = np.split(np.asarray(w).reshape(2, 6), 3, axis=1)
    zero = np.zeros((2, 2))
    expected = np.block([[one, zero, zero], [zero, two, zero], [zero, zero, three]])
    np.testing.assert_array_equal(merged, expected)


def test_bfloat16_is_summed_in_float32():
    x, w = jnp.ones((1, 9, 8), jnp.bfloat16), jnp.full((9, 4, 8), 1 + 2**-7, jnp.bfloat16)
    y = conv(x, w, feature_group_count=2, padding="VALID", implementation="grouped")
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.full((1, 1, 8), 36 * (1 + 2**-7), jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "w", "groups"),
    [
        ((1, 48, 48, 48, 64), (3, 3, 3, 4, 64), 16),
        ((1, 256, 256, 128), (3, 3, 4, 128), 32),
        ((1, 48, 48, 48, 32), (5, 5, 5, 1, 64), 32),
    ],
)
def test_memory_is_bounded(x, w, groups, memory):
    """No more than 64 MiB beside the outputs, forward and both gradients."""
    apply = partial(conv, feature_group_count=groups)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, w)]
    assert explain(apply, *arrays)[0].implementation == "grouped"
    assert max(memory(apply, x, w)) <= 64 * 2**20
