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

    def on_floats(state, parts):
        return step(state, jax.tree.map(lambda part, x: as_floats(part, x.dtype), parts, inputs))

    def on_bits(state, parts):
        state, outputs = on_floats(state, parts)
        return state, jax.tree.map(as_bits, outputs)

    inputs_in_bits = jax.tree.map(as_bits, inputs)
    state_out, outputs = lax.scan(on_bits, state, inputs_in_bits, reverse=reverse)
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs_in_bits)
    _, kinds = jax.eval_shape(on_floats, state, first)
    return state_out, jax.tree.map(lambda y, kind: as_floats(y, kind.dtype), outputs, kinds)
