"""Convolutional cells, one image after the other.

What does not wait for the state is one convolution of all images, outside of the loops: before the
first that of the input, and after the one that runs back the gradient of the state's kernel. Inside
remains one convolution of the state, and on the way back its transpose. With `chunk` these are the
images of one chunk.

Each is jitted by itself, since `lax.scan` compiles every new step function anew, which outside of
a larger `jit` would be every call. Inside of one this changes nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from biojax.kernels.conv import conv
from biojax.kernels.conv.bilinear import adjoint
from biojax.kernels.dispatch import accumulator
from biojax.kernels.meshes import split_as_input, varying
from biojax.kernels.scan.chunks import whole_or_by_chunks
from biojax.kernels.scan.loop import loop
from biojax.kernels.scan.products import State, before, choose
from biojax.typing import Array, Precision

__all__ = ["conv_gru", "conv_lstm"]


class _Cell(NamedTuple):
    """What a cell does at each pixel. A state is (h, ...), and h is what the convolution sees.

    Args:
      forward: (the input's share of the gates, the state's share, state) to the next state, and
        what the way back needs to know of this step.
      backward: (gradient of the next state, what was kept, state) to the gradients of the input's
        share and of the state, without what reached that through the convolution.
      share: (gradient of the input's share, what was kept) to that of the state's share.
    """

    forward: Callable[[Array, Array, State], tuple[State, Array]]
    backward: Callable[[State, Array, State], tuple[Array, State]]
    share: Callable[[Array, Array], Array]


def _lstm_forward(x: Array, y: Array, state: State) -> tuple[State, Array]:
    i, f, g, o = jnp.split(x + y, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * state[1] + i * g
    return (o * jnp.tanh(c), c), jnp.concatenate([i, f, g, o], axis=-1)


def _lstm_backward(dstate: State, kept: Array, state: State) -> tuple[Array, State]:
    (dh, dc), (_, c) = dstate, state
    i, f, g, o = jnp.split(kept, 4, axis=-1)
    shown = jnp.tanh(f * c + i * g)
    dc = dc + dh * o * (1 - shown * shown)
    gradients = (
        dc * g * i * (1 - i),
        dc * c * f * (1 - f),
        dc * i * (1 - g * g),
        dh * shown * o * (1 - o),
    )
    return jnp.concatenate(gradients, axis=-1), (jnp.zeros_like(dh), dc * f)


def _gru_forward(x: Array, y: Array, state: State) -> tuple[State, Array]:
    (h,) = state
    (x_r, x_z, x_n), (y_r, y_z, y_n) = (jnp.split(share, 3, axis=-1) for share in (x, y))
    r, z = jax.nn.sigmoid(x_r + y_r), jax.nn.sigmoid(x_z + y_z)
    n = jnp.tanh(x_n + r * y_n)
    return ((1 - z) * n + z * h,), jnp.concatenate([r, z, n, y_n], axis=-1)


def _gru_backward(dstate: State, kept: Array, state: State) -> tuple[Array, State]:
    (dh,), (h,) = dstate, state
    r, z, n, y_n = jnp.split(kept, 4, axis=-1)
    dn = dh * (1 - z) * (1 - n * n)
    gradients = (dn * y_n * r * (1 - r), dh * (h - n) * z * (1 - z), dn)
    return jnp.concatenate(gradients, axis=-1), (dh * z,)


def _gru_share(dx: Array, kept: Array) -> Array:
    dr, dz, dn = jnp.split(dx, 3, axis=-1)
    return jnp.concatenate([dr, dz, dn * kept[..., : dn.shape[-1]]], axis=-1)


_LSTM = _Cell(_lstm_forward, _lstm_backward, lambda dx, kept: dx)
_GRU = _Cell(_gru_forward, _gru_backward, _gru_share)


@split_as_input
@partial(jax.jit, static_argnames=["reverse", "precision", "chunk"])
def conv_lstm(
    x, w_x, w_h, bias, h0, c0, reverse: bool, precision: Precision, chunk: int | None
) -> tuple[Array, State]:
    """The state is (h, c)."""
    return _run(_LSTM, x, w_x, w_h, bias, (h0, c0), reverse, precision, chunk)


@split_as_input
@partial(jax.jit, static_argnames=["reverse", "precision", "chunk"])
def conv_gru(
    x, w_x, w_h, bias, h0, reverse: bool, precision: Precision, chunk: int | None
) -> tuple[Array, Array]:
    """The state is (h,)."""
    h, (last,) = _run(_GRU, x, w_x, w_h, bias, (h0,), reverse, precision, chunk)
    return h, last


def _run(
    cell: _Cell,
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    state0: State,
    reverse: bool,
    precision: Precision,
    chunk: int | None,
) -> tuple[Array, State]:
    def run(weights, state, x, keep, reverse):
        given = jax.tree.leaves((weights, state, x, keep))
        x, w, *weights = (varying(array, *given) for array in (x, *weights))
        state = tuple(varying(part, *given) for part in state)
        if x.shape[-1]:
            shares = conv(_images(x), w, precision=precision)
        else:
            shares = varying(jnp.zeros((*_images(x).shape[:-1], bias.size), x.dtype), x)
        shares = jnp.moveaxis(shares.reshape(*x.shape[:-1], bias.size), 1, 0)
        if keep is not None:
            keep = varying(keep.T.reshape(*shares.shape[:2], *[1] * (x.ndim - 2)), *given)
        found: tuple[Array, State] = _scan(cell, reverse, precision, shares, keep, *weights, state)
        return jnp.moveaxis(found[0], 0, 1), found[1]

    h, last = whole_or_by_chunks(run, (w_x, w_h, bias), state0, x, None, chunk, reverse)
    return h, _as(x.dtype, last)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(
    cell: _Cell,
    reverse: bool,
    precision: Precision,
    x: Array,
    keep: Array | None,
    w: Array,
    bias: Array,
    state0: State,
) -> tuple[Array, State]:
    """Time first: x is the input's share of the gates; states are of the dtype to sum in.

    Where keep, (t, b, 1, ...), is False the state stays as it is.
    """
    return _forward(cell, reverse, precision, x, keep, w, bias, state0, keep_all=False)[0]


def _forward(
    cell, reverse, precision, x, keep, w, bias, state0, *, keep_all: bool
) -> tuple[tuple[Array, State], Any]:
    """The states shown and the last one; and for each step what was kept, and the other states."""
    dtype, wide = x.dtype, accumulator(x.dtype)

    def step(state, given):
        x_t, keep = given
        y = _state_conv(state[0].astype(dtype), w, _pads(w), precision)
        new, kept = cell.forward(x_t.astype(wide) + bias, y.astype(wide), state)
        state = jax.tree.map(partial(choose, keep), new, state)
        h, *others = _as(dtype, state)
        return state, (h, (kept.astype(dtype), others) if keep_all else None)

    last, (h, kept) = loop(step, state0, (x, keep), reverse=reverse)
    return (h, last), kept


def _scan_fwd(cell, reverse, precision, x, keep, w, bias, state0):
    results, saved = _forward(cell, reverse, precision, x, keep, w, bias, state0, keep_all=True)
    kept, others = saved
    return results, (keep, w, bias, state0, (results[0], *others), kept)


def _scan_bwd(cell, reverse, precision, saved, gradients):
    keep, w, bias, state0, states, kept = saved
    dh, dlast = gradients
    dtype, wide = w.dtype, accumulator(w.dtype)
    olds = tuple(map(partial(before, reverse=reverse), states, _as(dtype, state0)))
    mirrored, pads = adjoint(w, 1), [(high, low) for low, high in _pads(w)]

    def step(dstate, inputs):
        keep, *inputs = inputs
        dh, kept, state = jax.tree.map(lambda leaf: leaf.astype(wide), inputs)
        dstate = (dstate[0] + dh, *dstate[1:])
        dnew = jax.tree.map(partial(choose, keep), dstate, zeros)
        dx, direct = cell.backward(dnew, kept, state)
        dy = cell.share(dx, kept).astype(dtype)
        through = _state_conv(dy, mirrored, pads, precision)
        dold = (direct[0] + through.astype(wide), *direct[1:])
        return jax.tree.map(partial(choose, keep), dold, dstate), dx.astype(dtype)

    zeros = jax.tree.map(jnp.zeros_like, dlast)
    dstate0, dx = loop(step, dlast, (keep, dh, kept, olds), reverse=not reverse)
    seen, dy = (_images(jnp.moveaxis(v, 0, 1)) for v in (olds[0], cell.share(dx, kept)))
    (dw,) = jax.vjp(lambda w: conv(seen, w, precision=precision), w)[1](dy)
    dbias = dx.sum(range(dx.ndim - 1), dtype=wide).astype(bias.dtype)
    dkeep = None if keep is None else np.zeros(keep.shape, jax.dtypes.float0)
    return dx, dkeep, dw, dbias, dstate0


_scan.defvjp(_scan_fwd, _scan_bwd)


def _state_conv(h: Array, w: Array, pads: list[tuple[int, int]], precision: Precision) -> Array:
    """The convolution inside of a loop, which on CPU is as fast as outside of it.

    Two cores, float32, 5 to 8 steps in 2-D and 3-D: a loop takes the time of its steps written out,
    forward and with gradients, and compiles up to four times faster, with the implementation that
    `conv` chooses; XLA's own is some three times slower there in 3-D.
    """
    return conv(h, w, padding=pads, precision=precision)


def _pads(w: Array) -> list[tuple[int, int]]:
    """Zeros that keep the size of an image, the odd one at the end."""
    return [((k - 1) // 2, k // 2) for k in w.shape[:-2]]


def _images(x: Array) -> Array:
    """(b, t, ...) to (b * t, ...), batch first: then parts of the batch on devices stay there."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _as(dtype: jnp.dtype, state: State) -> State:
    return tuple(part.astype(dtype) for part in state)
