"""What the scans with states of several parts ask of their arguments."""

import jax.numpy as jnp

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.dispatch import accumulator, platform
from biojax.typing import Array, Dtype, Precision

__all__ = [
    "check_chunk",
    "check_dtypes",
    "check_one_dtype",
    "chunk_of_products",
    "initial_state",
    "of_states",
]


def check_dtypes(where: str, **arrays: Array) -> None:
    """Refuse what is no float, or wider than sums over the first array, the output's dtype."""
    first, *_ = arrays.values()
    wide = accumulator(first.dtype)
    for array in arrays.values():
        if not (
            jnp.issubdtype(array.dtype, jnp.floating)
            and jnp.promote_types(array.dtype, wide) == wide
        ):
            raise ShapeError(
                where,
                ", ".join(f"{name} of {each.dtype}" for name, each in arrays.items()),
                f"floating dtypes, none of them wider than {wide}",
                "Convert them with astype",
            )


def check_one_dtype(where: str, **arrays: Array) -> None:
    """Refuse arrays of several dtypes, and what is no float."""
    first, *_ = arrays.values()
    if {array.dtype for array in arrays.values()} != {first.dtype} or not jnp.issubdtype(
        first.dtype, jnp.floating
    ):
        raise ShapeError(
            where,
            ", ".join(f"{name} of {array.dtype}" for name, array in arrays.items()),
            "one floating dtype for all",
            "Convert them with astype",
        )


def initial_state(
    where: str, name: str, value: Array | None, shape: tuple[int, ...], dtype: Dtype
) -> Array:
    """The state before the first step, in at least float32; zeros if None."""
    wide = accumulator(dtype)
    if value is None:
        return jnp.zeros(shape, wide)
    if value.shape != shape or jnp.promote_types(value.dtype, wide) != wide:
        raise ShapeError(
            where,
            f"{name} of {value.dtype} and shape {value.shape}",
            f"shape {shape}, and no dtype wider than {wide}",
            "Begin with zeros, or convert it",
        )
    return value.astype(wide)


def check_chunk(where: str, chunk: int) -> None:
    """Refuse chunks without steps."""
    if chunk < 1:
        raise ConfigError(
            where, f"chunk={chunk}", "at least one step", "Leave chunk out", "chunk=1"
        )


def chunk_of_products(where: str, chunk: int | None, k: int, v: int) -> int:
    """The chunk asked for, or one for products of (chunk, chunk) and states of (k, v).

    On two CPU cores 16 was the fastest of 8 to 256, forward and with gradients, for 4,096 steps of
    8 heads of 32 x 64 and 2,048 of 4 heads of 64 x 64. Accelerators want larger products; theirs
    is untimed. Where heads are larger than that, it is so many times as long that the state that
    gradients keep of a chunk is no larger than what goes in and out of the chunk, two rows of k and
    two of v for each step.
    """
    if chunk is None:
        shortest = 16 if platform() == "cpu" else 64
        return shortest * max(1, -(-k * v // (2 * max(1, k + v) * shortest)))
    check_chunk(where, chunk)
    return chunk


def of_states(precision: Precision) -> Precision:
    """The precision asked for, or the highest: states are of at least float32."""
    return "highest" if precision is None else precision
