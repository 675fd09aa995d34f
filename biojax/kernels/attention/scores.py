"""What lies between the products of queries with keys and their softmax, for every implementation.

A block of scores is described by the numbers of its rows (queries) and of its columns (keys), so
that the same rules hold for all of them at once and for a part.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from biojax.kernels.dispatch import accumulator
from biojax.typing import Array, Precision

__all__ = ["CHUNK", "Options", "are_small", "dropout_weights", "exp", "exponentials", "visible"]

# Keys that share one key of the random numbers.
CHUNK = 128


class Options(NamedTuple):
    """What is the same for all scores.

    Args:
      scale: of the products.
      is_causal: whether query i sees keys 0 to i only.
      soft_cap: c of c * tanh(x / c), applied to the scaled products; None for none.
      dropout_rate: share of the weights that are dropped.
      precision: of both products.
    """

    scale: float
    is_causal: bool = False
    soft_cap: float | None = None
    dropout_rate: float = 0.0
    precision: Precision = None


def visible(
    rows: Array,
    columns: Array,
    is_causal: bool,
    query_length: Array | None,
    key_length: Array | int | None,
) -> Array | None:
    """Which of these queries may look at which of these keys, as far as their numbers say.

    Args:
      rows, columns: numbers of the queries and of the keys, of shapes that broadcast.
      is_causal: whether a query sees no key after it.
      query_length, key_length: queries and keys from there on do not exist; None for no end.

    Returns:
      True where it may, broadcastable to the block; None if all may.
    """
    rules = []
    if is_causal:
        rules.append(columns <= rows)
    if query_length is not None:
        rules.append(rows < query_length)
    if key_length is not None:
        rules.append(columns < key_length)
    seen = None
    for rule in rules:
        seen = rule if seen is None else seen & rule
    return seen


def dropout_weights(key_data: Array, rows: Array, first: Array | int, count: int, rate: float):
    """What weights are multiplied by: 0 for those dropped, 1 / (1 - rate) for the others.

    The random number of a weight depends on its row and column alone, whatever the block.

    Args:
      key_data: two random numbers of 32 bits.
      rows: (r,) numbers of rows, different for every query of every head and image.
      first: the first column, a multiple of `CHUNK`.
      count: columns.
      rate: share that is dropped, to within 2^-17.

    Returns:
      (r, count), float32.
    """
    key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
    chunks = first // CHUNK + jnp.arange(-(-count // CHUNK))

    def of_row(row):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, row), chunks)
        bits = jax.vmap(lambda key: jax.random.bits(key, (CHUNK,), jnp.uint16))(keys)
        return bits.reshape(-1)[:count]

    dropped = jax.vmap(of_row)(rows) < min(round(rate * 2**16), 2**16 - 1)
    return jnp.where(dropped, 0.0, 1 / (1 - rate)).astype(jnp.float32)


def are_small(query: Array, key: Array, bias: Array | None, scale: float) -> Array:
    """Whether exponentials of all logits neither overflow nor vanish, and so their sums.

    Then nothing need be taken off them. |<q, k>| <= |q| |k|; a bias of minus infinity does not
    count, whose exponential is to vanish. One answer for all of a `vmap`, which would else compute
    both ways.
    """
    query, key, bias = lax.stop_gradient((query, key, bias))
    bound = abs(scale) * _largest_norm(query) * _largest_norm(key)
    if bias is not None:
        bound += _largest_norm(jnp.where(bias == -jnp.inf, 0, bias)[..., None])
    # Of the largest numbers' logarithm, 88, the rest is room for values, from 1e-25 to 1e25, and
    # their sums; in float16 there is none.
    return bound < (30.0 if jnp.finfo(query.dtype).maxexp > 100 else 0.0)


@custom_vmap
def _largest_norm(x: Array) -> Array:
    """The largest |x| along the last axis."""
    return jnp.sqrt(jnp.square(x.astype(accumulator(x.dtype))).sum(axis=-1).max())


@_largest_norm.def_vmap
def _largest_norm_of_all(_, __, x: Array) -> tuple[Array, bool]:
    return _largest_norm(x), False


def exponentials(z: Array) -> tuple[Array, Array, Array]:
    """exp(z - peak), its sum along the last axis, and the peak; a sum of 1 where all z are -inf.

    The quotient does not depend on the peak, so that no gradient flows through it; that of a
    maximum is 0 / 0 where the compiler computes z anew, and none is equal to the peak any more.
    """
    peak = jnp.max(lax.stop_gradient(z), axis=-1, keepdims=True)
    peak = jnp.maximum(peak, jnp.finfo(z.dtype).min)
    weights = jnp.exp(z - peak)
    total = weights.sum(axis=-1, keepdims=True)
    return weights, jnp.where(total > 0, total, 1), peak


@jax.custom_jvp
def exp(x: Array) -> Array:
    """The exponential of what is below 88, minus infinity and NaN among it.

    2^n 2^f, n + f = x / log(2): n goes into the exponent's bits, 2^f is a polynomial, the first
    terms of its series. In float32 to 2 units in the last place, and half a unit of x; what is
    below 1e-38 may be 0. Half of a block's time beside its products is exponentials, and these take
    three quarters of the time of XLA's on a CPU.
    """
    if x.dtype != jnp.float32:
        return jnp.exp(x)
    scaled = jnp.maximum(x * _LOG2_E, -127.0)
    n = jnp.round(scaled)
    f = scaled - n
    y = jnp.full_like(f, _SERIES[-1])
    for term in _SERIES[-2::-1]:
        y = y * f + term
    bits = lax.bitcast_convert_type(y, jnp.int32) + (n.astype(jnp.int32) << 23)
    return jnp.where(jnp.isnan(x), x, lax.bitcast_convert_type(bits, jnp.float32))


@exp.defjvp
def _exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = exp(*primals)
    return y, y * tangents[0]


_LOG2_E = math.log2(math.e)
_SERIES = [math.log(2) ** i / math.factorial(i) for i in range(8)]
