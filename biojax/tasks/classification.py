"""Classification: a class for every image, or for every step of a sequence."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from biojax.errors import ShapeError
from biojax.losses import binary_cross_entropy, cross_entropy
from biojax.tasks.task import apply_model, init_variables
from biojax.typing import Array, ArrayLike, Key

__all__ = ["Classification"]


@dataclasses.dataclass(frozen=True)
class Classification:
    """Give each image, or each of its t steps, one of k classes that exclude each other.

    A batch has `image` (b, *spatial, channels) and `label` (b,), or (b, t) for a model that answers
    per step; whole numbers from 0 to k - 1. A model with k = 1 answers yes or no: its one logit is
    that of the label 1, under a sigmoid. Calling the task gives `(loss, (metrics, batch_stats))`,
    see `Task`; the metric is `accuracy`.

    Attributes:
      model: maps images to logits (b, k), or (b, t, k).
      loss: a function of (logits, labels); if None, `cross_entropy`, and `binary_cross_entropy`
        where k is 1.

    Raises:
      ShapeError: labels are not as many as the logits, or a model gives logits of several kinds.
    """

    model: nn.Module
    loss: Callable[[Array, ArrayLike], Array] | None = None

    def init(self, key: Key, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Variables to start from, for images of the batch's shape."""
        return init_variables(self.model, key, batch["image"])

    def __call__(
        self, variables: Mapping[str, Any], batch: Mapping[str, ArrayLike], *, key: Key, train: bool
    ) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
        """The loss, and beside it the metrics and the new `batch_stats`."""
        logits, batch_stats = apply_model(
            self.model, variables, batch["image"], key=key, train=train
        )
        if isinstance(logits, tuple):
            raise ShapeError(
                "Classification",
                f"{len(logits)} kinds of logits from {type(self.model).__name__}",
                "logits of one kind, (b, k) or (b, t, k)",
                "Have the model give one kind, or write a task that says what both are worth",
            )
        labels = jnp.asarray(batch["label"])
        if logits.shape[:-1] != labels.shape:
            raise ShapeError(
                "Classification",
                f"labels {labels.shape} for logits {logits.shape}",
                f"labels {logits.shape[:-1]}, one per image, or per step for a model of sequences",
                "Give one whole number per answer of the model",
            )
        binary = logits.shape[-1] == 1
        loss = self.loss or (binary_cross_entropy if binary else cross_entropy)
        accuracy = jnp.mean(_classes(logits, threshold=0.0) == labels)
        return loss(logits, labels), ({"accuracy": accuracy}, batch_stats)

    def predict(self, variables: Mapping[str, Any], image: ArrayLike) -> Array:
        """Probabilities (b, k) or (b, t, k), float32; for k = 1 that of the label 1."""
        logits = jnp.asarray(self.model.apply(variables, image, train=False), jnp.float32)
        return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)

    def score(self, probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float]:
        """The share of answers that are right, on the host: `accuracy`.

        Args:
          probabilities: (..., k), as from `predict`.
          labels: (...).
        """
        right = _classes(np.asarray(probabilities), threshold=0.5) == np.asarray(labels)
        return {"accuracy": float(right.mean())}


def _classes(scores: Any, *, threshold: float) -> Any:
    if scores.shape[-1] == 1:
        return (scores[..., 0] > threshold).astype("int32")
    return scores.argmax(-1)
