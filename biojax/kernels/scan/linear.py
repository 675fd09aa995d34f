"""The first-order linear recurrence: what is asked, checked and chosen."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from biojax.errors import ShapeError, UnsupportedError
from biojax.kernels.dispatch import as_gradient_of, platform, select
from biojax.kernels.meshes import split_as_input, varying
from biojax.kernels.scan import associative, chunked, sequential, sharded
from biojax.kernels.scan.checks import initial_state
from biojax.kernels.scan.products import before
from biojax.typing import Array

__all__ = ["linear_scan"]


def linear_scan(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    axis: int = 1,
    reverse: bool = False,
    axis_name: str | None = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """First-order linear recurrence along one axis.

    h_t = a_t * h_{t-1} + b_t,   h_{-1} = h0

    Args:
      a: decay, broadcastable to b.
      b: input, (..., t, ...) with t at `axis`; float or complex.
      h0: state before the first step, b's shape without `axis`; zeros if None.
      axis: the axis of time.
      reverse: run from the last step to the first.
      axis_name: inside of `jax.shard_map`, the axis of the mesh over which time is spread; a and b
        are this device's part, h0 and h_last are the same on all devices.
      implementation: "sequential", "associative", "chunked", "pallas", or None to choose.

    Returns:
      h: every state, shape and dtype of b. h_last: the last state in the order run.

    Raises:
      ShapeError: a does not broadcast to b, or h0 has the wrong shape or too wide a dtype.
      UnsupportedError: the named implementation cannot run here: "pallas" wants a TPU, and float32
        or bfloat16.

    The carry is held in at least float32. Time and memory are linear in t; "chunked" is for long
    sequences on an accelerator whose memory "associative", chosen there, would exceed. Gradients
    are in reverse mode. Over devices each part is scanned twice: for what it does to the state
    before it, and from that state.
    Source: Martin and Cundy, "Parallelizing linear recurrent neural nets over sequence length",
    ICLR 2018, section 2.

    >>> h, h_last = linear_scan(jnp.full((1, 3, 1), 0.5), jnp.ones((1, 3, 1)))
    >>> h[0, :, 0]
    Array([1.  , 1.5 , 1.75], dtype=float32)
    """
    where = "linear_scan"
    if not -b.ndim <= axis < b.ndim or b.shape[axis] == 0:
        raise ShapeError(
            where,
            f"b of shape {b.shape} and axis={axis}",
            "an axis of b with at least one step",
            "Name the axis of time with axis=",
        )
    axis %= b.ndim
    a = jnp.asarray(a)
    a_shape = (1,) * (b.ndim - a.ndim) + a.shape
    if len(a_shape) > b.ndim or any(
        n not in (1, wide) for n, wide in zip(a_shape, b.shape, strict=True)
    ):
        raise ShapeError(
            where,
            f"a of shape {a.shape} and b of shape {b.shape}",
            "a that broadcasts to b",
            "Put axes of length 1 where a does not vary",
        )
    if not jnp.issubdtype(b.dtype, jnp.inexact) or jnp.result_type(a, b) != b.dtype:
        raise ShapeError(
            where,
            f"a of {a.dtype} and b of {b.dtype}",
            "float or complex b, and a of no wider type",
            f"Convert b: b.astype({jnp.result_type(a, b, jnp.float32)})",
        )
    h0 = initial_state(where, "h0", h0, b.shape[:axis] + b.shape[axis + 1 :], b.dtype)
    implementations = _IMPLEMENTATIONS if axis_name is None else _over_devices(axis_name)
    run = select(where, implementations, implementation, _rule)

    def scan(b: Array, a: Array, h0: Array) -> tuple[Array, Array]:
        h, h_last = run(jnp.moveaxis(a, axis, 0), jnp.moveaxis(b, axis, 0), h0, reverse)
        return jnp.moveaxis(h, 0, axis), h_last

    return split_as_input(scan, axis)(b, a.reshape(a_shape), h0)


def _rule() -> tuple[str, str]:
    if platform() == "cpu":
        return "sequential", "on CPU one pass over memory is the least work"
    return "associative", f"log(t) parallel steps on {platform()}"


def _differentiable(implementation: Callable, back: Callable | None = None) -> Callable:
    """With the gradient that is the same scan the other way round.

    l_t = dh_t + a_{t+1} l_{t+1},   db_t = l_t,   da_t = l_t h_{t-1},   dh0 = a_0 l_0

    `back` is of a, dh, dh_last and the forward direction, and returns db and dh0.
    """
    pull = back or partial(_back, implementation)

    @partial(jax.custom_vjp, nondiff_argnums=(3,))
    def scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
        return implementation(a, b, h0, reverse)

    def forward(a, b, h0, reverse):
        h, h_last = implementation(a, b, h0, reverse)
        return (h, h_last), (a, h, h0)

    def backward(reverse, saved, cotangents):
        a, h, h0 = saved
        dh, dlast = cotangents
        db, dh0 = pull(a, dh, dlast, reverse)
        da = _sum_to(db * before(h, h0, reverse), a.shape)
        return as_gradient_of(a, da), db, as_gradient_of(h0, dh0)

    scan.defvjp(forward, backward)

    def aligned(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
        return scan(*(varying(part, a, b, h0) for part in (a, b, h0)), reverse)

    return aligned


def _back(
    implementation: Callable, a: Array, dh: Array, dlast: Array, reverse: bool
) -> tuple[Array, Array]:
    first, last = (-1, 0) if reverse else (0, -1)
    # The decay out of the last step meets a state of zeros.
    later = a if a.shape[0] == 1 else jnp.roll(a, 1 if reverse else -1, 0)
    db, _ = implementation(later, dh.at[last].add(dlast), jnp.zeros_like(dlast), not reverse)
    return db, a[first] * db[first]


def _sum_to(v: Array, shape: tuple[int, ...]) -> Array:
    axes = [i for i, (n, wide) in enumerate(zip(shape, v.shape, strict=True)) if n < wide]
    return v.sum(axes, keepdims=True)


def _pallas(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    if platform() != "tpu":
        raise UnsupportedError(
            "linear_scan",
            f"implementation='pallas' on {platform()}",
            "a TPU",
            "Use another implementation, or None to choose",
        )
    from biojax.kernels.scan import pallas  # slow to import

    return pallas.linear_scan(a, b, h0, reverse)


_PLAIN = {
    "sequential": sequential.linear_scan,
    "associative": associative.linear_scan,
    "chunked": chunked.linear_scan,
    "pallas": _pallas,
}
_BACK = {"sequential": sequential.back}
_IMPLEMENTATIONS = {name: _differentiable(run, _BACK.get(name)) for name, run in _PLAIN.items()}


def _over_devices(axis_name: str) -> dict[str, Callable]:
    """The implementations with time over an axis of the mesh."""

    def of(run: Callable) -> Callable:
        def scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
            a = jnp.broadcast_to(a, b.shape)
            a, b = varying(a, a, b), varying(b, a, b)
            return sharded.linear_scan(run, axis_name, reverse, a, b, h0)

        return scan

    return {name: of(run) for name, run in _PLAIN.items()}
