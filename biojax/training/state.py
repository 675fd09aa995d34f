"""Everything a run carries from step to step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.core import Tracer

from biojax.tasks import Task
from biojax.typing import Array, Key

__all__ = ["TrainState", "create_state"]


class TrainState(struct.PyTreeNode):
    """The state of training: a tree of arrays, and nothing else.

    Attributes:
      step: how many steps were done, an int32 scalar.
      params: the model's parameters.
      batch_stats: running statistics of normalisation, {} if the model has none.
      opt_state: the optimizer's state.
      ema: exponential moving average of `params`, or None.
      key: random key of the run; step i draws from fold_in(key, i).
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    key: Key

    @property
    def variables(self) -> dict[str, Any]:
        """What to predict with: the averaged parameters where there are any, and `batch_stats`."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, "batch_stats": self.batch_stats}


def create_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: Key,
    batch: Mapping[str, Any],
    *,
    ema_decay: float | None = None,
) -> TrainState:
    """The state before the first step. Equal keys make equal states.

    Args:
      task: the task, with the model to initialise.
      optimizer: the optimizer, whose state starts here.
      key: random key, for the parameters and then for the run.
      batch: a batch, or its `jax.ShapeDtypeStruct`s; only shapes and dtypes matter.
      ema_decay: the decay that `make_train_step` is given; the average starts at the parameters.

    `jax.eval_shape` of this is the abstract state that `Checkpoints.restore` asks for.
    """
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}

    def create(key):
        key_params, key_run = jax.random.split(key)
        variables = task.init(key_params, shapes)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
            ema=None if ema_decay is None else jax.tree.map(jnp.copy, params),
            key=key_run,
        )

    if isinstance(key, Tracer):  # inside `jax.eval_shape`, or a `jit` of the caller's
        return create(key)
    # Compiled, the forward pass inside `init` is never computed. The code of random initialisers is
    # long and runs once: on the CPU, optimising it would take far longer than running it.
    cpu = jax.default_backend() == "cpu"
    options: dict = {"xla_backend_optimization_level": 1} if cpu else {}
    return jax.jit(create, compiler_options=options)(key)
