"""A recurrence over the slices of a volume.

Each slice is encoded by itself, by a residual network of one axis fewer, and a recurrence along the
slices gives each of them its context. Sources: Chen et al., "Combining fully convolutional and
recurrent neural networks for 3D biomedical image segmentation", NeurIPS 2016, where states are
images; for a state that is a vector, as here, Burduja, Ionescu and Verga, "Accurate and efficient
intracranial hemorrhage detection and subtype classification in 3D CT scans with convolutional and
long short-term memory neural networks", Sensors 20, 2020.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ConfigError
from biojax.models.checks import check_image
from biojax.models.resnet3d import ResNet3D
from biojax.modules import StackedRNN, make_recurrent
from biojax.typing import Array, Dtype

__all__ = ["SliceRNN"]


class SliceRNN(nn.Module):
    """A residual network on each slice, recurrent layers over slices; logits for both.

    Slices are taken across the first spatial axis. The volume's logits come from the last states in
    the order run, those of each slice from its own states.

    Args:
      num_classes: logits of a volume; None for none.
      slice_classes: logits of each slice; None for none.
      spatial_dims: axes of a volume, 2 or 3, the first of which is that of the slices.
      encoder_features: channels of each stage of the encoder.
      num_blocks: in each stage of the encoder.
      norm: of the encoder; see `biojax.modules.make_norm`.
      cell: "rnn", "lstm" or "gru".
      features: size of a slice's encoding, and of the state in each direction.
      num_layers: recurrent layers, one on the other.
      bidirectional: run each layer in both directions.
      dropout_rate: before each recurrent layer and the heads, while training.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.

    Raises:
      ConfigError: neither kind of logits is asked for, a volume of one axis, or num_blocks for
        other stages than encoder_features.
    """

    num_classes: int | None
    slice_classes: int | None = None
    spatial_dims: int = 3
    encoder_features: Sequence[int] = (16, 32, 64, 128)
    num_blocks: Sequence[int] = (1, 1, 1, 1)
    norm: str | None = "layer"
    cell: str = "gru"
    features: int = 64
    num_layers: int = 1
    bidirectional: bool = True
    dropout_rate: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: 1."""
        return (1,) * self.spatial_dims

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, *, lengths: Array | None = None
    ) -> Array | tuple[Array, Array]:
        """(b, d, *spatial, c) to (b, num_classes), (b, d, slice_classes), or a pair of both.

        `lengths`, (b,), says how many slices of each volume count, from the first on; logits of
        the others mean nothing.
        """
        self._check()
        check_image("slice_rnn", x, self.spatial_dims, self.stride)
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        drop = nn.Dropout(self.dropout_rate, deterministic=not train)
        encoder = ResNet3D(
            self.features,
            self.spatial_dims - 1,
            features=self.encoder_features,
            num_blocks=self.num_blocks,
            stem_strides=2,
            norm=self.norm,
            name="encoder",
            **kind,
        )
        b, d = x.shape[:2]
        h = encoder(x.reshape(b * d, *x.shape[2:]), train).reshape(b, d, self.features)
        self.sow("intermediates", "slices", h)
        make = partial(
            make_recurrent, self.cell, self.features, bidirectional=self.bidirectional, **kind
        )
        layers = [make(name=f"layer{i}") for i in range(self.num_layers)]
        stack = StackedRNN(layers, self.dropout_rate)
        results = stack.each(drop(h), lengths=lengths, train=train)
        for i, (states, _) in enumerate(results):
            self.sow("intermediates", f"states{i}", states)
        h, last = results[-1]
        logits = []
        for name, classes, of in (
            ("head", self.num_classes, last),
            ("slice_head", self.slice_classes, h),
        ):
            if classes is not None:
                y = nn.Dense(classes, name=name, **kind)(drop(of))
                logits.append(y.astype(jnp.promote_types(y.dtype, jnp.float32)))
        return logits[0] if len(logits) == 1 else tuple(logits)

    def _check(self) -> None:
        if self.num_classes is None and self.slice_classes is None:
            raise ConfigError(
                "slice_rnn",
                "neither num_classes nor slice_classes",
                "one of them, or both",
                "Say what is to be classified",
                "num_classes=2",
            )
        if self.spatial_dims not in (2, 3):
            raise ConfigError(
                "slice_rnn",
                f"spatial_dims={self.spatial_dims}",
                "2 or 3, the slices' axis included",
                "For sequences without space use rnn_classifier",
            )
        if len(self.num_blocks) != len(self.encoder_features):
            raise ConfigError(
                "slice_rnn",
                f"num_blocks for {len(self.num_blocks)} stages and encoder_features for "
                f"{len(self.encoder_features)}",
                "one number for each stage",
                "Change num_blocks or encoder_features",
            )
