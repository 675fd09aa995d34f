"""Recurrences whose time is spread over the devices of a mesh axis, inside of `jax.shard_map`.

Each device runs its part from a state of zeros to learn what the part does to a state: a decay and
something added. These are put together over devices in log2(devices) steps, after which each device
knows the state that its part begins with, and runs it. What is sent are states, whatever the length
of the sequence.

Source: Martin and Cundy, "Parallelizing linear recurrent neural nets over sequence length", ICLR
2018, section 2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from biojax.errors import ShapeError
from biojax.kernels.dispatch import as_gradient_of
from biojax.kernels.meshes import varying
from biojax.typing import Array

__all__ = ["linear_scan", "states_between", "with_tokens_before"]


def states_between(
    decay: Array, added: Array, h0: Array, axis_name: str, reverse: bool
) -> tuple[Array, Array]:
    """The state before the part of this device, and the one after all parts.

    Args:
      decay, added: the part takes a state h to decay * h + added.
      h0: the state before the whole, the same on all devices.
      axis_name: of the mesh.
      reverse: the last device comes first.
    """
    count, rank = lax.axis_size(axis_name), lax.axis_index(axis_name)
    rank = count - 1 - rank if reverse else rank
    distance = 1
    while distance < count:
        earlier_decay, earlier = _from_before((decay, added), distance, axis_name, reverse)
        exists = rank >= distance
        added = jnp.where(exists, decay * earlier + added, added)
        decay = jnp.where(exists, decay * earlier_decay, decay)
        distance *= 2
    after = decay * h0 + added
    before = _from_before(after, 1, axis_name, reverse)
    last = lax.psum(jnp.where(rank == count - 1, after, 0), axis_name)
    return jnp.where(rank == 0, h0, before), last


def with_tokens_before(
    where: str, x: Array, kernel_size: int, axis_name: str, reverse: bool
) -> Array:
    """This device's tokens (b, t, c) behind those that a causal convolution reads before them.

    These are the last kernel_size - 1 of the device before; zeros for none. With `reverse` they
    stand after its own: the first ones of the device after it. `where` is the layer that asks.

    Raises:
      ShapeError: a device has fewer tokens than are read of it.
    """
    count = kernel_size - 1
    if x.shape[1] < count:
        raise ShapeError(
            where,
            f"{x.shape[1]} tokens on each device and kernel_size={kernel_size}",
            f"at least {count} tokens on each device",
            "Spread the sequence over fewer devices, or convolve with a smaller kernel",
            f"kernel_size={x.shape[1] + 1}",
        )
    edge = x[:, :count] if reverse else x[:, x.shape[1] - count :]
    halo = _from_before(edge, 1, axis_name, reverse)
    return jnp.concatenate([x, halo] if reverse else [halo, x], axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def linear_scan(
    run: Callable, axis_name: str, reverse: bool, a: Array, b: Array, h0: Array
) -> tuple[Array, Array]:
    """This device's part of every state, and the last state of the whole, on all devices.

    Args:
      run: an implementation of the scan of one part.
      axis_name: of the mesh, over which time is spread.
      reverse: run from the last step to the first.
      a, b: (t, ...), of this device. h0: the same on all devices.
    """
    return _forward(run, axis_name, reverse, a, b, h0)[0]


def _forward(run, axis_name, reverse, a, b, h0):
    wide = h0.dtype  # runs return their last state in the dtype of their input
    _, added = run(a, b.astype(wide), varying(jnp.zeros_like(h0), a, b), reverse)
    decay = jnp.prod(a.astype(wide), axis=0)
    first, last = states_between(decay, added, h0, axis_name, reverse)
    h, _ = run(a, b, first, reverse)
    return (h, last.astype(b.dtype)), (a, h, first, h0)


def _backward(run, axis_name, reverse, saved, cotangents):
    """As without devices: the same scan the other way round, over decays one step later."""
    a, h, first, h0 = saved
    dh, dlast = cotangents
    later = _shifted(a, jnp.ones_like(a[0]), axis_name, not reverse)
    args = later, dh, dlast.astype(h0.dtype)
    found: tuple[Array, Array] = linear_scan(run, axis_name, not reverse, *args)
    db = found[0]
    olds = _following(h, first.astype(h.dtype), reverse)
    count, rank = lax.axis_size(axis_name), lax.axis_index(axis_name)
    step, begins = (-1, rank == count - 1) if reverse else (0, rank == 0)
    dh0 = lax.psum(jnp.where(begins, a[step].astype(h0.dtype) * db[step], 0), axis_name)
    return as_gradient_of(a, db * olds), db, dh0


linear_scan.defvjp(_forward, _backward)


def _from_before(tree: Any, distance: int, axis_name: str, reverse: bool) -> Any:
    """What the device so many places before this one holds; zeros where there is none."""
    count = lax.axis_size(axis_name)
    pairs = [(i, i + distance) for i in range(count - distance)]
    pairs = [(j, i) for i, j in pairs] if reverse else pairs
    return jax.tree.map(lambda v: lax.ppermute(v, axis_name, pairs), tree)


def _shifted(v: Array, first: Array, axis_name: str, reverse: bool) -> Array:
    """Every step's predecessor, over all devices; `first` for the first one of all."""
    edge = _from_before(v[0 if reverse else -1], 1, axis_name, reverse)
    count, rank = lax.axis_size(axis_name), lax.axis_index(axis_name)
    begins = rank == (count - 1 if reverse else 0)
    return _following(v, jnp.where(begins, first, edge), reverse)


def _following(v: Array, first: Array, reverse: bool) -> Array:
    """Every step's predecessor on this device, after `first`."""
    return jnp.concatenate([v[1:], first[None]] if reverse else [first[None], v[:-1]])
