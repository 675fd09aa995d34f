"""One step of training, as one compiled function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from biojax.errors import ConfigError
from biojax.parallel import Strategy, make_strategy
from biojax.tasks import Task
from biojax.training.state import TrainState
from biojax.typing import Array, ArrayLike, Dtype, Key

__all__ = ["make_eval_step", "make_train_step"]

Batch = dict[str, ArrayLike]
Transform = Callable[[Key, dict[str, Array]], dict[str, Array]]
_no_state = optax.EmptyState()


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    strategy: str | Strategy = "single",
    accumulate: int = 1,
    clip_norm: float | None = None,
    dtype: Dtype | None = None,
    ema_decay: float | None = None,
    remat: bool = False,
    transform: Transform | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Compile one step: transform, forward, backward, clip, update, average.

    g = mean of the loss's gradients over the batch,   g <- g min(1, clip_norm / |g|)
    params <- params + optimizer(g)
    ema <- d ema + (1 - d) params,   d = min(ema_decay, (1 + step) / (10 + step))

    Args:
      task: the loss to lower.
      optimizer: turns gradients into updates, as in optax.
      strategy: how the step runs over devices, see `biojax.parallel`.
      accumulate: microbatches that each device's share of the batch is done in, one after the
        other, to save memory. The result is that of the whole batch where the loss is a mean over
        samples; batch normalisation sees microbatches.
      clip_norm: the largest global norm of the gradient; None for no clipping.
      dtype: what the model computes in, such as "bfloat16", whereas parameters, their gradients,
        the loss and the optimizer stay in float32; None to leave the model as it is.
      ema_decay: decay of the moving average of the parameters, for which `create_state` must be
        told the same; None for no average. It starts low, so that the random parameters of the
        beginning are soon forgotten; `step` counts from 0.
      remat: keep only what the model tags as "block" for the backward pass, and compute the rest
        anew: less memory for about a third more time.
      transform: augmentation on the device, `transform(key, sample)` of one sample without its
        batch axis. Sample i of the global batch has a key of its own, whatever the strategy and
        the microbatches.

    Returns:
      `step(state, batch)`, which gives the next state and the metrics: `loss`, those of the task,
      `grad_norm` before clipping, and `lr` if the optimizer was wrapped in
      `optax.inject_hyperparams`. It places both arguments itself, and **donates** the state: only
      the new one may be used afterwards. Metrics are not waited for.

    Raises:
      ConfigError: an unknown strategy, an option outside its range, or a model without the field
        `dtype` when that is given; by the step, if `ema_decay` and the state do not agree.
      ShapeError: by the step, if the batch does not divide by devices times `accumulate`.

    Source of `remat`: Chen et al., "Training deep nets with sublinear memory cost", 2016.
    """
    strategy = make_strategy(strategy)
    _check("accumulate", accumulate, accumulate >= 1, "1 or more")
    _check("clip_norm", clip_norm, clip_norm is None or clip_norm > 0, "above 0, or None")
    _check("ema_decay", ema_decay, ema_decay is None or 0 < ema_decay < 1, "between 0 and 1")
    task = _in_dtype(task, dtype)

    def loss_of(params, batch_stats, batch, key):
        variables = {"params": params, "batch_stats": batch_stats}
        return task(variables, batch, key=key, train=True)

    if remat:
        policy = jax.checkpoint_policies.save_only_these_names("block")
        loss_of = jax.checkpoint(loss_of, policy=policy)
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def step(state: TrainState, batch):
        _check_ema(state, ema_decay)
        transform_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))

        def microbatch(carry, part):
            gradient, batch_stats = carry
            index, batch = part
            if transform is not None:
                keys = jax.vmap(jax.random.fold_in, (None, 0))(transform_key, index)
                batch = jax.vmap(transform)(keys, batch)
            key = jax.random.fold_in(dropout_key, index[0])
            (loss, (metrics, batch_stats)), more = gradient_of(
                state.params, batch_stats, batch, key
            )
            return (optax.tree.add(gradient, more), batch_stats), {"loss": loss, **metrics}

        carry = (optax.tree.zeros_like(state.params), state.batch_stats)
        parts = _microbatches(batch, accumulate, strategy.axis)
        (gradient, batch_stats), metrics = _loop(microbatch, carry, parts)
        gradient = optax.tree.scale(1 / accumulate, gradient)
        metrics = jax.tree.map(jnp.mean, metrics)
        if strategy.axis:
            gradient, batch_stats, metrics = jax.lax.pmean(
                (gradient, batch_stats, metrics), strategy.axis
            )
        metrics["grad_norm"] = optax.tree.norm(gradient)
        if clip_norm is not None:
            gradient, _ = optax.clip_by_global_norm(clip_norm).update(gradient, _no_state)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(params, ema, 1 - decay)
        rates = optax.tree.get_all_with_path(opt_state, "learning_rate", filtering=_is_scalar)
        if len(rates) == 1:
            metrics["lr"] = rates[0][1]
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
        )
        return state, metrics

    compiled = strategy.compile(step, donate=True)

    def train_step(state, batch):
        batch = strategy.place_batch(batch, accumulate=accumulate)
        return compiled(strategy.place_state(state), batch)

    return train_step


def make_eval_step(
    task: Task, *, strategy: str | Strategy = "single", dtype: Dtype | None = None
) -> Callable[[TrainState, Batch], dict[str, Array]]:
    """Compile `evaluate(state, batch)`: the loss and the task's metrics, without training.

    Uses the averaged parameters where the state has them. Nothing is donated. The arguments and
    errors are those of `make_train_step`.
    """
    strategy = make_strategy(strategy)
    task = _in_dtype(task, dtype)

    def evaluate(state: TrainState, batch):
        loss, (metrics, _) = task(state.variables, batch, key=state.key, train=False)
        metrics = {"loss": loss, **metrics}
        return jax.lax.pmean(metrics, strategy.axis) if strategy.axis else metrics

    compiled = strategy.compile(evaluate)
    return lambda state, batch: compiled(strategy.place_state(state), strategy.place_batch(batch))


def _loop(body: Callable, carry: Any, parts: Any) -> Any:
    """`jax.lax.scan`, written out on CPU and for a single part.

    XLA's CPU compiler turns convolutions into its fast form in the outermost computation only:
    the gradients of those inside of a loop are many times slower.
    """
    length = len(jax.tree.leaves(parts)[0])
    if length > 1 and jax.default_backend() != "cpu":
        return jax.lax.scan(body, carry, parts)
    outputs = []
    for i in range(length):
        carry, output = body(carry, jax.tree.map(lambda x, i=i: x[i], parts))
        outputs.append(output)
    return carry, jax.tree.map(lambda *xs: jnp.stack(xs), *outputs)


def _microbatches(batch: Any, accumulate: int, axis: str | None) -> Any:
    """Each sample's number in the global batch, and the batch: (accumulate, b / accumulate, ...).

    Microbatch j takes samples j, j + accumulate, ...: a part of every device's share, so that
    none is moved and each device is busy in every microbatch.
    """
    b = batch["image"].shape[0]
    first = jax.lax.axis_index(axis) * b if axis else 0

    def split(x):
        return x.reshape(b // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, (first + jnp.arange(b), batch))


def _in_dtype(task: Task, dtype: Dtype | None) -> Task:
    if dtype is None:
        return task
    if "dtype" not in {field.name for field in dataclasses.fields(task.model)}:
        raise ConfigError(
            "make_train_step",
            f"dtype={jnp.dtype(dtype).name!r} for {type(task.model).__name__}",
            "a model with the field `dtype`",
            "Leave dtype at None, or give the model that field",
        )
    return dataclasses.replace(task, model=task.model.clone(dtype=jnp.dtype(dtype)))  # pyright: ignore


def _check(name: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise ConfigError(
            "make_train_step", f"{name}={value}", expected, f"Choose {name} in that range"
        )


def _check_ema(state: TrainState, ema_decay: float | None) -> None:
    if (ema_decay is None) != (state.ema is None):
        has = "no average" if state.ema is None else "an average"
        raise ConfigError(
            "make_train_step",
            f"ema_decay={ema_decay} and a state with {has} of the parameters",
            "both or neither",
            "Give create_state and make_train_step the same ema_decay",
        )


def _is_scalar(_: Any, value: Any) -> bool:
    return isinstance(value, jax.Array) and value.ndim == 0
