"""`lax.scan` for arrays of any float."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from biojax.kernels.conv.blocks import as_bits, as_floats

__all__ = ["loop"]


def loop(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, inputs: Any, *, reverse: bool = False
) -> tuple[Any, Any]:
    """`lax.scan(step, state, inputs, reverse=reverse)`, in time linear in the steps.

    Inputs and outputs of 16 bits go in and out as integers. As bfloat16, XLA on CPU (jaxlib 0.10.2)
    widens all of them at every step: 65,536 steps of 8 states took 9 s, and 1 ms so. Gradients do
    not pass through: for the loops of a `custom_vjp`.
    """
    dtypes: Any = None

    def step_in_bits(state, parts):
        nonlocal dtypes
        parts = jax.tree.map(lambda part, x: as_floats(part, x.dtype), parts, inputs)
        state, outputs = step(state, parts)
        dtypes = jax.tree.map(lambda y: y.dtype, outputs)
        return state, jax.tree.map(as_bits, outputs)

    bits = jax.tree.map(as_bits, inputs)
    state, outputs = lax.scan(step_in_bits, state, bits, reverse=reverse)
    return state, jax.tree.map(as_floats, outputs, dtypes)
