"""ABMIL: a bag of instances, such as the patches of a slide, to the label of the whole.

Source: Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018,
sections 2.4 and 3: an encoder for each instance, a mean weighted by gated attention, a linear
classifier. As there, 128 rows in the attention; the encoder is any, by default a small residual
network for images and one layer for vectors, which another network has made of the patches.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ConfigError, ShapeError
from biojax.models.checks import check_image
from biojax.models.resnet3d import ResNet3D
from biojax.modules import GatedAttentionPool
from biojax.typing import Array, Dtype, Precision

__all__ = ["ABMIL"]


class ABMIL(nn.Module):
    """An encoder for each instance, their weighted mean, logits.

    The weights of the instances, (b, m), are among the intermediates as "pool/weights".

    Args:
      num_classes: logits of a bag.
      spatial_dims: axes of a bag, the first of which is that of the instances: 1 for vectors, 2 for
        sequences, 3 for images, 4 for volumes.
      encoder_name: a model that turns an image to logits, see `biojax.models.list_models`; its
        num_classes will be features. If None, a residual network, or one layer for vectors.
      encoder_fields: pairs of a field and its value, of the model that is named.
      encoder_features: channels of each stage of the residual network.
      features: size of an instance's encoding.
      hidden_features: rows of the attention's matrices.
      dropout_rate: of the encodings and before the logits, while training.
      precision: of the products that follow the encoder, which has its own among its fields.
      dtype: of the computation; weights and logits are float32 at least.
      param_dtype: of the parameters.

    Raises:
      ConfigError: bags of no axis or of more than four, or an encoder that is no model for such
        instances.
      ShapeError: no bags, or instances of a size that the encoder's stride does not divide.
    """

    num_classes: int
    spatial_dims: int = 3
    encoder_name: str | None = None
    encoder_fields: Sequence[tuple[str, Any]] = ()
    encoder_features: Sequence[int] = (16, 32, 64, 128)
    features: int = 512
    hidden_features: int = 128
    dropout_rate: float = 0.0
    precision: Precision = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of: 1 instance, then what the encoder asks."""
        if self.encoder_name is None:
            return (1,) * self.spatial_dims
        encoder = self._named_encoder()
        return (1, *getattr(encoder, "stride", (1,) * (self.spatial_dims - 1)))

    @nn.compact
    def __call__(self, x: Array, train: bool = False, *, mask: Array | None = None) -> Array:
        """(b, m, *spatial, c) to (b, num_classes); `mask`, (b, m), is True for real instances."""
        self._check(x)
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options: dict[str, Any] = {"precision": self.precision, **kind}
        drop = nn.Dropout(self.dropout_rate, deterministic=not train)
        b, m, *shape = x.shape
        h = self._encode(x.reshape(b * m, *shape), train).reshape(b, m, self.features)
        h = drop(nn.relu(h))
        self.sow("intermediates", "instances", h)
        z = GatedAttentionPool(self.hidden_features, name="pool", **options)(h, mask)
        y = nn.Dense(self.num_classes, name="head", **options)(drop(z))
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    def _encode(self, x: Array, train: bool) -> Array:
        """Instances (b * m, *spatial, c) to (b * m, features)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.encoder_name is None and self.spatial_dims == 1:
            return nn.Dense(self.features, name="encoder", **kind)(x)
        if self.encoder_name is None:
            return ResNet3D(
                self.features,
                self.spatial_dims - 1,
                features=self.encoder_features,
                num_blocks=(1,) * len(self.encoder_features),
                stem_strides=2,
                norm="layer",
                name="encoder",
                **kind,
            )(x, train)
        h = self._named_encoder().clone(parent=self, name="encoder")(x, train)
        if h.shape != (x.shape[0], self.features):
            raise ConfigError(
                "abmil",
                f"encoder_name={self.encoder_name!r}, which makes {h.shape} of {x.shape[0]}",
                f"{(x.shape[0], self.features)}, one vector of each instance",
                "Name a model that classifies whole images",
            )
        return h

    @nn.nowrap
    def _named_encoder(self) -> nn.Module:
        from biojax.models.registry import create_model  # which knows this model, too

        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fields = {"spatial_dims": self.spatial_dims - 1, **dict(self.encoder_fields), **kind}
        return create_model(str(self.encoder_name), num_classes=self.features, **fields)

    def _check(self, x: Array) -> None:
        if self.spatial_dims not in (1, 2, 3, 4):
            raise ConfigError(
                "abmil",
                f"spatial_dims={self.spatial_dims}",
                "1 to 4, the axis of instances included",
                "Say 1 for bags of vectors, 3 for bags of images",
            )
        if x.ndim != self.spatial_dims + 2:
            raise ShapeError(
                "abmil",
                f"bags of shape {x.shape} with spatial_dims={self.spatial_dims}",
                f"(b, {', '.join('m' + 'dhw'[4 - self.spatial_dims :])}, c)",
                "Add the axis of the batch, the instances or the channels, or change spatial_dims",
            )
        check_image("abmil", x, self.spatial_dims, self.stride)
