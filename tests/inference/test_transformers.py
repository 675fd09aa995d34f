"""Transformers for segmentation: a step of training, then a volume larger than their windows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biojax.inference import predict_volume
from biojax.models import create_model
from biojax.tasks import Segmentation
from biojax.training import TrainState, make_train_step

TINY = {"image_size": 8, "num_layers": 1, "num_heads": 2, "patch_size": 4}
MODELS = {
    "primus_s": {"features": 12, **TINY},
    "unetr": {"features": 4, "hidden_features": 4, **TINY},
}
WIDER = {
    "primus_s": {"image_size": 64, "num_layers": 4},
    "swin_unetr": {"features": 12},
    "unetr": {
        "image_size": 64,
        "features": 8,
        "hidden_features": 192,
        "num_layers": 4,
        "num_heads": 4,
    },
}


def train_and_predict(name, fields, size, with_parameters):
    """The model, its variables after a step that lowers the loss, a volume and its logits."""
    model = create_model(name, out_channels=2, **fields)
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((size, size, size * 3 // 2, 1)).astype(np.float32)
    image = volume[None, :, :, :size]
    batch = {"image": image, "label": (image[..., 0] > 0).astype(np.int32)}
    optimizer, params = optax.adamw(1e-3), with_parameters(model, image)["params"]
    start = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={},
        opt_state=optimizer.init(params),
        ema=None,
        key=jax.random.key(0),
    )
    step = make_train_step(Segmentation(model), optimizer)
    state, before = step(start, batch)
    variables = jax.tree.map(jnp.copy, state.variables)
    _, after = step(state, batch)
    assert after["loss"] < before["loss"]
    return model, variables, volume, predict_volume(model.apply, variables, volume, window=size)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_and_a_volume(name, with_parameters):
    *_, y = train_and_predict(name, MODELS[name], 8, with_parameters)
    assert y.shape == (8, 8, 12, 2)
    assert np.isfinite(y).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDER)
def test_a_step_and_a_volume_of_64_voxels(name, with_parameters):
    model, variables, volume, y = train_and_predict(name, WIDER[name], 64, with_parameters)
    assert y.shape == (64, 64, 96, 2)
    # The first half of the first window lies in no other.
    direct = jax.jit(model.apply)(variables, volume[None, :, :, :64])[0]
    np.testing.assert_allclose(y[:, :, :32], direct[:, :, :32], rtol=1e-3, atol=1e-3)
    assert np.isfinite(y).all()
