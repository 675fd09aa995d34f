"""Forecasting of frames by convolutional LSTMs.

Source: Shi et al., "Convolutional LSTM network: a machine learning approach for precipitation
nowcasting", NeurIPS 2015, section 3.2 and table 1: one stack of layers reads the frames, another
one of the same layers takes over their states and goes on without any input; all of its states
together make the frames to come. Frames are folded by patches, whose pixels become channels.

| features | parameters here | published |
| --- | --- | --- |
| 256 | 13,522,960 | 13,524,496 |
| 128 128 | 10,041,360 | 10,042,896 |
| 128 64 64 | 7,583,760 | 7,585,296 |

(one channel, patches of 4, kernels of 5). The paper has peepholes, three numbers for each feature
of both stacks: 1,536 in each of these. Here frames are predicted as changes of the last one seen.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.axes import per_axis
from biojax.models.checks import check_image
from biojax.modules.convrecurrent import ConvLSTM
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["ConvLSTMForecaster"]


class ConvLSTMForecaster(nn.Module):
    """Convolutional LSTMs that read frames, and convolutional LSTMs that write the next ones.

    y_k = x_last + W [h_k of every layer] + v

    W and v start from zero: untrained, the model repeats the last frame.

    Args:
      num_frames: how many frames to predict.
      spatial_dims: axes of a clip, 2 to 4, the first of which is time; 3 for (t, h, w).
      patch_size: pixels of a frame that become one pixel of the states, with as many channels.
      features: channels of the states in each layer.
      kernel_size: of all convolutions but the last, which is of 1.
      dtype: of the computation; frames are float32 at least.
      param_dtype: of the parameters.

    Raises:
      ConfigError: clips of no spatial axis, or of more than three.
    """

    num_frames: int = 1
    spatial_dims: int = 3
    patch_size: IntOrTuple = 4
    features: Sequence[int] = (128, 64, 64)
    kernel_size: IntOrTuple = 5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: 1 in time, the patch."""
        return (1, *self._patch)

    @property
    def _patch(self) -> tuple[int, ...]:
        axes = self.spatial_dims - 1
        return per_axis("convlstm_forecaster", "patch_size", self.patch_size, axes)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, t, *spatial, c) to the frames that follow, (b, num_frames, *spatial, c)."""
        self._check(x)
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h, states = _fold(x, self._patch), []
        for i, features in enumerate(self.features):
            h, state = ConvLSTM(features, self.kernel_size, name=f"encoder{i}", **kind).run(h)
            self.sow("intermediates", f"encoder{i}_states", h)
            states.append(state)
        h, hidden = jnp.zeros((h.shape[0], self.num_frames, *h.shape[2:-1], 0), h.dtype), []
        for i, features in enumerate(self.features):
            layer = ConvLSTM(features, self.kernel_size, name=f"forecaster{i}", **kind)
            h, _ = layer.run(h, *states[i])
            self.sow("intermediates", f"forecaster{i}_states", h)
            hidden.append(h)
        change = nn.Dense(
            math.prod(self._patch) * x.shape[-1],
            kernel_init=nn.initializers.zeros_init(),
            name="head",
            **kind,
        )(jnp.concatenate(hidden, axis=-1))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return x[:, -1:].astype(wide) + _unfold(change, self._patch).astype(wide)

    def _check(self, x: Array) -> None:
        if self.spatial_dims not in (2, 3, 4):
            raise ConfigError(
                "convlstm_forecaster",
                f"spatial_dims={self.spatial_dims}",
                "2, 3 or 4, the axis of time included",
                "For sequences without space use rnn_encoder_decoder",
            )
        if x.ndim != self.spatial_dims + 2:
            raise ShapeError(
                "convlstm_forecaster",
                f"a clip of shape {x.shape} with spatial_dims={self.spatial_dims}",
                f"(b, t, {', '.join('dhw'[1 - self.spatial_dims :])}, c)",
                "Add the batch, time or channel axis, or change spatial_dims",
            )
        check_image("convlstm_forecaster", x, self.spatial_dims, self.stride)


def _fold(x: Array, patch: Sequence[int]) -> Array:
    """Patches as channels: (b, t, *spatial, c) to (b, t, *spatial / patch, patch * c).

    >>> _fold(jnp.arange(8).reshape(1, 1, 2, 4, 1), (2, 2))[0, 0, 0]
    Array([[0, 1, 4, 5],
           [2, 3, 6, 7]], dtype=int32)
    """
    b, t, *spatial, c = x.shape
    rank, cut = len(patch), zip(spatial, patch, strict=True)
    x = x.reshape(b, t, *(part for n, p in cut for part in (n // p, p)), c)
    x = x.transpose(0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2), 2 + 2 * rank)
    return x.reshape(*x.shape[: 2 + rank], math.prod(patch) * c)


def _unfold(x: Array, patch: Sequence[int]) -> Array:
    """The inverse of `_fold`.

    >>> x = jnp.arange(24).reshape(1, 2, 2, 6, 1)
    >>> bool((_unfold(_fold(x, (2, 3)), (2, 3)) == x).all())
    True
    """
    rank = len(patch)
    b, t, *grid, wide = x.shape
    x = x.reshape(b, t, *grid, *patch, wide // math.prod(patch))
    between = (axis for i in range(rank) for axis in (2 + i, 2 + rank + i))
    x = x.transpose(0, 1, *between, 2 + 2 * rank)
    return x.reshape(b, t, *(n * p for n, p in zip(grid, patch, strict=True)), x.shape[-1])
