"""Models: modules that map an image to logits."""

from biojax.models.attention import AttentionClassifier
from biojax.models.cnn import CNNClassifier
from biojax.models.registry import count_parameters, create_model, list_models
from biojax.models.rnn import RNNClassifier, RNNEncoderDecoder
from biojax.models.unet import UNet

__all__ = [
    "AttentionClassifier",
    "CNNClassifier",
    "RNNClassifier",
    "RNNEncoderDecoder",
    "UNet",
    "count_parameters",
    "create_model",
    "list_models",
]
