"""What makes a function the same over every kind of mesh.

Over axes of `AxisType.Explicit`, which `jax.make_mesh` makes, the types of arrays say how they are
sharded, and an operation that cannot tell refuses: loops whose states begin as zeros, sums over a
batch that is spread. So the compiler is left to shard a function from within, and is told how its
results are to be split. Inside of `shard_map` types say over which devices a value varies, and the
state of a loop has to begin as it ends.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes

from biojax.kernels.dispatch import of_arrays
from biojax.typing import Array

__all__ = ["left_to_compiler", "split_as_input", "varying"]


def left_to_compiler(f: Callable[..., Any], x: Array, *others: Array) -> Any:
    """Call f(x, *others), its sharding completed by the compiler, whatever the type of the mesh.

    Inside of f axes of the mesh are Auto. Results are typed as x is: split along the same axes but
    the last, where that divides. (In a `shard_map` over other axes of an Explicit mesh JAX 0.10
    finds no gradients.)

    Args:
      f: to an image (b, *out, f) or a tuple of such, from arrays of these shapes.
      x: an image (b, *spatial, c).
      *others: other arrays.
    """
    typed = jax.typeof(x).sharding
    axes = typed.mesh.explicit_axes
    if not axes:
        return f(x, *others)

    def divides(n: int, split: str | Sequence[str] | None) -> bool:
        names = (split,) if isinstance(split, str) else split or ()
        return n % math.prod(typed.mesh.shape[name] for name in names) == 0

    untyped = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (x, *others)]

    def split(result: jax.ShapeDtypeStruct) -> NamedSharding:
        pairs = zip(result.shape[:-1], typed.spec, strict=False)
        spec = (names if divides(n, names) else None for n, names in pairs)
        return NamedSharding(typed.mesh, PartitionSpec(*spec))

    out = jax.tree.map(split, jax.eval_shape(f, *untyped))
    call: Any = auto_axes(f, axes=axes, out_sharding=out)
    return call(x, *others)


def split_as_input(run: Callable[..., tuple], time: int = 1) -> Callable[..., tuple]:
    """The same scan, run(x, ...) to (y, *states), over axes of whatever type.

    Over Explicit ones y is split as x is, along all axes that have x's size, and states are as x
    without its axis of time.
    """

    @functools.wraps(run)
    def call(x: Array, *args) -> tuple:
        typed = jax.typeof(x).sharding
        axes = typed.mesh.explicit_axes
        if not axes:
            return run(x, *args)
        of_x = list(zip(x.shape, typed.spec, strict=False))

        def split(result: jax.ShapeDtypeStruct, of_x: list) -> NamedSharding:
            pairs = zip(result.shape, of_x, strict=False)
            spec = (names if size == n else None for size, (n, names) in pairs)
            return NamedSharding(typed.mesh, PartitionSpec(*spec))

        alone, arrays = of_arrays(run, (x, *args), {})
        untyped = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)
        y, *states = jax.eval_shape(alone, *untyped)
        of_state = [*of_x[:time], *of_x[time + 1 :]]
        out = split(y, of_x), *(jax.tree.map(lambda s: split(s, of_state), each) for each in states)
        typed_call: Any = auto_axes(alone, axes=axes, out_sharding=out)
        return typed_call(*arrays)

    return call


def varying(value: Array, *arrays: Array) -> Array:
    """The same value, in the type of what is computed from the arrays too.

    Inside of `shard_map` the type says over which devices a value varies, and the state of a loop
    must begin with the type that it ends with. A choice that is never taken gives it at no cost.
    """
    if AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return value
    for array in arrays:
        one = lax.stop_gradient(jnp.ravel(array)[:1].sum()).astype(value.dtype)
        value = jnp.where(True, value, one)
    return value
