"""Contenders for one and the same work, and whether they agree on what it is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from biojax.bench.case import in_mode
from biojax.errors import DataError

__all__ = ["Contender", "Contest", "check_agreement", "jax_contender", "jax_result"]


class Contender(NamedTuple):
    """One way to do it.

    Attributes:
      run: does it, and returns when it is done.
      result: does it, and returns every output and gradient, channels last.
      has_our_weights: whether the values must be ours, and not the shapes alone.
    """

    run: Callable[[], object]
    result: Callable[[], list[np.ndarray]]
    has_our_weights: bool = True


class Contest(NamedTuple):
    """What is to be done: contenders by name, "biojax" first, made when their turn comes."""

    name: str
    mode: str
    dtype: str
    prepare: Callable[[], dict[str, Contender]]


def jax_contender(mode: str, function: Callable, arguments: tuple) -> Contender:
    """A function of arrays, compiled; in the mode "both" with the gradients of all of them."""
    timed, inputs = in_mode(mode, function, arguments)
    compiled = jax.jit(timed).lower(*inputs).compile()
    return Contender(
        lambda: jax.block_until_ready(compiled(*inputs)), lambda: jax_result(compiled(*inputs))
    )


def jax_result(tree: Any) -> list[np.ndarray]:
    """The leaves as float32 arrays of numpy."""
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)]


def check_agreement(name: str, dtype: str, contenders: Mapping[str, Contender]) -> None:
    """Compare all outputs and gradients with those of the first contender.

    Raises:
      DataError: a shape differs, or values by more than 0.1 % (bfloat16: 5 %) of the largest one.
    """
    limit = 1e-3 if dtype == "float32" else 5e-2
    ours, *rivals = contenders
    expected = contenders[ours].result()
    for rival in rivals:
        results = contenders[rival].result()
        pairs = list(zip(results, expected, strict=True))
        same = all(got.shape == want.shape for got, want in pairs)
        if same and contenders[rival].has_our_weights:
            same = all(_difference(got, want) <= limit for got, want in pairs)
        if not same:
            found = [f"{got.shape} off by {_difference(got, want):.1e}" for got, want in pairs]
            raise DataError(
                f"{name}: {rival}",
                f"outputs and gradients {', '.join(found)}",
                f"the shapes and values of {ours}, within {limit:g}",
                "Nothing can be compared before they agree: correct one of the two",
            )


def _difference(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference over the largest value."""
    if got.shape != want.shape:
        return float("nan")
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))
