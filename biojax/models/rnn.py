"""Recurrent models of sequences: spectra, signals, or images read in raster order.

Sources: Elman, "Finding structure in time", 1990; Schuster and Paliwal, "Bidirectional recurrent
neural networks", 1997; Cho et al., "Learning phrase representations using RNN encoder-decoder",
EMNLP 2014, section 2.2.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from biojax.kernels.axes import per_axis
from biojax.models.checks import check_image
from biojax.modules import PatchEmbed, StackedRNN, make_recurrent
from biojax.typing import Array, Dtype, IntOrTuple

__all__ = ["RNNClassifier", "RNNEncoderDecoder"]


class RNNClassifier(nn.Module):
    """Stacked recurrent layers; the last state of the top one decides.

    Args:
      num_classes: logits.
      spatial_dims: 1 for sequences (b, t, c); images of 2 or 3 are read in raster order.
      patch_size: pixels that make one step.
      cell: "rnn", "lstm" or "gru".
      features: size of the state in each direction.
      num_layers: layers, one on the other.
      bidirectional: run each layer in both directions.
      dropout_rate: between layers and before the head, while training.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int
    spatial_dims: int = 1
    patch_size: IntOrTuple = 1
    cell: str = "lstm"
    features: int = 64
    num_layers: int = 1
    bidirectional: bool = False
    dropout_rate: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: the patch."""
        return per_axis("rnn_classifier", "patch_size", self.patch_size, self.spatial_dims)

    @nn.compact
    def __call__(self, x: Array, train: bool = False, *, lengths: Array | None = None) -> Array:
        """(b, *spatial, c) to (b, num_classes); `lengths`, (b,), says how many patches count."""
        check_image("rnn_classifier", x, self.spatial_dims, self.stride)
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        drop = nn.Dropout(self.dropout_rate, deterministic=not train)
        x = PatchEmbed(self.features, self.patch_size, name="embed", **kind)(x)
        make = partial(
            make_recurrent, self.cell, self.features, bidirectional=self.bidirectional, **kind
        )
        layers = [make(name=f"layer{i}") for i in range(self.num_layers)]
        results = StackedRNN(layers, self.dropout_rate).each(x, lengths=lengths, train=train)
        for i, (h, _) in enumerate(results):
            self.sow("intermediates", f"states{i}", h)
        _, last = results[-1]
        y = nn.Dense(self.num_classes, name="head", **kind)(drop(last))
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))


class RNNEncoderDecoder(nn.Module):
    """One recurrence reads the sequence, another one writes an output at every step.

    c = last state of the encoder,      h_0 = tanh(V c + v)
    h_t = cell(h_{t-1}, c),   y_t = W_y h_t + b_y

    The paper's decoder also reads y_{t-1} at each step, and y_t is read off c and y_{t-1} as well;
    here only the state tells the steps apart.

    Args:
      num_classes: size of each y_t.
      num_steps: how many outputs to write; as many as there are inputs if None.
      spatial_dims: 1 for sequences (b, t, c); images of 2 or 3 are read in raster order.
      patch_size: pixels that make one step.
      cell: "rnn", "lstm" or "gru".
      features: size of the decoder's state, and of the encoder's in each direction.
      num_layers: layers of the encoder.
      bidirectional: whether the encoder reads in both directions.
      dtype: of the computation; outputs are float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int
    num_steps: int | None = None
    spatial_dims: int = 1
    patch_size: IntOrTuple = 1
    cell: str = "gru"
    features: int = 64
    num_layers: int = 1
    bidirectional: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis: the patch."""
        return per_axis("rnn_encoder_decoder", "patch_size", self.patch_size, self.spatial_dims)

    @nn.compact
    def __call__(self, x: Array, train: bool = False, *, lengths: Array | None = None) -> Array:
        """(b, *spatial, c) to (b, num_steps, num_classes).

        Of the input as many patches count as `lengths`, (b,), says; all steps are written.
        """
        check_image("rnn_encoder_decoder", x, self.spatial_dims, self.stride)
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = PatchEmbed(self.features, self.patch_size, name="embed", **kind)(x)
        make = partial(
            make_recurrent, self.cell, self.features, bidirectional=self.bidirectional, **kind
        )
        layers = [make(name=f"encoder{i}") for i in range(self.num_layers)]
        _, context = StackedRNN(layers)(x, lengths=lengths)
        self.sow("intermediates", "context", context)
        h0 = jnp.tanh(nn.Dense(self.features, name="initial", **kind)(context))
        steps = self.num_steps or x.shape[1]
        repeated = jnp.repeat(context[:, None], steps, axis=1)
        decoder = make_recurrent(self.cell, self.features, name="decoder", **kind)
        h, _ = decoder(repeated, h0)
        y = nn.Dense(self.num_classes, name="head", **kind)(h)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))
