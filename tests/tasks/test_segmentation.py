from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import DataError, ShapeError
from biojax.losses import cross_entropy, dice_cross_entropy
from biojax.models import create_model
from biojax.tasks import Segmentation, deep_supervision_loss


class Echo(nn.Module):
    """Logits that are the image, times a scale that is learned; counts its calls in training."""

    @nn.compact
    def __call__(self, x, *, train):
        calls = self.variable("batch_stats", "calls", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            calls.value += 1
        return self.param("scale", nn.initializers.ones, ()) * x


VARIABLES = {"params": {"scale": 1.0}, "batch_stats": {"calls": 0.0}}


def one_hot(labels):
    return 10 * np.eye(3, dtype=np.float32)[np.asarray(labels)]


def call(task, logits, labels, train=False):
    batch = {"image": jnp.asarray(logits), "label": jnp.asarray(labels)}
    return jax.jit(partial(task, train=train))(VARIABLES, batch, key=jax.random.key(1))


def test_loss_metrics_and_running_statistics():
    task = Segmentation(Echo())
    logits = one_hot([[0, 1, 2, 2], [0, 0, 0, 0]])
    labels = jnp.array([[0, 1, 2, 1], [0, 0, 0, 0]])
    loss, (metrics, batch_stats) = call(task, logits, labels)
    np.testing.assert_allclose(loss, jax.jit(dice_cross_entropy)(logits, labels), rtol=1e-6)
    assert float(metrics["accuracy"]) == (0.75 + 1) / 2
    assert float(batch_stats["calls"]) == 0
    assert float(call(task, logits, labels, train=True)[1][1]["calls"]) == 1


def test_loss_is_the_one_chosen():
    task = Segmentation(Echo(), partial(cross_entropy, ignore_label=255))
    logits, labels = one_hot([[0, 1, 2, 2]]), np.array([[0, 1, 255, 255]])
    loss, (metrics, _) = call(task, logits, labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(1 + 2 * np.exp(-10)), rtol=1e-3)
    assert float(metrics["accuracy"]) == 1  # of the two voxels that count


def test_predictions_are_probabilities():
    task = Segmentation(Echo())
    image = jnp.log(jnp.array([[[1.0, 3.0]]])).astype(jnp.float16)
    assert task.init(jax.random.key(0), {"image": image}) == VARIABLES
    probabilities = task.predict(VARIABLES, image)
    assert probabilities.dtype == jnp.float32
    np.testing.assert_allclose(probabilities, [[[0.25, 0.75]]], rtol=1e-3)


def test_score_is_the_mean_over_cases():
    task = Segmentation(Echo())
    predicted = [np.array([[1, 1], [0, 0]]), np.array([2, 0, 0])]  # cases of different sizes
    labels = [np.array([[1, 0], [0, 0]]), np.array([2, 0, 0])]
    score = task.score([one_hot(p) for p in predicted], labels)
    assert score == pytest.approx({"dice": (2 / 3 + 1) / 2, "dice_1": 2 / 3, "dice_2": 1.0})
    score = task.score(one_hot([[0, 1]]), np.array([[0, 1]]))
    assert np.isnan(score["dice_2"])
    assert score["dice"] == score["dice_1"] == 1
    with pytest.raises(DataError, match="3"):
        task.score(one_hot([[0, 1]]), np.array([[0, 3]]))


def test_one_class_is_refused():
    with pytest.raises(ShapeError, match="two channels or more"):
        call(Segmentation(Echo()), jnp.zeros((2, 4, 1)), jnp.zeros((2, 4), jnp.int32))


@pytest.mark.parametrize(
    ("count", "weights"),
    [(1, [1]), (2, [1, 0]), (3, [2 / 3, 1 / 3, 0]), (5, [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])],
)
def test_weights_of_deep_supervision(count, weights):
    logits = [jnp.full((1, 2 ** (count - i), 2), i) for i in range(count)]
    labels = jnp.zeros((1, 2**count), jnp.int32)
    loss = deep_supervision_loss(lambda y, _: jnp.eye(count)[y[0, 0, 0]], logits, labels)
    np.testing.assert_allclose(loss, weights, rtol=1e-6)


@pytest.mark.parametrize("dense", [False, True])
def test_labels_of_lower_resolutions_are_the_nearest(dense):
    labels = np.arange(2 * 4 * 6).reshape(2, 4, 6)
    seen = []
    logits = [jnp.zeros((2, *shape, 1)) for shape in ((4, 6), (4, 3), (2, 2), (1, 1))]
    values = labels[..., None] * 1.0 if dense else labels
    deep_supervision_loss(lambda _, here: seen.append(here) or 1.0, logits, values)
    assert len(seen) == 3
    for found, expected in zip(
        seen, (labels, labels[:, :, 1::2], labels[:, 1::2, [1, 4]]), strict=True
    ):
        np.testing.assert_array_equal(found[..., 0] if dense else found, expected)


def test_training_with_deep_supervision():
    fields = {"features": (4, 6, 8), "num_convs": 1, "deep_supervision": True}
    model = create_model("unet", out_channels=2, spatial_dims=2, **fields)
    task = Segmentation(model)
    image = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(image[..., 0] > 0, jnp.int32)}
    variables = jax.jit(partial(task.init, batch=batch))(jax.random.key(0))
    variables = {"params": variables["params"]}
    key = jax.random.key(1)
    step = jax.jit(
        jax.value_and_grad(partial(task, batch=batch, key=key, train=True), has_aux=True)
    )

    (loss, (metrics, _)), gradients = step(variables)
    full, lower = jax.jit(partial(model.apply, train=True))(variables, batch["image"])
    np.testing.assert_allclose(loss, dice_cross_entropy(full, batch["label"]), rtol=1e-5)
    assert lower.shape == (2, 4, 4, 2)
    expected = jnp.mean(full.argmax(-1) == batch["label"])
    np.testing.assert_allclose(metrics["accuracy"], expected, rtol=1e-6)
    assert np.abs(gradients["params"]["head1"]["kernel"]).max() == 0  # the lowest has no weight

    first = loss
    for _ in range(30):
        (loss, _), gradients = step(variables)
        variables = jax.tree.map(lambda p, g: p - 0.1 * g, variables, gradients)
    assert loss < 0.7 * first
    assert jax.jit(task.predict)(variables, batch["image"]).shape == (2, 8, 8, 2)
