"""A plain convolutional classifier.

The layout that tutorials start with, after LeCun et al., "Gradient-based learning applied to
document recognition", Proceedings of the IEEE 86, 1998, section II: convolutions without padding,
max pooling, one dense layer.

| input | classes | parameters |
| --- | --- | --- |
| 224 x 224 x 3 | 1 | 44,396,609 |
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from biojax.errors import ShapeError
from biojax.kernels import max_pool
from biojax.models.checks import check_image
from biojax.modules import Conv
from biojax.typing import Array, Dtype

__all__ = ["CNNClassifier"]


class CNNClassifier(nn.Module):
    """Convolutions of 3 with 2-pools, then a dense layer; an image to logits.

    The dense layer sees every pixel of the last feature map, so a trained model takes one size
    of image. With num_classes=1 the probability is the sigmoid of the logit, else the softmax.

    Args:
      num_classes: logits.
      spatial_dims: 1, 2 or 3.
      features: channels of each convolution.
      dense: width of the dense layer.
      dropout_rate: before the last layer, while training.
      dtype: of the computation; logits are float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int = 1
    spatial_dims: int = 2
    features: Sequence[int] = (32, 64, 128)
    dense: int = 512
    dropout_rate: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, num_classes)."""
        check_image("cnn_classifier", x, self.spatial_dims, (1,) * self.spatial_dims)
        smallest = 1
        for _ in self.features:
            smallest = 2 * smallest + 2
        if min(x.shape[1:-1]) < smallest:
            raise ShapeError(
                "cnn_classifier",
                f"an image of {x.shape[1:-1]}",
                f"at least {smallest} pixels along each axis for {len(self.features)} stages",
                "Enlarge the image, or give fewer features",
            )
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, features in enumerate(self.features):
            x = nn.relu(Conv(features, 3, padding="VALID", name=f"conv{i}", **kind)(x))
            x = max_pool(x, 2)
            self.sow("intermediates", f"stage{i}", x)
        x = nn.relu(nn.Dense(self.dense, name="dense", **kind)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = nn.Dense(self.num_classes, name="head", **kind)(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
