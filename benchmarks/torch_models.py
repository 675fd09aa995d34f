"""The models in PyTorch: the networks whose weights `biojax.convert` reads, and how they run."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from biojax.convert import convert_state_dict
from biojax.errors import ConfigError, require
from biojax.models import MedNeXt, ResEncUNet, ResidualUNet, ResNet3D, UNet

__all__ = ["LAYOUTS", "torch_forward", "torch_network", "torch_step", "torch_variables"]

# What PyTorch calls them.
LAYOUTS = {"contiguous": "contiguous_format", "channels_last": "channels_last_3d"}


def torch_network(model: nn.Module, layout: str) -> Any:
    """The three-dimensional network of one channel, seeded: the same weights every time.

    Raises:
      ConfigError: PyTorch has no such model.
      DependencyError: the package that has it is not installed.
    """
    torch: Any = require("torch", "peers")
    if type(model) not in _NETWORKS:
        known = ", ".join(kind.__name__ for kind in _NETWORKS)
        raise ConfigError("peers", f"a {type(model).__name__}", f"one of {known}", "Choose these")
    torch.manual_seed(0)
    network = _NETWORKS[type(model)](torch, model)
    return network.to(memory_format=getattr(torch, LAYOUTS[layout]))


def torch_variables(model: nn.Module, network: Any) -> dict[str, Any]:
    """The network's weights as variables of biojax."""
    state = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    return convert_state_dict(state, model)


def torch_forward(network: Any, layout: str, image: Any) -> Callable[[], np.ndarray]:
    """A function that computes the logits, channels last."""
    torch: Any = require("torch", "peers")
    network, x = network.eval(), _image(layout, image)

    def run():
        with torch.no_grad():
            return np.moveaxis(network(x).numpy(), 1, -1)

    return run


def torch_step(network: Any, layout: str, batch: dict[str, Any], rate: float) -> Callable:
    """A function that trains for one step, cross-entropy and SGD, and gives the loss."""
    torch: Any = require("torch", "peers")
    network, x = network.train(), _image(layout, batch["image"])
    label = torch.from_numpy(np.array(batch["label"], np.int64))
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)

    def run():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def _image(layout: str, image: Any) -> Any:
    torch: Any = require("torch", "peers")
    x = torch.from_numpy(np.moveaxis(np.asarray(image), -1, 1).copy())
    return x.contiguous(memory_format=getattr(torch, LAYOUTS[layout]))


def _unet(torch: Any, model: UNet) -> Any:
    architectures: Any = require("dynamic_network_architectures.architectures.unet", "peers")
    make, blocks = architectures.PlainConvUNet, {"n_conv_per_stage": model.num_convs}
    if isinstance(model, ResEncUNet):
        make, blocks = architectures.ResidualEncoderUNet, {"n_blocks_per_stage": model.num_blocks}
    return make(
        input_channels=1,
        n_stages=len(model.features),
        features_per_stage=model.features,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=model.stage_kernels,
        strides=model.stage_strides,
        num_classes=model.out_channels,
        n_conv_per_stage_decoder=model.num_convs,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **blocks,
    )


def _mednext(torch: Any, model: MedNeXt) -> Any:
    """MONAI's, which is the same where all stages have one expansion ratio, as in variant S."""
    blocks, ratios, depth = model.num_blocks, model.expansion_ratio, len(model.num_blocks) // 2
    return _nets().MedNeXt(
        spatial_dims=3,
        init_filters=model.features,
        in_channels=1,
        out_channels=model.out_channels,
        encoder_expansion_ratio=ratios[:depth],
        bottleneck_expansion_ratio=ratios[depth],
        decoder_expansion_ratio=ratios[depth + 1 :],
        kernel_size=model.kernel_size,
        use_residual_connection=True,
        blocks_down=blocks[:depth],
        blocks_bottleneck=blocks[depth],
        blocks_up=blocks[depth + 1 :],
    )


def _residual_unet(torch: Any, model: ResidualUNet) -> Any:
    return _nets().UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=model.out_channels,
        channels=model.features,
        strides=model.level_strides,
        num_res_units=model.num_convs,
        norm=model.norm,
    )


def _resnet3d(torch: Any, model: ResNet3D) -> Any:
    return _nets().ResNet(
        "bottleneck" if model.bottleneck else "basic",
        list(model.num_blocks),
        list(model.features),
        n_input_channels=1,
        num_classes=model.num_classes,
        conv1_t_stride=model.stem_strides,
        bias_downsample=model.shortcut_bias,
    )


def _nets() -> Any:
    return require("monai.networks.nets", "peers")


_NETWORKS: dict[type[nn.Module], Callable[[Any, Any], Any]] = {
    UNet: _unet,
    ResEncUNet: _unet,
    MedNeXt: _mednext,
    ResidualUNet: _residual_unet,
    ResNet3D: _resnet3d,
}
