"""Choosing an implementation, and saying why.

A kernel's public function calls `select` with its own implementations and its own rule. A named
implementation is taken as named, and raises where it cannot do the job; with None the one that
`tune` measured decides, and the rule where nothing was measured. `explain` traces a call without
computing it and tells what was chosen.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from biojax.errors import ConfigError, nearest
from biojax.kernels.measured import described, find
from biojax.typing import Array, Dtype

__all__ = ["Call", "Choice", "accumulator", "explain", "of_arrays", "platform", "select", "trace"]


class Choice(NamedTuple):
    """What ran, and why."""

    kernel: str
    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.implementation} ({self.reason})"


class Call(NamedTuple):
    """One call of a kernel, as its implementations see it.

    Args:
      choice: what ran, and why.
      implementations: the names of all.
      text: the kernel's name, shapes, dtypes and options, written out.
    """

    choice: Choice
    implementations: tuple[str, ...]
    text: str


@dataclasses.dataclass(eq=False)
class _Record:
    """The calls of kernels in one trace."""

    calls: list[Call] = dataclasses.field(default_factory=list)


# A part of jit's cache key: under a new record, functions traced before are traced again.
_record = jax.make_user_context(default_value=None)


def select(
    kernel: str,
    implementations: Mapping[str, Callable],
    implementation: str | None,
    rule: Callable[[], tuple[str, str]],
) -> Callable:
    """The function to call, which chooses once it sees its arguments.

    Args:
      kernel: the public function's name, for errors and explanations.
      implementations: every implementation by name.
      implementation: one of those names, or None to choose.
      rule: called for None, where nothing was measured; returns a name and the reason in a few
        words.

    Raises:
      ConfigError: no implementation of that name.
    """
    _known(kernel, implementations, implementation)

    def run(*args):
        text = described(kernel, args)
        row = find(text, platform()) if implementation is None else None
        if implementation is not None:
            name, reason = implementation, "named by the caller"
        elif row is not None:
            name, reason = row.implementation, row.reason
            _known(kernel, implementations, name)
        else:
            name, reason = rule()
        record = _record.value
        if record is not None:
            choice = Choice(kernel, name, reason)
            record.calls.append(Call(choice, tuple(implementations), text))
        return implementations[name](*args)

    return run


def _known(kernel: str, implementations: Mapping[str, Callable], name: str | None) -> None:
    if name is not None and name not in implementations:
        raise ConfigError(
            kernel,
            f"implementation={name!r}",
            f"one of {', '.join(map(repr, implementations))}, or None to choose",
            "Name one of these",
            nearest(name, implementations),
        )


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
    return [call.choice for call in trace(*of_arrays(function, args, kwargs))]


def trace(function: Callable, arrays: Sequence[Array | jax.ShapeDtypeStruct]) -> list[Call]:
    """The calls of kernels in `function(*arrays)`, which is not computed."""

    def run(arrays):
        function(*arrays)
        return ()

    record = _Record()
    with _record(record):
        jax.eval_shape(run, arrays)
    return record.calls


def of_arrays(function: Callable, args: tuple, kwargs: Mapping) -> tuple[Callable, list]:
    """The same call as a function of its arrays alone, and the arrays."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    traced = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

    def call(*arrays, **options):
        rest = iter(arrays)
        filled = [next(rest) if t else leaf for leaf, t in zip(leaves, traced, strict=True)]
        args, kwargs = jax.tree.unflatten(tree, filled)
        return function(*args, **kwargs, **options)

    return call, [leaf for leaf, is_array in zip(leaves, traced, strict=True) if is_array]


def platform() -> str:
    """The platform that a computation traced now will run on: "cpu", "gpu" or "tpu"."""
    device = getattr(jax.config, "jax_default_device", None)
    name = getattr(device, "platform", device) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else str(name)


def accumulator(dtype: Dtype) -> jnp.dtype:
    """The dtype to add up in: at least float32 (complex64 for complex input)."""
    return jnp.promote_types(dtype, jnp.float32)


def as_gradient_of(x: Array, gradient: Array) -> Array:
    """In x's dtype; its real part, where x is real and what it was multiplied with is complex."""
    real = jnp.isrealobj(x) and jnp.iscomplexobj(gradient)
    return (gradient.real if real else gradient).astype(x.dtype)
