"""The same 3-D U-Net in biojax, in plain Flax and in PyTorch."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.contest import Contender, Contest, jax_contender, jax_result
from biojax.bench.models import initialise
from biojax.errors import DataError, require
from biojax.losses import cross_entropy
from biojax.models import create_model
from biojax.tasks import Segmentation
from biojax.training import create_state, make_train_step

__all__ = ["PlainUNet", "unet_contests"]

_RATE = 1e-3


class PlainUNet(nn.Module):
    """The network of `biojax.models.UNet` out of Flax's own layers, its parameters of our names."""

    out_channels: int
    features: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, d, h, w, c) to (b, d, h, w, out_channels)."""
        skips = []
        for i, features in enumerate(self.features):
            x = self._stage(x, features, 2 if i else 1, f"encoder{i}")
            skips.append(x)
        for i in reversed(range(len(skips) - 1)):
            x = nn.ConvTranspose(self.features[i], (2,) * 3, strides=(2,) * 3, name=f"up{i}")(x)
            x = jnp.concatenate([x, skips[i]], axis=-1)
            x = self._stage(x, self.features[i], 1, f"decoder{i}")
        return nn.Conv(self.out_channels, (1,) * 3, name="head")(x)

    def _stage(self, x: jax.Array, features: int, stride: int, name: str) -> jax.Array:
        for j in range(2):
            x = _Block(features, stride if j == 0 else 1, name=f"{name}_block{j}")(x)
        return x


class _Block(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.features, (3,) * 3, strides=self.stride, padding=1, name="conv")(x)
        return nn.leaky_relu(nn.InstanceNorm(epsilon=1e-5, name="norm")(x), 0.01)


def unet_contests(
    size: int = 64, features: Sequence[int] = (32, 64, 128, 256), classes: int = 2
) -> list[Contest]:
    """Forward, and one step of training: cross-entropy, all gradients, SGD.

    biojax takes its public step, which reports accuracy and the gradient's norm besides. PyTorch's
    network has weights of its own, so that only its shapes and its number of parameters are
    checked.
    """
    return [
        Contest(
            f"unet/patch_{size}",
            mode,
            "float32",
            functools.partial(prepare, size, tuple(features), classes),
        )
        for mode, prepare in (("forward", _forward), ("train", _train))
    ]


def _forward(size: int, features: tuple[int, ...], classes: int) -> dict[str, Contender]:
    ours, plain, variables, batch = _setting(size, features, classes)
    arguments = (variables, batch["image"])
    contenders = {
        "biojax": jax_contender("forward", ours.apply, arguments),
        "xla": jax_contender("forward", plain.apply, arguments),
    }
    for layout, (torch, network, image, _) in _torch_settings(batch, features, classes, variables):

        def run(torch=torch, network=network, image=image):
            with torch.no_grad():
                return network(image)

        def result(run=run):
            return [np.moveaxis(run().numpy(), 1, -1)]

        contenders[f"torch {layout}"] = Contender(run, result, has_our_weights=False)
    return contenders


def _train(size: int, features: tuple[int, ...], classes: int) -> dict[str, Contender]:
    ours, plain, variables, batch = _setting(size, features, classes)
    contenders = {
        "biojax": _ours_in_training(ours, variables, batch),
        "xla": _plain_in_training(plain, variables, batch),
    }
    for layout, (torch, network, image, label) in _torch_settings(
        batch, features, classes, variables
    ):
        optimizer = torch.optim.SGD(network.parameters(), lr=_RATE)

        def run(torch=torch, network=network, image=image, label=label, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(image), label)
            loss.backward()
            optimizer.step()
            return loss.item()

        contenders[f"torch {layout}"] = Contender(
            run, lambda run=run: [np.asarray(run(), np.float32)], has_our_weights=False
        )
    return contenders


def _ours_in_training(model: nn.Module, variables: Any, batch: dict[str, Any]) -> Contender:
    task = Segmentation(model, cross_entropy)
    step = make_train_step(task, optax.sgd(_RATE))
    state = create_state(task, optax.sgd(_RATE), jax.random.key(0), batch)
    state = state.replace(params=jax.tree.map(jnp.copy, variables["params"]))

    def run():  # the state is donated, and goes on from step to step
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready((state, metrics["loss"]))[1]

    return Contender(run, lambda: jax_result(run()))


def _plain_in_training(model: nn.Module, variables: Any, batch: dict[str, Any]) -> Contender:
    optimizer = optax.sgd(_RATE)

    def loss_of(params: Any) -> jax.Array:
        logits = jnp.asarray(model.apply({"params": params}, batch["image"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state):
        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    params = jax.tree.map(jnp.copy, variables["params"])
    opt_state = optimizer.init(params)

    def run():
        nonlocal params, opt_state
        params, opt_state, loss = jax.block_until_ready(step(params, opt_state))
        return loss

    return Contender(run, lambda: jax_result(run()))


def _setting(size: int, features: tuple[int, ...], classes: int) -> tuple:
    """Both networks in JAX, their variables, and a batch of one patch."""
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.standard_normal((1, size, size, size, 1), np.float32)),
        "label": jnp.asarray(rng.integers(0, classes, (1, size, size, size), np.int32)),
    }
    ours = create_model("unet", out_channels=classes, features=features)
    plain = PlainUNet(classes, features)
    return ours, plain, initialise(ours, batch["image"]), batch


def _torch_settings(
    batch: dict[str, Any], features: tuple[int, ...], classes: int, variables: Any
) -> list[tuple[str, tuple]]:
    """PyTorch, the network, image and label, for each layout.

    Raises:
      DataError: the network does not have as many parameters as ours.
    """
    torch: Any = require("torch", "peers")
    architectures: Any = require("dynamic_network_architectures.architectures.unet", "peers")
    settings = []
    for layout, name in (
        ("contiguous", "contiguous_format"),
        ("channels_last", "channels_last_3d"),
    ):
        torch.manual_seed(0)
        network = architectures.PlainConvUNet(
            input_channels=1,
            n_stages=len(features),
            features_per_stage=features,
            conv_op=torch.nn.Conv3d,
            kernel_sizes=3,
            strides=(1, *[2] * (len(features) - 1)),
            n_conv_per_stage=2,
            num_classes=classes,
            n_conv_per_stage_decoder=2,
            conv_bias=True,
            norm_op=torch.nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=torch.nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        unused = network.decoder.seg_layers[:-1]  # heads of deep supervision
        theirs = sum(p.numel() for p in network.parameters())
        theirs -= sum(p.numel() for head in unused for p in head.parameters())
        ours = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        if theirs != ours:
            raise DataError(
                "unet: torch", f"{theirs} parameters", f"{ours}, as here", "Build the same network"
            )
        layout_of = getattr(torch, name)
        image = np.moveaxis(np.asarray(batch["image"]), -1, 1).copy()
        image = torch.from_numpy(image).contiguous(memory_format=layout_of)
        label = torch.from_numpy(np.array(batch["label"], np.int64))
        network = network.to(memory_format=layout_of)
        settings.append((layout, (torch, network, image, label)))
    return settings
