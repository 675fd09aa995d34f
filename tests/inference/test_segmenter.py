"""A run's folder becomes a model that prepares volumes as training did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.data import ClipWindow, to_config
from biojax.errors import CheckpointError, ShapeError
from biojax.inference import Recipe, load_segmenter, predict_volume
from biojax.io import Volume
from biojax.training import Checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose model was random, batch statistics included."""
    folder = tmp_path_factory.mktemp("run")
    recipe = Recipe(
        model={"name": "unet", "out_channels": 3, "features": [4, 8], "norm": "batch"},
        channels=1,
        classes=("background", "liver", "spleen"),
        intensity=to_config(ClipWindow(-100, 100)),
        patch=(8, 8, 8),
    )
    image = jax.ShapeDtypeStruct((1, 8, 8, 8, 1), jnp.float32)
    shapes = jax.eval_shape(recipe.create_model().init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(x.dtype), shapes)
    state = {name: state[name] for name in ("params", "batch_stats")}
    Checkpoints(folder).save(1, state, config=recipe.to_config())
    return folder


def test_it_normalises_and_predicts_like_the_parts(folder):
    segmenter = load_segmenter(folder)
    assert segmenter.recipe.classes == ("background", "liver", "spleen")
    image = np.random.default_rng(0).normal(0, 100, (8, 10, 9)).astype(np.float32)
    expected = predict_volume(
        segmenter.model.apply,
        segmenter.variables,
        ((image + 100) / 200).clip(0, 1)[..., None],
        window=(8, 8, 8),
    )
    logits = segmenter(image[..., None], reduce="logits")
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    labels = segmenter(Volume(image, "zyx", spacing=(3.0, 1.0, 1.0)))
    assert (labels.axes, labels.spacing, labels.dtype) == ("zyx", (3.0, 1.0, 1.0), np.uint8)
    np.testing.assert_array_equal(labels.data, logits.argmax(-1))


def test_channels_and_axes_are_those_of_training(folder):
    segmenter = load_segmenter(folder)
    with pytest.raises(ShapeError, match="1 channels"):
        segmenter(np.zeros((8, 8, 8, 2), np.float32))
    with pytest.raises(ShapeError, match="3 spatial axes"):
        segmenter(Volume(np.zeros((8, 8), np.float32), "yx"))


def test_a_recipe_round_trips_through_json(folder):
    config = Checkpoints(folder).config()
    assert Recipe.from_config(config).to_config() == config


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    Checkpoints(tmp_path).save(1, {"params": np.ones(2)}, config={"what": "a classifier"})
    with pytest.raises(CheckpointError, match="segmentation run"):
        load_segmenter(tmp_path)
