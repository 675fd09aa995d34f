"""What can be measured: a name, and the work behind it, which is made when its turn comes."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from biojax.bench.timing import Timing, time_compiled
from biojax.kernels import Choice
from biojax.typing import Array

__all__ = ["Case", "Work", "in_mode", "normal", "shapes_of"]


class Work(NamedTuple):
    """A function, its arguments, and how much they are."""

    function: Callable
    arguments: tuple
    choices: list[Choice]
    shapes: str
    flop_count: int | None
    byte_count: int | None
    voxel_count: int
    time: Callable[..., Timing] = time_compiled


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement to be made.

    Attributes:
      suite: where it is listed.
      target: the kernel or the model.
      spec: the name of the shapes.
      mode: what is run.
      dtype: of the arrays.
      requested: the implementation to use; None for the library's choice.
      prepare: makes the arrays and says what would be chosen; raises where the implementation
        does not exist or cannot do it.
    """

    suite: str
    target: str
    spec: str
    mode: str
    dtype: str
    requested: str | None
    prepare: Callable[[], Work]

    @property
    def name(self) -> str:
        """Target, spec and mode, which filters are held against."""
        return f"{self.target}/{self.spec}/{self.mode}"


def in_mode(
    mode: str, function: Callable, arguments: tuple, held: tuple = ()
) -> tuple[Callable, tuple]:
    """The function and arguments that are timed.

    Args:
      mode: "forward" for `function` itself; "vjp" for its pullback alone, whose residuals are
        computed beforehand and passed in, as between the two halves of a training step; "both"
        for outputs and gradients in one program. Outputs are returned there, since the gradient
        of a linear function does not need them and they would not be computed.
      function: called with `arguments` and then `held`.
      arguments: what is differentiated.
      held: what is not. Nothing that is read may hide in a closure, where the compiler would take
        it for a constant.
    """
    if mode == "forward":
        return function, (*arguments, *held)

    def vjp(arguments: tuple, held: tuple) -> tuple[Any, Callable]:
        return jax.vjp(lambda *arrays: function(*arrays, *held), *arguments)

    def both(arguments: tuple, held: tuple, cotangents: Any) -> tuple[Any, tuple]:
        outputs, pullback = vjp(arguments, held)
        return outputs, pullback(cotangents)

    cotangents = normal(1, jax.eval_shape(function, *arguments, *held))
    if mode == "both":
        return both, (arguments, held, cotangents)
    pullback = jax.jit(lambda *every: vjp(*every)[1])(arguments, held)
    return lambda pullback, cotangents: pullback(cotangents), (pullback, cotangents)


def normal(seed: int, shapes: Any) -> Any:
    """A tree of seeded normal numbers, in the shapes and dtypes of another one."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> Array:
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    return jax.tree.map(draw, shapes)


def shapes_of(tree: Any) -> str:
    """The shapes of arrays, for reading.

    >>> shapes_of([jnp.ones((1, 8, 8, 3)), jnp.ones(3)])
    '1x8x8x3 3'
    """
    return " ".join("x".join(map(str, leaf.shape)) for leaf in jax.tree.leaves(tree))
