from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ShapeError
from biojax.losses import focal
from biojax.tasks import Classification


class Echo(nn.Module):
    """Logits that are the image."""

    @nn.compact
    def __call__(self, x, *, train):
        return self.param("scale", nn.initializers.ones, ()) * x


def call(logits, labels, **options):
    task = Classification(Echo(), **options)
    batch = {"image": jnp.asarray(logits, jnp.float32), "label": jnp.asarray(labels)}
    variables = {"params": {"scale": jnp.float32(1)}}
    step = jax.jit(partial(task, train=True))
    loss, (metrics, batch_stats) = step(variables, batch, key=jax.random.key(1))
    assert batch_stats == {}
    return float(loss), float(metrics["accuracy"]), task.predict(variables, batch["image"])


def test_several_classes_are_a_softmax():
    logits = np.log([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]])
    loss, accuracy, probabilities = call(logits, [1, 1])
    np.testing.assert_allclose(loss, -(np.log(0.5) + np.log(0.125)) / 2, rtol=1e-6)
    assert accuracy == 0.5
    np.testing.assert_allclose(probabilities, [[0.25, 0.5, 0.25], [0.75, 0.125, 0.125]], rtol=1e-6)


def test_one_logit_is_a_sigmoid():
    logits = np.log([[3.0], [1 / 3], [3.0]])  # probabilities 3/4, 1/4, 3/4 of the label 1
    loss, accuracy, probabilities = call(logits, [1, 0, 0])
    np.testing.assert_allclose(loss, -(2 * np.log(0.75) + np.log(0.25)) / 3, rtol=1e-6)
    np.testing.assert_allclose(accuracy, 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(probabilities, [[0.75], [0.25], [0.75]], rtol=1e-6)


def test_an_answer_per_step():
    logits = np.log([[[3.0, 1.0], [1.0, 3.0]], [[1.0, 1.0], [3.0, 1.0]]])
    loss, accuracy, probabilities = call(logits, [[0, 1], [0, 1]])
    np.testing.assert_allclose(loss, -np.log([0.75, 0.75, 0.5, 0.25]).mean(), rtol=1e-6)
    assert accuracy == 0.75
    assert probabilities.shape == (2, 2, 2)


def test_another_loss():
    assert call([[0.0, 0.0]], [1], loss=focal)[0] == pytest.approx(np.log(2) / 4)


def test_init_takes_shapes_alone():
    image = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    variables = Classification(Echo()).init(jax.random.key(0), {"image": image})
    assert variables == {"params": {"scale": 1.0}}


def test_score():
    task = Classification(Echo())
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4], [0.6, 0.4]])
    assert task.score(probabilities, np.array([1, 0, 1])) == pytest.approx({"accuracy": 2 / 3})
    assert task.score(np.array([[0.7], [0.2]]), np.array([1, 1])) == {"accuracy": 0.5}


def test_labels_that_are_not_as_many():
    with pytest.raises(ShapeError, match=r"labels \(2, 1\) for logits \(2, 3\).*labels \(2,\)"):
        call(np.zeros((2, 3)), [[0], [1]])
    with pytest.raises(ShapeError, match=r"labels \(2,\) for logits \(2, 5, 3\).*per step"):
        call(np.zeros((2, 5, 3)), [0, 1])


def test_logits_of_several_kinds_are_refused():
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return x[:, 0], x

    batch = {"image": jnp.ones((2, 3, 4)), "label": jnp.zeros(2, int)}
    with pytest.raises(ShapeError, match=r"2 kinds of logits from Both\. Expected logits of one"):
        Classification(Both())({}, batch, key=jax.random.key(0), train=True)
