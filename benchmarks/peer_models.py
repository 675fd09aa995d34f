"""Models against themselves of Flax's layers, and against PyTorch with the same weights."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from benchmarks.contest import Contender, Contest, choices_of, compile_timed, jax_contender
from benchmarks.plain_kernels import plainly
from benchmarks.torch_models import (
    LAYOUTS,
    torch_forward,
    torch_network,
    torch_step,
    torch_variables,
)
from biojax.losses import cross_entropy
from biojax.models import ResNet3D, create_model
from biojax.tasks import Classification, Segmentation
from biojax.training import create_state, make_train_step

__all__ = ["ENTRIES", "Entry", "model_contests"]


class Entry(NamedTuple):
    """A model of two classes.

    Args:
      name: as in `biojax.models.create_model`.
      size: of its cubic patches.
      fields: where the model is smaller than the published one, so that a contest is short.
      batch: how many patches.
      rate: of SGD, so high that a step changes parameters by far more than their rounding.
    """

    name: str
    size: int
    fields: Mapping[str, Any] = {}
    batch: int = 1
    rate: float = 1.0


ENTRIES = (
    Entry("unet", 64, {"features": (32, 64, 128, 256)}),
    Entry("resenc_unet_m", 32, {"features": (32, 64, 128, 256), "num_blocks": (1, 3, 4, 6)}),
    Entry("mednext_s", 32, rate=0.1),
    Entry("residual_unet", 48),
    Entry("resnet3d_18", 32, batch=2, rate=0.1),
)


def model_contests(entries: Sequence[Entry] = ENTRIES) -> list[Contest]:
    """Forward, and one step of training: cross-entropy, all gradients, SGD.

    The weights are PyTorch's first ones, converted. Compared are the logits; of a step the loss
    and what it changed in each layer. biojax takes its public step, which reports accuracy and the
    gradient's norm besides; the plain step is what optax's users write.
    """
    return [
        Contest(
            f"{entry.name}/patch_{entry.size}", mode, "float32", functools.partial(prepare, entry)
        )
        for entry in entries
        for mode, prepare in (("forward", _forward), ("train", _train))
    ]


def _forward(entry: Entry) -> dict[str, Contender]:
    model, batch = _model(entry), _batch(entry)
    theirs = {}
    for layout in LAYOUTS:
        run = torch_forward(torch_network(model, layout), layout, batch["image"])
        theirs[f"torch {layout}"] = Contender(run, lambda run=run: [run()])
    arguments = (_variables(model), batch["image"])
    return {
        "biojax": jax_contender("forward", model.apply, arguments),
        "xla": jax_contender("forward", plainly(model.apply), arguments),
        **theirs,
    }


def _train(entry: Entry) -> dict[str, Contender]:
    model, batch = _model(entry), _batch(entry)
    variables = _variables(model)
    return {
        "biojax": _in_training(_our_step(model, variables, batch, entry.rate), batch),
        "xla": _in_training(_plain_step(model, variables, entry.rate), batch),
        **{
            f"torch {layout}": _torch_in_training(model, layout, batch, entry.rate)
            for layout in LAYOUTS
        },
    }


class _Training(NamedTuple):
    """A step from (state, batch) to the next state and metrics, and the state to start from."""

    step: Callable
    first: Any
    params_of: Callable[[Any], Any]


def _our_step(model: nn.Module, variables: Any, batch: dict[str, Any], rate: float) -> _Training:
    """The public step of biojax."""
    task = (Classification if isinstance(model, ResNet3D) else Segmentation)(model, cross_entropy)
    optimizer = optax.sgd(rate)
    state = create_state(task, optimizer, jax.random.key(0), batch).replace(
        params=variables["params"], batch_stats=variables.get("batch_stats", {})
    )
    return _Training(make_train_step(task, optimizer), state, lambda state: state.params)


def _plain_step(model: nn.Module, variables: Any, rate: float) -> _Training:
    """The same without biojax: its kernels, its tasks, its training."""
    optimizer = optax.sgd(rate)

    def loss_of(params, rest, batch):
        apply = functools.partial(plainly(model.apply), train=True, mutable=["batch_stats"])
        logits, rest = apply({"params": params, **rest}, batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), rest

    def step(state, batch):
        params, rest, opt_state = state
        (loss, rest), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, rest, batch)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), rest, opt_state), {"loss": loss}

    rest = {name: values for name, values in variables.items() if name != "params"}
    state = variables["params"], rest, optimizer.init(variables["params"])
    return _Training(step, state, lambda state: state[0])


def _in_training(training: _Training, batch: dict[str, Any]) -> Contender:
    """The step, compiled; its state is donated, and goes on from run to run."""
    step, first, params_of = training
    program, seconds = compile_timed(step, (first, batch), donate_argnums=0)
    state = jax.tree.map(jnp.copy, first)

    def run():
        nonlocal state
        state, metrics = jax.block_until_ready(program(state, batch))
        return metrics

    def result():
        after, metrics = program(jax.tree.map(jnp.copy, first), batch)
        return [np.asarray(metrics["loss"]), *_changes(params_of(first), params_of(after))]

    return Contender(run, result, seconds, choices_of(step, first, batch))


def _torch_in_training(
    model: nn.Module, layout: str, batch: dict[str, Any], rate: float
) -> Contender:
    network = torch_network(model, layout)
    first = copy.deepcopy(network.state_dict())
    run = torch_step(network, layout, batch, rate)

    def result():
        network.load_state_dict(first)
        before = torch_variables(model, network)
        loss = np.asarray(run(), np.float32)
        after = torch_variables(model, network)
        return [loss, *_changes(before["params"], after["params"])]

    return Contender(run, result)


def _changes(before: Any, after: Any) -> list[np.ndarray]:
    """What a step changed in each layer, all of its parameters as one array.

    A bias before a norm has no gradient but rounding; beside its kernel that does not count.
    """
    old: Any = flatten_dict(before)
    new: Any = flatten_dict(after)
    layers: dict[tuple, list[np.ndarray]] = {}
    for path in sorted(old):
        change = np.asarray(new[path]) - np.asarray(old[path])
        layers.setdefault(path[:-1], []).append(change.ravel())
    return [np.concatenate(parts) for parts in layers.values()]


def _model(entry: Entry) -> nn.Module:
    classes = "num_classes" if entry.name.startswith("resnet3d") else "out_channels"
    return create_model(entry.name, **{classes: 2}, **entry.fields)


def _variables(model: nn.Module) -> Any:
    return jax.device_put(torch_variables(model, torch_network(model, "contiguous")))


def _batch(entry: Entry) -> dict[str, Any]:
    """Noise, and for each voxel a label, or for each image."""
    rng, shape = np.random.default_rng(0), (entry.batch, *[entry.size] * 3)
    labels = shape[:1] if entry.name.startswith("resnet3d") else shape
    return {
        "image": jnp.asarray(rng.standard_normal((*shape, 1), np.float32)),
        "label": jnp.asarray(rng.integers(0, 2, labels, np.int32)),
    }
