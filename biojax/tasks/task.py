"""The interface of a task, and how every task calls its model."""

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from biojax.typing import Array, ArrayLike, Key

__all__ = ["Task", "apply_model", "init_variables"]


class Task(Protocol):
    """What training asks of a task. A task is a frozen dataclass with a field `model`.

    A batch is a dict of arrays that share their first axis; `variables` is linen's dict, with
    `params` and, where the model has running statistics, `batch_stats`.
    """

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        ...

    def init(self, key: Key, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Variables to start from. Only the shapes and dtypes of `batch` matter."""
        ...

    def __call__(
        self, variables: Mapping[str, Any], batch: Mapping[str, ArrayLike], *, key: Key, train: bool
    ) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
        """The loss, a float32 scalar, and beside it the metrics and the new `batch_stats`.

        Metrics are scalars that are means over samples, so that means over parts of a batch make
        the mean over the batch.
        """
        ...

    def predict(self, variables: Mapping[str, Any], image: ArrayLike) -> Array:
        """What the model says of images (b, *spatial, c), as probabilities where it has any."""
        ...


def init_variables(model: nn.Module, key: Key, image: Any) -> dict[str, Any]:
    """Initialise a model for images of this shape and dtype, of which the values do not matter."""
    one = jnp.zeros((1, *image.shape[1:]), image.dtype)
    return dict(model.init({"params": key}, one, train=False))


def apply_model(
    model: nn.Module, variables: Mapping[str, Any], image: ArrayLike, *, key: Key, train: bool
) -> tuple[Any, dict[str, Any]]:
    """Apply a model to images (b, *spatial, c); `key` is for dropout.

    Returns:
      logits in float32, of several resolutions where a model with deep supervision trains; and
      `batch_stats`: moved on if `train`, and {} if the model has none.
    """
    if not train:
        logits = model.apply(variables, image, train=False)
        return _float32(logits), variables.get("batch_stats", {})
    logits, updated = model.apply(
        variables, image, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    return _float32(logits), dict(updated).get("batch_stats", {})


def _float32(logits: Any) -> Any:
    return jax.tree.map(lambda y: jnp.asarray(y, jnp.float32), logits)
