"""Scans over meshes whose axes are `AxisType.Explicit`, which `jax.make_mesh` makes.

There the types of arrays say how they are sharded, and an operation that cannot tell refuses: loops
whose states begin as zeros, sums over a batch that is spread. So the compiler is left to shard a
scan from within, and is told how its results are to be split.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, auto_axes

from biojax.kernels.dispatch import of_arrays
from biojax.typing import Array

__all__ = ["split_as_input"]


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
