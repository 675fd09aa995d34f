"""Options that are one number for all spatial axes, or one each."""

from collections.abc import Sequence

import numpy as np

from biojax.errors import ShapeError
from biojax.typing import IntOrTuple

__all__ = ["per_axis"]


def per_axis(where: str, name: str, value: IntOrTuple, rank: int) -> tuple[int, ...]:
    """One positive integer for each of `rank` axes; a single one is repeated.

    Raises:
      ShapeError: the wrong number of them, or one below 1.

    >>> per_axis("conv", "strides", 2, 3)
    (2, 2, 2)
    """
    values = tuple(value) if isinstance(value, Sequence | np.ndarray) else (value,) * rank
    if len(values) != rank or not all(isinstance(v, int | np.integer) and v >= 1 for v in values):
        raise ShapeError(
            where,
            f"{name}={value!r}",
            f"one integer, or {rank} of them, each at least 1",
            f"Give {name} one number per spatial axis",
        )
    return tuple(int(v) for v in values)
