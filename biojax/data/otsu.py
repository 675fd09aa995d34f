"""Otsu's threshold: parting an image into dark and bright."""

import math

import numpy as np

from biojax.errors import DataError

__all__ = ["otsu_threshold"]


def otsu_threshold(image: np.ndarray) -> float:
    """The threshold that best parts the values in two, by a histogram of 256 equal bins.

    With p the share and m the mean of the values at or below a bin's centre, and M the mean of
    all, it is the bin whose (M p - m p)^2 / (p (1 - p)), the variance between the two classes, is
    greatest; the upper edge of that bin is returned. A gap in the histogram makes several bins
    equally good: the middle one is taken. A constant image is its own threshold.

    Raises:
      DataError: values that are not finite real numbers.

    Source: Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on
    Systems, Man, and Cybernetics 9, 1979, equations 14 and 18.

    >>> otsu_threshold(np.array([0.0, 1.0, 2.0, 8.0, 9.0, 10.0]))
    5.0
    """
    image = np.asarray(image, np.float32)
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            "otsu_threshold", f"values from {low} to {high}", "finite values", "Repair the image"
        )
    if low == high:
        return low
    # Scaled first: 256 bins do not fit into a narrow range far from zero.
    counts, edges = np.histogram((image - low) / (high - low), bins=256, range=(0, 1))
    centres = np.arange(256) / 255
    below = np.cumsum(counts)[:-1] / counts.sum()
    moment = np.cumsum(counts * centres)[:-1] / counts.sum()
    mean = np.sum(counts * centres) / counts.sum()
    between = (mean * below - moment) ** 2 / (below * (1 - below))
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return low + (high - low) * float(edges[1 + best[len(best) // 2]])
