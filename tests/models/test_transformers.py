"""What all models with attention have in common: the choice of a kernel and of a precision."""

import jax
import jax.numpy as jnp
import pytest

from biojax.errors import ConfigError
from biojax.models import create_model

PATCHES = {"features": 4, "num_heads": 2, "num_layers": 1, "patch_size": 4}
MODELS = {
    "attention_classifier": {"num_classes": 2, **PATCHES},
    "primus_s": {"out_channels": 2, **PATCHES, "features": 8},
    "swin_unetr": {"out_channels": 2, "features": 4, "num_blocks": (1,), "num_heads": (2,)},
    "unetr": {"out_channels": 2, "hidden_features": 4, **PATCHES},
    "vit_s": {"num_classes": 2, "pool": "attention", **PATCHES},
}
NAT_UNET = {"out_channels": 2, "features": (4, 8), "num_blocks": (1,), "num_heads": (2,)}
X = jnp.ones((1, 8, 8, 1))


@pytest.mark.parametrize(("name", "fields"), [*MODELS.items(), ("nat_unet_t", NAT_UNET)])
def test_the_implementation_reaches_the_kernel(name, fields):
    model = create_model(name, spatial_dims=2, implementation="blokked", **fields)
    with pytest.raises(ConfigError, match="blokked"):
        jax.eval_shape(model.init, jax.random.key(0), X)


@pytest.mark.parametrize(("name", "fields"), [*MODELS.items(), ("abmil", {"num_classes": 2})])
def test_the_precision_reaches_every_product(name, fields):
    dims, x = (1, X[:, 0]) if name == "abmil" else (2, X)
    model = create_model(name, spatial_dims=dims, precision="highest", **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    text = str(jax.make_jaxpr(model.apply)(shapes, x))
    assert "Precision.HIGHEST" in text
    assert "precision=None" not in text
