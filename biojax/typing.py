"""The legend of shapes, and names for arrays.

| letter | meaning |
| --- | --- |
| `b` | batch |
| `d` `h` `w` | depth (z), height (y), width (x), always in this order |
| `*spatial` | one to three of `d h w` |
| `c` | channels, always last in models |
| `t` | steps of a sequence, or tokens |
| `n` `k` | heads, head size |

Images in models are `(b, *spatial, c)`; sequences are `(b, t, c)`; attention is `(b, t, n, k)`.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

__all__ = [
    "Array",
    "ArrayLike",
    "Dtype",
    "IntOrTuple",
    "Key",
    "Padding",
    "Precision",
]

ArrayLike = jax.Array | np.ndarray
Dtype = jax.typing.DTypeLike
Key = PRNGKeyArray
IntOrTuple = int | Sequence[int]
Padding = str | int | Sequence[tuple[int, int]]
Precision = jax.lax.PrecisionLike
