"""Segmentation: a class for every voxel."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from biojax import metrics
from biojax.kernels import resize
from biojax.losses import dice_cross_entropy
from biojax.tasks.task import apply_model, init_variables
from biojax.typing import Array, ArrayLike, Key

__all__ = ["Segmentation", "deep_supervision_loss"]


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Give each voxel one of c classes that exclude each other; class 0 is the background.

    A batch has `image` (b, *spatial, channels) and `label` (b, *spatial), whole numbers from 0 to
    c - 1. Calling the task gives `(loss, (metrics, batch_stats))`, see `Task`; the metric is
    `accuracy`, the share of voxels that are right, without those whose label is no class.

    A model with deep supervision, which gives logits of several resolutions while training, is
    trained by `deep_supervision_loss`; the accuracy is that of full resolution.

    Attributes:
      model: maps images to logits (b, *spatial, c), c at least 2.
      loss: a function of (logits, labels) from `biojax.losses`, options given by
        `functools.partial`.

    Raises:
      ShapeError: by the loss, if logits and labels do not fit or there is a single class.
    """

    model: nn.Module
    loss: Callable[[Array, ArrayLike], Array] = dice_cross_entropy

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
        labels = jnp.asarray(batch["label"])
        if isinstance(logits, tuple):
            loss = deep_supervision_loss(self.loss, logits, labels)
            logits = logits[0]
        else:
            loss = self.loss(logits, labels)
        counted = (labels >= 0) & (labels < logits.shape[-1])
        right = counted & (logits.argmax(-1) == labels)
        voxels = tuple(range(1, labels.ndim))
        accuracy = (right.sum(voxels) / jnp.maximum(counted.sum(voxels), 1)).mean()
        return loss, ({"accuracy": accuracy}, batch_stats)

    def predict(self, variables: Mapping[str, Any], image: ArrayLike) -> Array:
        """Probabilities (b, *spatial, c), float32, of images (b, *spatial, channels)."""
        logits = self.model.apply(variables, image, train=False)
        return jax.nn.softmax(jnp.asarray(logits, jnp.float32))

    def score(
        self, probabilities: Iterable[ArrayLike], labels: Iterable[ArrayLike]
    ) -> dict[str, float]:
        """Dice of each class, the mean over cases, on the host.

        Args:
          probabilities: one (*spatial, c) per case; sizes may differ.
          labels: one (*spatial) per case.

        Returns:
          `dice_1` ... `dice_{c-1}`, and `dice`, their mean. A class that a case has neither in its
          labels nor in its prediction is left out there; NaN if that is so in every case.

        Raises:
          DataError: a label that is no class.
        """
        rows = []
        for p, y in zip(probabilities, labels, strict=True):
            p, y = np.asarray(p), np.asarray(y)
            matrix = metrics.confusion_matrix(y, p.argmax(-1), p.shape[-1])
            rows.append(np.asarray(metrics.dice(matrix))[1:])
        per_class = [_mean(column) for column in np.transpose(rows)]
        names = [f"dice_{i}" for i in range(1, len(per_class) + 1)]
        return {"dice": _mean(per_class), **dict(zip(names, per_class, strict=True))}


def deep_supervision_loss(
    loss: Callable[[Array, ArrayLike], Array], logits: Sequence[Array], labels: ArrayLike
) -> Array:
    """The loss at every resolution of a decoder, the higher the weightier.

    L = sum_i w_i loss(logits_i, labels_i),   w_i proportional to 1, 1/2, 1/4, ..., 0

    The weights sum to 1, and the lowest resolution has none, unless it is the only one. Labels are
    brought to each resolution by taking the nearest voxel, that of the centre; where two are as
    near, the farther along the axis.

    Args:
      loss: a function of (logits, labels).
      logits: (b, *spatial, c) at each resolution, the full one first.
      labels: of full resolution, sparse (b, *spatial) or dense (b, *spatial, c).

    Source: Isensee et al., "nnU-Net", Nature Methods 18, 2021, online methods; weights and labels
    as in its code, https://github.com/MIC-DKFZ/nnUNet.

    >>> logits = [jnp.zeros((1, n, 2)) for n in (8, 4, 2)]
    >>> deep_supervision_loss(lambda y, labels: labels.size, logits, jnp.zeros((1, 8), int))
    6.666...
    """
    weights = [0.5**i for i in range(len(logits))]
    if len(weights) > 1:
        weights[-1] = 0.0
    labels = jnp.asarray(labels)
    # Full resolution comes first, where the loss says what is wrong with the labels.
    total = weights[0] / sum(weights) * loss(logits[0], labels)
    for weight, y in zip(weights[1:-1], logits[1:-1], strict=True):
        dense = labels.reshape(*labels.shape[: y.ndim - 1], -1)
        here = resize(dense, y.shape[1:-1], method="nearest")
        here = here.reshape(*here.shape[:-1], *labels.shape[y.ndim - 1 :])
        total += weight / sum(weights) * loss(y, here)
    return total


def _mean(values: Any) -> float:
    values = np.asarray(values, float)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
