"""Choosing an implementation, and saying why.

A kernel's public function calls `select` with its own implementations and its own rule. A named
implementation is taken as named, and raises where it cannot do the job; with None the rule
decides. `explain` traces a call without computing it and tells what was chosen.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from biojax.errors import ConfigError, nearest
from biojax.typing import Dtype

__all__ = ["Choice", "accumulator", "explain", "platform", "select"]


class Choice(NamedTuple):
    """What ran, and why."""

    kernel: str
    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.implementation} ({self.reason})"


@dataclasses.dataclass(eq=False)
class _Record:
    """The choices of one call of `explain`."""

    choices: list[Choice] = dataclasses.field(default_factory=list)


# A part of jit's cache key: under a new record, functions traced before are traced again.
_record = jax.make_user_context(default_value=None)


def select(
    kernel: str,
    implementations: Mapping[str, Callable],
    implementation: str | None,
    rule: Callable[[], tuple[str, str]],
) -> Callable:
    """The implementation to call.

    Args:
      kernel: the public function's name, for errors and explanations.
      implementations: every implementation by name.
      implementation: one of those names, or None to let the rule choose.
      rule: called for None; returns a name and the reason in a few words.

    Raises:
      ConfigError: no implementation of that name.
    """
    if implementation is None:
        name, reason = rule()
    elif implementation in implementations:
        name, reason = implementation, "named by the caller"
    else:
        raise ConfigError(
            kernel,
            f"implementation={implementation!r}",
            f"one of {', '.join(map(repr, implementations))}, or None to choose",
            "Name one of these",
            nearest(implementation, implementations),
        )
    record = _record.value
    if record is not None:
        record.choices.append(Choice(kernel, name, reason))
    return implementations[name]


def explain(function: Callable, *args, **kwargs) -> list[Choice]:
    """Which implementations a call would choose, and why. Nothing is computed.

    Args:
      function: a kernel, or anything that calls kernels, such as a model's `apply`.
      *args: its arguments; arrays may be `jax.ShapeDtypeStruct`.
      **kwargs: its keyword arguments.

    Returns:
      One `Choice` per kernel call, in the order traced.

    >>> from biojax.kernels import conv
    >>> x = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    >>> w = jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32)
    >>> print(explain(conv, x, w)[0])
    conv: xla (2-D and small, on CPU)
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    traced = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
    arrays = [leaf for leaf, is_array in zip(leaves, traced, strict=True) if is_array]

    def call(arrays):
        rest = iter(arrays)
        filled = [next(rest) if t else leaf for leaf, t in zip(leaves, traced, strict=True)]
        args, kwargs = jax.tree.unflatten(tree, filled)
        function(*args, **kwargs)
        return ()

    record = _Record()
    with _record(record):
        jax.eval_shape(call, arrays)
    return record.choices


def platform() -> str:
    """The platform that a computation traced now will run on: "cpu", "gpu" or "tpu"."""
    device = getattr(jax.config, "jax_default_device", None)
    name = getattr(device, "platform", device) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else str(name)


def accumulator(dtype: Dtype) -> jnp.dtype:
    """The dtype to add up in: at least float32 (complex64 for complex input)."""
    return jnp.promote_types(dtype, jnp.float32)
