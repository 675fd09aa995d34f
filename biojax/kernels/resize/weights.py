"""Which pixels along an axis an output is made of, and how much of each."""

from typing import NamedTuple

import numpy as np

__all__ = ["METHODS", "Weights", "axis_weights"]

METHODS = ("linear", "nearest")


class Weights(NamedTuple):
    """y[o] = sum over k of  weight[o, k] * x[pixel[o, k]]  along an axis of n pixels.

    Args:
      pixel: (m, k), from 0 to n - 1.
      weight: (m, k), of float64.
      size: n.
    """

    pixel: np.ndarray
    weight: np.ndarray
    size: int

    @property
    def adjoint(self) -> "Weights":
        """The same table read by the pixels of x, filled up with weights of zero."""
        m, k = self.pixel.shape
        order = np.argsort(self.pixel.ravel(), kind="stable")
        order = order[self.weight.ravel()[order] != 0]
        row = self.pixel.ravel()[order]
        count = np.bincount(row, minlength=self.size)
        column = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
        shape = self.size, max(1, int(count.max()))
        pixel, weight = np.zeros(shape, int), np.zeros(shape)
        pixel[row, column] = order // k
        weight[row, column] = self.weight.ravel()[order]
        return Weights(pixel, weight, m)

    @property
    def matrix(self) -> np.ndarray:
        """The same, dense: (m, n)."""
        matrix = np.zeros((len(self.pixel), self.size))
        np.add.at(matrix, (np.arange(len(self.pixel))[:, None], self.pixel), self.weight)
        return matrix


def axis_weights(n: int, m: int, method: str) -> Weights:
    """From n pixels to m, centres half a pixel from the ends.

    >>> axis_weights(2, 4, "linear").matrix
    array([[1.  , 0.  ],
           [0.75, 0.25],
           [0.25, 0.75],
           [0.  , 1.  ]])
    """
    doubled = (2 * np.arange(m) + 1) * n  # of 2 m, in whole numbers: a tie stays a tie
    if method == "nearest":
        return Weights((doubled // (2 * m))[:, None], np.ones((m, 1)), n)
    at = np.clip((doubled - m) / (2 * m), 0, n - 1)
    below = np.floor(at).astype(int)
    above = at - below
    pixel = np.stack([below, np.minimum(below + 1, n - 1)], axis=1)
    weight = np.stack([1 - above, above], axis=1)
    return Weights(pixel, weight, n) if above.any() else Weights(pixel[:, :1], weight[:, :1], n)
