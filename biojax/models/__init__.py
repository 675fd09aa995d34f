"""Models: modules that map an image to logits, or a clip to the frames that follow."""

from biojax.models.abmil import ABMIL
from biojax.models.attention import AttentionClassifier
from biojax.models.cnn import CNNClassifier
from biojax.models.convlstm import ConvLSTMForecaster
from biojax.models.mednext import MedNeXt, upkern
from biojax.models.nat_unet import NATUNet
from biojax.models.primus import Primus
from biojax.models.registry import count_parameters, create_model, list_models
from biojax.models.resenc_unet import ResEncUNet
from biojax.models.residual_unet import ResidualUNet
from biojax.models.resnet3d import ResNet3D
from biojax.models.rnn import RNNClassifier, RNNEncoderDecoder
from biojax.models.segmamba import SegMamba
from biojax.models.slice_rnn import SliceRNN
from biojax.models.swin_unetr import SwinUNETR, resize_windows
from biojax.models.umamba import UMamba
from biojax.models.unet import UNet
from biojax.models.unetr import UNETR
from biojax.models.vil import ViL
from biojax.models.vision_mamba import VisionMamba
from biojax.models.vit import ViT

__all__ = [
    "ABMIL",
    "UNETR",
    "AttentionClassifier",
    "CNNClassifier",
    "ConvLSTMForecaster",
    "MedNeXt",
    "NATUNet",
    "Primus",
    "RNNClassifier",
    "RNNEncoderDecoder",
    "ResEncUNet",
    "ResNet3D",
    "ResidualUNet",
    "SegMamba",
    "SliceRNN",
    "SwinUNETR",
    "UMamba",
    "UNet",
    "ViL",
    "ViT",
    "VisionMamba",
    "count_parameters",
    "create_model",
    "list_models",
    "resize_windows",
    "upkern",
]
