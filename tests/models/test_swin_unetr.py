"""Swin UNETR: its numbers of parameters, what is dropped, one step of training, and prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biojax.errors import ConfigError
from biojax.inference import predict_volume
from biojax.models import SwinUNETR, count_parameters, create_model
from biojax.modules import SwinBlock
from biojax.tasks import Segmentation
from biojax.training import create_state, make_train_step


@pytest.mark.parametrize(
    ("name", "features", "in_channels", "out_channels", "count"),
    [
        ("swin_unetr", 48, 1, 14, 62_187_296),
        ("swin_unetr", 48, 4, 3, 62_191_941),
        ("swin_unetr_v2", 48, 1, 21, 72_762_999),
        ("swin_unetr_v2", 96, 1, 21, 290_392_695),
        ("swin_unetr_v2", 192, 1, 21, 1_160_845_431),
    ],
)
def test_counts(name, features, in_channels, out_channels, count):
    model = create_model(name, out_channels=out_channels, features=features)
    assert model.stride == (32, 32, 32)
    assert count_parameters(model, (1, 32, 32, 32, in_channels)) == count


def test_every_second_block_is_shifted_and_drops_more(monkeypatch):
    seen = []

    def block(heads, window, shifted, ratio, bias, rate, *args, **options):
        seen.append((heads, shifted, rate))
        return SwinBlock(heads, window, shifted, ratio, bias, rate, *args, **options)

    monkeypatch.setattr("biojax.models.swin_unetr.SwinBlock", block)
    fields = {"num_blocks": (2, 3), "num_heads": (1, 2), "drop_path_rate": 0.2}
    model = SwinUNETR(2, 1, 4, window_size=3, **fields)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 1)))
    assert seen == [
        (heads, shifted, pytest.approx(rate))
        for heads, shifted, rate in [
            (1, False, 0.0),
            (1, True, 0.05),
            (2, False, 0.1),
            (2, True, 0.15),
            (2, False, 0.2),
        ]
    ]


def test_what_is_refused():
    model = SwinUNETR(2, num_heads=(3, 6))
    with pytest.raises(ConfigError, match="num_blocks for 4 stages and num_heads for 2"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 32, 1)))


@pytest.mark.slow
def test_a_step_of_training_and_the_prediction_of_a_volume():
    model = create_model("swin_unetr", out_channels=2, features=12)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 64, 64, 64, 1)).astype(np.float32)
    batch = {"image": image, "label": (image[..., 0] > 0).astype(np.int32)}
    task, optimizer = Segmentation(model), optax.adam(1e-3)
    state = create_state(task, optimizer, jax.random.key(0), batch)
    step, losses = make_train_step(task, optimizer), []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    volume = rng.standard_normal((64, 64, 80, 1)).astype(np.float32)
    logits = predict_volume(model.apply, state.variables, volume, window=64)
    assert logits.shape == (64, 64, 80, 2)
    inside = model.apply(state.variables, volume[None, :, :, :64])[0, :, :, :8]
    np.testing.assert_allclose(logits[:, :, :8], inside, rtol=1e-3, atol=1e-4)
