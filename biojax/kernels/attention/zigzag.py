"""The order in which causal attention is the same work on every device of a mesh axis.

The sequence is cut in twice as many parts as there are devices, p, and device i holds part i from
the front and part i from the end, 2p - 1 - i: one that sees few keys, and one that sees many.

Source: Llama team, "The Llama 3 herd of models", 2024, section 3.3.2 (context parallelism).
"""

import jax.numpy as jnp
from jax import lax

from biojax.typing import Array

__all__ = ["from_zigzag", "to_zigzag"]


def to_zigzag(x: Array, axis_name: str) -> Array:
    """Parts i and 2p - 1 - i of (b, t, ...) on device i, which holds parts 2i and 2i + 1.

    t is even. Called inside of `jax.shard_map`.
    """
    held = jnp.split(x, 2, axis=1)
    came = [lax.ppermute(v, axis_name, way) for v, way in zip(held, _ways(axis_name), strict=True)]
    return _turned(came, axis_name)


def from_zigzag(x: Array, axis_name: str) -> Array:
    """The inverse of `to_zigzag`."""
    held = jnp.split(_turned(jnp.split(x, 2, axis=1), axis_name), 2, axis=1)
    back = [[(j, i) for i, j in way] for way in _ways(axis_name)]
    came = [lax.ppermute(v, axis_name, way) for v, way in zip(held, back, strict=True)]
    return jnp.concatenate(came, axis=1)


def _ways(axis_name: str) -> list[list[tuple[int, int]]]:
    """From which device to which go the first parts that are held, and the second ones."""
    count = lax.axis_size(axis_name)
    parts = [[2 * i + second for i in range(count)] for second in (0, 1)]
    return [[(part // 2, min(part, 2 * count - 1 - part)) for part in each] for each in parts]


def _turned(halves: list[Array], axis_name: str) -> Array:
    """Both in their order on even devices, and the other way round on odd ones.

    First parts that were held are the even ones of the sequence. On device i they become the first
    again if i is even, since then 2p - 1 - i is odd.
    """
    is_odd = lax.axis_index(axis_name) % 2 == 1
    a, b = halves
    return jnp.concatenate([jnp.where(is_odd, b, a), jnp.where(is_odd, a, b)], axis=1)
