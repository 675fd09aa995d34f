"""Whole volumes: a 3-D U-Net's forward pass and training step, and prediction by sliding window."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from biojax.bench.case import Case, Work, normal, shapes_of
from biojax.bench.counts import MODES, count_bytes, count_model
from biojax.bench.models import initialise
from biojax.bench.timing import time_calls
from biojax.inference import predict_volume
from biojax.losses import cross_entropy
from biojax.models import create_model
from biojax.tasks import Segmentation
from biojax.training import create_state, make_train_step

__all__ = ["volume_cases"]

_UNET = (32, 64, 128, 256)
_SMALL_UNET = (8, 16, 32)


def volume_cases(implementations: Iterable[str | None] = (None,)) -> list[Case]:
    """A patch of 64 voxels along each axis through a U-Net of four stages; a volume of 96 by a
    smaller one in windows of 48, half of which overlap.
    """
    work = {
        ("unet", "patch_64", "forward"): functools.partial(_forward, 64, _UNET),
        ("unet", "patch_64", "train"): functools.partial(_train, 64, _UNET),
        ("sliding_window", "volume_96_window_48", "predict"): functools.partial(
            _predict, 96, 48, _SMALL_UNET
        ),
    }
    return [
        Case("volumes", *name, "float32", None, prepare)
        for name, prepare in work.items()
        if None in implementations
    ]


def _forward(size: int, features: tuple[int, ...]) -> Work:
    model = _unet(features)
    x = _image(size)
    variables = initialise(model, x)
    choices, flops = count_model(model, variables, x)
    traffic = count_bytes("forward", (variables, x), jax.eval_shape(model.apply, variables, x))
    return Work(model.apply, (variables, x), choices, shapes_of(x), flops, traffic, x.size)


def _train(size: int, features: tuple[int, ...]) -> Work:
    """Forward, backward and SGD. The state is not donated: every run starts from the same one."""
    task = Segmentation(_unet(features), cross_entropy)
    optimizer = optax.sgd(0.01)
    image = _image(size)
    label = jnp.asarray(np.random.default_rng(1).integers(0, 2, image.shape[:-1], np.int32))
    batch = {"image": image, "label": label}
    state = create_state(task, optimizer, jax.random.key(0), batch)
    choices, flops = count_model(task.model, state.variables, image)
    return Work(
        make_train_step(task, optimizer),
        (state, batch),
        choices,
        shapes_of(image),
        None if flops is None else MODES["both"] * flops,
        count_bytes("both", (state.params, image), ()),
        image.size,
    )


def _predict(size: int, window: int, features: tuple[int, ...]) -> Work:
    """From an array on the host to labels on the host."""
    model = _unet(features)
    volume = np.asarray(_image(size))[0]
    variables = initialise(model, _image(window))
    predict = functools.partial(
        predict_volume, model.apply, window=window, overlap=0.5, reduce="argmax"
    )
    choices, _ = count_model(model, variables, _image(window))
    return Work(
        predict,
        (variables, volume),
        choices,
        shapes_of(volume),
        None,
        None,
        volume.size,
        time_calls,
    )


def _unet(features: tuple[int, ...]) -> Any:
    return create_model("unet", out_channels=2, features=features)


def _image(size: int) -> jax.Array:
    return normal(0, jax.ShapeDtypeStruct((1, size, size, size, 1), jnp.float32))
