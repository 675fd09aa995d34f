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
from biojax.training import TrainState, make_train_step


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
def test_a_step_of_training_and_the_prediction_of_a_volume(with_parameters):
    model = create_model("swin_unetr", out_channels=2, features=12)
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((64, 64, 96, 1)).astype(np.float32)
    image = volume[None, :, :, :64]
    batch = {"image": image, "label": (image[..., 0] > 0).astype(np.int32)}
    optimizer, params = optax.adamw(1e-3), with_parameters(model, image)["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={},
        opt_state=optimizer.init(params),
        ema=None,
        key=jax.random.key(0),
    )
    step = make_train_step(Segmentation(model), optimizer)
    state, before = step(state, batch)
    variables = jax.tree.map(jnp.copy, state.variables)
    _, after = step(state, batch)
    assert after["loss"] < before["loss"]
    logits = predict_volume(model.apply, variables, volume, window=64)
    assert logits.shape == (64, 64, 96, 2)
    assert np.isfinite(logits).all()
