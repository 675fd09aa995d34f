"""Operations and bytes, against counts made by hand and by enumeration."""

import itertools
import math

import jax
import jax.numpy as jnp
import pytest

from biojax import kernels
from biojax.bench.counts import (
    MODES,
    count_bytes,
    count_flops,
    count_model,
    count_voxels,
)
from biojax.kernels.specs import LARGE, SPECS, Spec
from biojax.models import create_model


@pytest.mark.parametrize(
    ("kernel", "name", "out", "count"),
    [
        ("conv", "3d_64_c32", (1, 64, 64, 64, 32), 2 * 64**3 * 27 * 32 * 32),
        ("conv", "3d_96_c1_to_32", (1, 96, 96, 96, 32), 2 * 96**3 * 27 * 32),
        ("conv", "3d_48_c64_strided", (1, 24, 24, 24, 64), 2 * 24**3 * 27 * 64 * 64),
        ("conv", "3d_48_depthwise_5", (1, 48, 48, 48, 64), 2 * 48**3 * 125 * 64),
        ("conv", "2d_256_c64", (1, 256, 256, 64), 2 * 256**2 * 9 * 64 * 64),
        ("conv_transpose", "3d_32_c128_to_64", (1, 64, 64, 64, 64), 2 * 64**3 * 128 * 64),
        ("max_pool", "3d_64_c32", (1, 32, 32, 32, 32), 64**3 * 32),
        ("avg_pool", "3d_64_c32_overlap", (1, 32, 32, 32, 32), 32**3 * 27 * 32),
        ("linear_scan", "t1024_c256", (4, 1024, 256), 2 * 4 * 1024 * 256),
        ("selective_scan", "t256_c256_n16", (1, 256, 256), 7 * 256 * 256 * 16),
        ("rnn", "t256_c128", (8, 256, 128), 2 * 8 * 256 * 2 * 128 * 128),
        ("lstm", "t256_c128", (8, 256, 128), 4 * 2 * 8 * 256 * 2 * 128 * 128),
        ("gru", "t256_c128", (8, 256, 128), 3 * 2 * 8 * 256 * 2 * 128 * 128),
        ("ssd", "t4096_n8_k32_s64", (1, 4096, 8, 32), 5 * 4096 * 8 * 32 * 64),
        ("rg_lru", "t4096_c512", (1, 4096, 512), 4 * 4096 * 512),
        ("mlstm", "t2048_n4_k64", (1, 2048, 4, 64), 5 * 2048 * 4 * 64 * 64),
        ("slstm", "t512_n4_k32", (8, 512, 4, 32), 2 * 8 * 512 * 4 * 4 * 32 * 32),
        (
            "conv_lstm",
            "2d_64_t10_c16",
            (1, 10, 64, 64, 16),
            2 * 10 * 64**2 * 9 * 2 * 16 * 64,
        ),
        ("conv_gru", "2d_64_t10_c16", (1, 10, 64, 64, 16), 2 * 10 * 64**2 * 9 * 2 * 16 * 48),
        ("attention", "t1024_n8", (1, 1024, 8, 64), 4 * 8 * 1024**2 * 64),
        ("axial_attention", "24_n3_k16", (1, 24, 24, 24, 3, 16), 4 * 24**4 * 48),
        ("linear_attention", "t4096_n8", (1, 4096, 8, 64), 4 * 4096 * 8 * 64**2),
        ("window_attention", "49_n3_k16", (1, 49, 49, 49, 3, 16), 4 * 49**3 * 7**3 * 48),
        ("neighborhood_attention", "24_n3_k16", (1, 24, 24, 24, 3, 16), 4 * 24**3 * 7**3 * 48),
    ],
)
def test_operations_by_hand(kernel, name, out, count):
    spec = next(spec for spec in LARGE[kernel] if spec.name == name)
    assert count_flops(kernel, spec, out) == count


def test_operations_of_a_convolution_by_enumeration():
    """Every product of the definition, padding included, counted one by one."""
    spec = Spec("", ((2, 5, 4), (3, 2, 6)), {"strides": 2, "feature_group_count": 2})
    out = (2, 3, 6)
    products = sum(1 for _ in itertools.product(*map(range, out), *map(range, (3, 2))))
    assert count_flops("conv", spec, out) == 2 * products


@pytest.mark.parametrize("kernel", LARGE)
def test_large_shapes_are_calls_that_can_be_made(kernel):
    """Traced, not run: names differ, shapes fit, and the work can be counted."""
    assert set(LARGE) == set(SPECS)
    assert len({spec.name for spec in LARGE[kernel]}) == len(LARGE[kernel])
    for spec in LARGE[kernel]:
        arrays = [jax.ShapeDtypeStruct(shape, jnp.dtype(spec.dtype)) for shape in spec.shapes]
        out = jax.eval_shape(
            lambda *a, spec=spec: getattr(kernels, kernel)(*a, **spec.options), *arrays
        )
        first = jax.tree.leaves(out)[0]
        assert first.dtype == spec.dtype
        assert count_flops(kernel, spec, first.shape) > 0
        assert ("bfloat16" in spec.name) == (spec.dtype == "bfloat16")


def test_voxels_are_positions_of_the_input():
    assert count_voxels("conv", Spec("", ((2, 3, 4, 5, 7), (1,)))) == 120
    assert count_voxels("linear_scan", Spec("", ((7,), (2, 9, 7)))) == 18
    assert count_voxels("attention", Spec("", ((2, 9, 4, 8),) * 3)) == 18
    assert count_voxels("neighborhood_attention", Spec("", ((2, 3, 3, 4, 8),) * 3)) == 18
    assert count_voxels("slstm", Spec("", ((2, 9, 3, 4, 5), (3, 5, 4, 5)))) == 18
    assert count_voxels("conv_gru", Spec("", ((2, 3, 4, 5, 7), (1,)))) == 120


def test_bytes_by_mode():
    read, written = jnp.ones(10, jnp.bfloat16), jnp.ones((3, 2))
    found = {mode: count_bytes(mode, [read], {"y": written}) for mode in MODES}
    assert found == {"forward": 20 + 24, "vjp": 20 + 24 + 20, "both": 2 * (20 + 24)}


def count(name: str, shape: tuple[int, ...], **fields):
    model = create_model(name, **fields)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return count_model(model, jax.eval_shape(model.init, jax.random.key(0), x), x)


def test_operations_of_a_unet():
    choices, found = count("unet", (2, 4, 4, 4, 3), out_channels=5, features=(2, 6), num_convs=1)
    stages = [
        64 * 27 * 3 * 2,  # encoder0
        8 * 27 * 2 * 6,  # encoder1, which halves
        8 * 8 * 6 * 2,  # up0: each voxel to eight
        64 * 27 * 4 * 2,  # decoder0
        64 * 2 * 5,  # head
    ]
    assert found == 2 * 2 * sum(stages)
    assert [choice.kernel for choice in choices].count("conv_transpose") == 1


def test_operations_of_dense_layers():
    fields = {"num_classes": 3, "features": (2,), "dense": 7}
    _, found = count("cnn_classifier", (4, 6, 6, 1), **fields)
    assert found == 2 * 4 * (16 * 9 * 2 + math.prod((2, 2, 2)) * 7 + 7 * 3)


@pytest.mark.parametrize("name", ["rnn_classifier", "attention_classifier"])
def test_what_is_not_counted_is_not_guessed(name):
    choices, found = count(name, (1, 8, 2), num_classes=3)
    assert found is None
    assert choices
