"""`lax.scan` for arrays of any float."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from biojax.errors import UnsupportedError
from biojax.kernels.conv.blocks import as_bits, as_floats
from biojax.typing import Array

__all__ = ["loop"]


def loop(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, inputs: Any, *, reverse: bool = False
) -> tuple[Any, Any]:
    """`lax.scan(step, state, inputs, reverse=reverse)`, in time linear in the steps.

    Inputs and outputs of 16 bits go in and out as integers. As bfloat16, XLA on CPU (jaxlib 0.10.2)
    widens all of them at every step: 65,536 steps of 8 states took 9 s, and 1 ms so.

    Raises:
      UnsupportedError: a derivative is taken of 16-bit inputs. This is for the loops of a
        `custom_vjp`, so that of these scans it is the second derivative.
    """
    dtypes: Any = None

    def step_in_bits(state, parts):
        nonlocal dtypes
        parts = jax.tree.map(lambda part, x: as_floats(part, x.dtype), parts, inputs)
        state, outputs = step(state, parts)
        dtypes = jax.tree.map(lambda y: y.dtype, outputs)
        return state, jax.tree.map(as_bits, outputs)

    bits = jax.tree.map(lambda x: _of_no_derivative(x) if x.dtype.itemsize == 2 else x, inputs)
    state, outputs = lax.scan(step_in_bits, state, bits, reverse=reverse)
    return state, jax.tree.map(as_floats, outputs, dtypes)


@jax.custom_jvp
def _of_no_derivative(x: Array) -> Array:
    return as_bits(x)


@_of_no_derivative.defjvp
def _refuse(primals, tangents):
    raise UnsupportedError(
        "scan",
        f"the derivative of a gradient in {primals[0].dtype}",
        "float32 or float64",
        "Convert the inputs, as with x.astype(jnp.float32)",
    )
