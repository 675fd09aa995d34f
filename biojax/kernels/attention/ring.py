"""Attention of a sequence that is spread over the devices of a mesh axis.

Keys and values go round: each device keeps its queries, sees the keys of one device at a time, and
passes them on to the next. What it saw is put together by the log-sum-exp of the scores. On the
way back keys and values go round once more, and their gradients with them.

Causal attention would leave the first device idle, whose queries see few keys. So tokens are dealt
out anew while the keys go round (see `zigzag`): every step is then the same half of its scores on
every device, in whole blocks. To deal them one by one ("striped attention", Brandon et al. 2023) is
as even, but masks half of every block. They are sent there and back in here, as much as two steps
send, so that callers have them in their order.

Source: Liu, Zaharia and Abbeel, "Ring attention with blockwise transformers for near-infinite
context", ICLR 2024, section 3.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.attention import blocked
from biojax.kernels.attention.checks import check_options, check_tokens, scaled, seen_keys
from biojax.kernels.attention.scores import Options
from biojax.kernels.attention.zigzag import from_zigzag, to_zigzag
from biojax.kernels.meshes import varying
from biojax.typing import Array, ArrayLike, Precision

__all__ = ["ring_attention"]


class _Keys(NamedTuple):
    """What goes round: k (b, s, m, k), v (b, s, m, v), and which may be seen, (b, s) or None."""

    key: Array
    value: Array
    seen: Array | None


def ring_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    axis_name: str,
    mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | Array | None = None,
    soft_cap: float | None = None,
    precision: Precision = None,
) -> Array:
    """`attention` inside of `jax.shard_map`, tokens spread over the devices of one mesh axis.

    The lengths here are those of one device's part, p of which make the whole.

    Args:
      query: (b, t, n, k), the part of this device.
      key: (b, s, m, k), m dividing n: each head of key and value serves n / m heads of query.
      value: (b, s, m, v).
      axis_name: of the mesh.
      mask: boolean, broadcastable to (b, 1, 1, s); True for keys of this part that may be seen. It
        hides keys alone, as no device has the scores of all, and so is named, not the fifth.
      key_lengths: how many keys there are in the whole, (b,), the same on all devices.
      is_causal: query i of the whole sees keys 0 to i only; t and s are equal, and even.
      scale: 1 / sqrt(k) if None; an array of no axes is multiplied into query.
      soft_cap: c of c * tanh(x / c), applied to the scaled products.
      precision: passed to every product, as in `jax.lax`.

    Returns:
      (b, t, n, v), of query's dtype: this device's part of the result. A query that may look
      nowhere gives zeros.

    Raises:
      ShapeError: the arrays do not fit together.
      ConfigError: there is no such axis here, or soft_cap is not positive.

    Partial results and gradients are summed in at least float32. A device holds its own part, two
    parts of keys and values that go round, and two of their gradients; of the scores no more than
    `attention` by blocks does. So memory is proportional to 1 / p. Gradients are in
    reverse mode, and can be differentiated forward.

    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((2,), ("t",), (jax.sharding.AxisType.Auto,))
    >>> ring = partial(ring_attention, axis_name="t")
    >>> ring = jax.shard_map(ring, mesh=mesh, in_specs=P(None, "t"), out_specs=P(None, "t"))
    >>> zeros, values = jnp.zeros((1, 4, 1, 1)), jnp.arange(4.0).reshape(1, 4, 1, 1)
    >>> jax.jit(ring)(zeros, zeros, values).ravel()
    Array([1.5, 1.5, 1.5, 1.5], dtype=float32)
    """
    where = "ring_attention"
    check_tokens(where, query, key, value)
    rank = _rank(where, axis_name)
    seen = seen_keys(where, mask, key_lengths, key.shape[:2], rank * key.shape[1])
    if is_causal and (query.shape[1] != key.shape[1] or query.shape[1] % 2):
        raise ShapeError(
            where,
            f"{query.shape[1]} queries and {key.shape[1]} keys on each device, is_causal=True",
            "as many queries as keys, and an even number of them",
            "Fill the sequence up, and name the number of keys with key_lengths",
        )
    query, scale = scaled(where, query, scale)
    options = Options(scale, is_causal, soft_cap, precision=precision)
    check_options(where, options)
    if 0 in query.shape:
        return jnp.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    arrays = query, _Keys(key, value, seen)
    query, keys = jax.tree.map(lambda x: varying(x, rank, *jax.tree.leaves(arrays)), arrays)
    if not is_causal:
        return _attend(axis_name, options, query, keys)
    query, keys = jax.tree.map(partial(to_zigzag, axis_name=axis_name), (query, keys))
    return from_zigzag(_attend(axis_name, options, query, keys), axis_name)


def _rank(where: str, axis_name: str) -> Array:
    try:
        return lax.axis_index(axis_name)
    except NameError as error:
        raise ConfigError(
            where,
            f"axis_name={axis_name!r}",
            "an axis of the mesh of a surrounding jax.shard_map",
            "Call it inside of jax.shard_map, or use attention on one device",
        ) from error


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(axis_name: str, options: Options, query: Array, keys: _Keys) -> Array:
    return _forward(axis_name, options, query, keys)[0]


def _forward(axis_name, options, query, keys):
    def part(keys: _Keys, options: Options, query: Array = query) -> tuple[Array, Array]:
        return blocked.forward(options, _inputs(query, keys))

    def of_others(keys: _Keys, is_earlier: Array) -> tuple[Array, Array]:
        rest = options._replace(is_causal=False)
        if not options.is_causal:
            return part(keys, rest)

        def later() -> tuple[Array, Array]:
            y, lse = part(keys, rest, _second(query))
            return _behind(0.0, y), _behind(-jnp.inf, lse)

        return lax.cond(is_earlier, lambda: part(_firsts(keys), rest), later)

    def step(i: Array | int, result: tuple, keys: _Keys) -> tuple[Array, Array]:
        return _merged(result, of_others(keys, _is_earlier(i, axis_name)))

    y, lse = _around(axis_name, step, part(keys, options), keys)
    y = y.astype(query.dtype)
    return y, (query, keys, y, lse)


def _backward(axis_name, options, saved, dy):
    query, keys, y, lse = saved
    rows = query, y, lse, dy

    def part(keys: _Keys, options: Options, rows: tuple = rows) -> tuple[Array, Array, Array]:
        query, y, lse, dy = rows
        inputs = _inputs(query, keys)
        found = blocked.backward(options, inputs, y, lse, dy, jnp.zeros_like(lse))
        return found.query, found.key, found.value

    def of_others(keys: _Keys, is_earlier: Array) -> tuple[Array, Array, Array]:
        rest = options._replace(is_causal=False)
        if not options.is_causal:
            return part(keys, rest)

        def earlier() -> tuple[Array, Array, Array]:
            dq, *of_keys = part(_firsts(keys), rest)
            dk, dv = (_before(0.0, x) for x in of_keys)
            return dq, dk, dv

        def later() -> tuple[Array, Array, Array]:
            dq, dk, dv = part(keys, rest, jax.tree.map(_second, rows))
            return _behind(0.0, dq), dk, dv

        return lax.cond(is_earlier, earlier, later)

    def step(i: Array | int, gradients: tuple, keys: _Keys) -> tuple[Array, Array, Array]:
        dq, *of_keys = gradients
        others = of_others(keys, _is_earlier(i, axis_name))
        return jax.tree.map(jnp.add, (dq, *_passed_on(of_keys, axis_name)), others)

    dq, *of_keys = _around(axis_name, step, part(keys, options), keys)
    dk, dv = (x.astype(query.dtype) for x in _passed_on(of_keys, axis_name))
    return dq.astype(query.dtype), _Keys(dk, dv, None)


_attend.defvjp(_forward, _backward)


def _around(axis_name: str, step: Callable, result: tuple, keys: _Keys) -> tuple:
    """What becomes of the result, step(i, result, keys), with the keys of each other device.

    They are sent on while they are at work, but for the last ones, whose step stands alone.
    """
    last = lax.axis_size(axis_name) - 1
    if last == 0:
        return result

    def on(i: Array, state: tuple) -> tuple:
        result, keys = state
        return step(i, result, keys), _passed_on(keys, axis_name)

    result, keys = lax.fori_loop(1, last, on, (result, _passed_on(keys, axis_name)))
    return step(last, result, keys)


def _inputs(query: Array, keys: _Keys) -> blocked.Inputs:
    mask = None if keys.seen is None else keys.seen[:, None, None]
    return blocked.Inputs(query, keys.key, keys.value, mask=mask)


def _merged(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Attention to two sets of keys from that to each, and their log-sum-exp."""
    lse = jnp.logaddexp(a[1], b[1])
    shift = jnp.where(lse == -jnp.inf, 0.0, lse)
    y_a, y_b = (jnp.exp(each - shift)[..., None] * y for y, each in (a, b))
    return y_a + y_b, lse


def _is_earlier(step: Array | int, axis_name: str) -> Array:
    """Whether the keys that came in so many steps are of a device before this one."""
    return step <= lax.axis_index(axis_name)


def _passed_on(tree, axis_name: str):
    """What the device before this one holds, that of the last for the first."""
    count = lax.axis_size(axis_name)
    pairs = [(i, (i + 1) % count) for i in range(count)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis_name, pairs), tree)


def _firsts(keys: _Keys) -> _Keys:
    return jax.tree.map(lambda x: x[:, : x.shape[1] // 2], keys)


def _second(x: Array) -> Array:
    return x[:, x.shape[1] // 2 :]


def _behind(value: float, x: Array) -> Array:
    """X as the second half of (b, t, ...), the first filled with a value."""
    return jnp.concatenate([jnp.full_like(x, value), x], axis=1)


def _before(value: float, x: Array) -> Array:
    return jnp.concatenate([x, jnp.full_like(x, value)], axis=1)
