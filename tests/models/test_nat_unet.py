"""The U-Net of neighbourhood attention: its numbers of parameters, and what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError
from biojax.models import count_parameters, create_model

SMALL = {
    "out_channels": 2,
    "features": (2, 6),
    "num_blocks": (2,),
    "num_heads": (1,),
    "num_convs": 1,
    "attention_kernel_size": 2,
}


def block(c: int, ratio: float, scales: bool) -> int:
    """Two norms, four matrices of attention, two of the perceptron, and scales of the branches."""
    hidden = int(ratio * c)
    return 4 * c + 4 * (c + 1) * c + (c + 1) * hidden + (hidden + 1) * c + 2 * c * scales


@pytest.mark.parametrize(
    ("size", "one_to_2", "one_to_14"),
    [("t", 12_831_170, 12_831_470), ("s", 31_052_290, 31_052_686), ("b", 76_024_610, 76_025_198)],
)
def test_counts(size, one_to_2, one_to_14):
    model = create_model(f"nat_unet_{size}", out_channels=2)
    f = model.features
    by_hand = 27 * f[0] + 27 * f[0] ** 2 + 2 * 3 * f[0]  # two convolutions, with norms
    for c, wide, blocks in zip(f, f[1:], model.num_blocks, strict=False):
        by_hand += 27 * c * wide + 2 * wide  # down
        by_hand += blocks * block(wide, model.mlp_ratio, model.layer_scale is not None)
        by_hand += 8 * wide * c + c  # up
        by_hand += 27 * 2 * c * c + 27 * c**2 + 2 * 3 * c
    by_hand += (f[0] + 1) * 2
    assert count_parameters(model, (1, 16, 16, 16, 1)) == by_hand == one_to_2
    assert one_to_14 == one_to_2 + (f[0] + 1) * 12


def test_every_second_block_reaches_over_the_image(monkeypatch):
    seen = []

    def spy(query, key, value, *, kernel_size, dilation, **_):
        seen.append((query.shape[1:3], kernel_size, dilation))
        return query

    monkeypatch.setattr("biojax.modules.neighborhood.neighborhood_attention", spy)
    x = jax.ShapeDtypeStruct((1, 8, 14, 1), jnp.float32)
    for fields in ({}, {"dilated": False}):
        model = create_model("nat_unet_t", spatial_dims=2, **SMALL, **fields)
        jax.eval_shape(model.init, jax.random.key(0), x)
    near, far = ((4, 7), (2, 2), (1, 1)), ((4, 7), (2, 2), (2, 3))
    assert seen == [near, far, near, near]


def test_a_window_that_is_larger_than_a_stage(with_parameters, quick_jit):
    """With attention to the whole of the second stage every pixel is seen."""
    model = create_model("nat_unet_t", spatial_dims=2, **{**SMALL, "attention_kernel_size": 9})
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 16, 12, 1)), jnp.float32)
    variables = with_parameters(model, x)
    gradient = quick_jit(jax.grad(lambda x: jnp.asarray(model.apply(variables, x))[0, 0, 0, 0]))(x)
    assert np.all(np.asarray(gradient) != 0)


def test_stages_that_do_not_fit():
    model = create_model("nat_unet_s", out_channels=2, features=(4, 8))
    with pytest.raises(ConfigError, match="nat_unet: got num_blocks for 4 and num_heads for 4"):
        count_parameters(model, (1, 8, 8, 8, 1))
