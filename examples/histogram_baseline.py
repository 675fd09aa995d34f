"""What intensity alone can tell: the most frequent class of each grey value, after smoothing."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from biojax import metrics

__all__ = ["Histogram", "fit_histogram"]

_EDGES = np.linspace(-4, 4, 257)
_SMOOTHING = (0.6, 0.8, 1.0, 1.3)


class Histogram(NamedTuple):
    """A class for each bin of smoothed, normalised intensity."""

    sigma: float
    classes: np.ndarray

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Labels (d, h, w) of an image (d, h, w), uint8."""
        return self.classes[_bins(image, self.sigma)]


def fit_histogram(images: Sequence[np.ndarray], label: np.ndarray, num_classes: int) -> Histogram:
    """The best of four smoothings, chosen on a quarter of the images that the rest is fitted on.

    Args:
      images: renderings of one volume, (d, h, w), normalised.
      label: its classes, (d, h, w).
      num_classes: how many.
    """
    kept = max(1, len(images) // 4)

    def score(histogram: Histogram) -> float:
        matrix = sum(
            metrics.confusion_matrix(label, histogram.predict(image), num_classes)
            for image in images[-kept:]
        )
        return float(np.mean(np.asarray(metrics.dice(np.asarray(matrix)))[2:]))

    fitted = [_fit(images[:-kept] or images, label, num_classes, sigma) for sigma in _SMOOTHING]
    return max(fitted, key=score)


def _fit(images, label, num_classes: int, sigma: float) -> Histogram:
    counts = np.zeros((num_classes, len(_EDGES) + 1))
    for image in images:
        pairs = label.astype(np.int64) * counts.shape[1] + _bins(image, sigma)
        counts += np.bincount(pairs.ravel(), minlength=counts.size).reshape(counts.shape)
    return Histogram(sigma, counts.argmax(axis=0).astype(np.uint8))


def _bins(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.digitize(ndimage.gaussian_filter(image, sigma), _EDGES)
