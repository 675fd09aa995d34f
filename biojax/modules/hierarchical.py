"""Recurrence within recurrence."""

import math
from collections.abc import Sequence

import flax.linen as nn

from biojax.errors import ShapeError
from biojax.typing import Array

__all__ = ["HierarchicalRNN"]


class HierarchicalRNN(nn.Module):
    """Rows, then slices, then time: the last state of one recurrence is a step of the next one.

    r_{i,j} = last state of layers[0] along the row x[i, j],   s_i = that of layers[1] along r_i

    The first layer reads the last axis of the image, and reads all rows at once; each of the others
    reads the next axis up. So the path from any voxel to the output is as long as the axes are
    together, where it would be their product in raster order.

    Args:
      layers: recurrent layers, one for each axis from the last to the first. Each maps (b, t, c)
        to every state (b, t, f) and the last one (b, f).

    Raises:
      ShapeError: the image has not one axis for each layer.

    Source: Li, Luong and Jurafsky, "A hierarchical neural autoencoder for paragraphs and
    documents", ACL 2015, section 3, of words and sentences. The other way to read images is one
    state that goes along all axes at once: Graves, Fernandez and Schmidhuber, "Multi-dimensional
    recurrent neural networks", ICANN 2007.

    >>> import jax, jax.numpy as jnp
    >>> from biojax.modules import GRU, LSTM
    >>> model = HierarchicalRNN([GRU(4), GRU(6), LSTM(8)])
    >>> (h, h_last), _ = model.init_with_output(jax.random.key(0), jnp.ones((1, 2, 5, 7, 3)))
    >>> h.shape, h_last.shape
    ((1, 2, 8), (1, 8))
    """

    layers: Sequence[nn.Module]

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(b, *axes, c) to every state of the last layer (b, t, f) and the last one (b, f)."""
        if not self.layers or x.ndim != len(self.layers) + 2:
            raise ShapeError(
                "HierarchicalRNN",
                f"x of shape {x.shape} for {len(self.layers)} layers",
                "x (b, *axes, c), with one axis for each layer and one layer or more",
                "Give a layer for each axis, the last axis' first",
            )
        h = x
        for layer in self.layers:
            *outer, t, c = x.shape
            h, last = layer(x.reshape(math.prod(outer), t, c))  # pyright: ignore[reportCallIssue]
            x = last.reshape(*outer, last.shape[-1])
        return h, x
