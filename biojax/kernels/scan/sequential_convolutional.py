"""Convolutional cells, one image after the other with `jax.lax.scan`.

What does not wait for the state is one convolution of all images, outside of the loops: before the
first that of the input, and after the one that runs back the gradient of the state's kernel. Inside
remains one convolution of the state, and on the way back its transpose.

Each is jitted by itself, since `lax.scan` compiles every new step function anew, which outside of
a larger `jit` would be every call. Inside of one this changes nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.conv import conv
from biojax.kernels.conv.bilinear import adjoint
from biojax.kernels.conv.blocks import varying
from biojax.kernels.dispatch import accumulator
from biojax.typing import Array, Precision

__all__ = ["conv_gru", "conv_lstm"]

_State = tuple[Array, ...]


class _Cell(NamedTuple):
    """What a cell does at each pixel. A state is (h, ...), and h is what the convolution sees.

    Args:
      forward: (the input's share of the gates, the state's share, state) to the next state, and
        what the way back needs to know of this step.
      backward: (gradient of the next state, what was kept, state) to the gradients of the input's
        share and of the state, without what reached that through the convolution.
      share: (gradient of the input's share, what was kept) to that of the state's share.
    """

    forward: Callable[[Array, Array, _State], tuple[_State, Array]]
    backward: Callable[[_State, Array, _State], tuple[Array, _State]]
    share: Callable[[Array, Array], Array]


def _lstm_forward(x: Array, y: Array, state: _State) -> tuple[_State, Array]:
    i, f, g, o = jnp.split(x + y, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * state[1] + i * g
    return (o * jnp.tanh(c), c), jnp.concatenate([i, f, g, o], axis=-1)


def _lstm_backward(dstate: _State, kept: Array, state: _State) -> tuple[Array, _State]:
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


def _gru_forward(x: Array, y: Array, state: _State) -> tuple[_State, Array]:
    (h,) = state
    (x_r, x_z, x_n), (y_r, y_z, y_n) = (jnp.split(share, 3, axis=-1) for share in (x, y))
    r, z = jax.nn.sigmoid(x_r + y_r), jax.nn.sigmoid(x_z + y_z)
    n = jnp.tanh(x_n + r * y_n)
    return ((1 - z) * n + z * h,), jnp.concatenate([r, z, n, y_n], axis=-1)


def _gru_backward(dstate: _State, kept: Array, state: _State) -> tuple[Array, _State]:
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


@partial(jax.jit, static_argnames=["reverse", "precision"], inline=True)
def conv_lstm(
    x, w_x, w_h, bias, h0, c0, reverse: bool, precision: Precision
) -> tuple[Array, tuple[Array, Array]]:
    """The state is (h, c)."""
    h, (h_last, c_last) = _run(_LSTM, x, w_x, w_h, bias, (h0, c0), reverse, precision)
    return h, (h_last, c_last)


@partial(jax.jit, static_argnames=["reverse", "precision"], inline=True)
def conv_gru(x, w_x, w_h, bias, h0, reverse: bool, precision: Precision) -> tuple[Array, Array]:
    """The state is (h,)."""
    h, (h_last,) = _run(_GRU, x, w_x, w_h, bias, (h0,), reverse, precision)
    return h, h_last


def _run(
    cell: _Cell,
    x: Array,
    w_x: Array,
    w_h: Array,
    bias: Array,
    state0: _State,
    reverse: bool,
    precision: Precision,
) -> tuple[Array, _State]:
    arrays = (x, w_x, w_h, bias, *state0)
    x, w_x, w_h, bias, *first = (varying(array, *arrays) for array in arrays)
    if x.shape[-1]:
        shares = conv(_images(x), w_x, precision=precision)
    else:
        shares = varying(jnp.zeros((*_images(x).shape[:-1], bias.size), x.dtype), x)
    shares = shares.reshape(*x.shape[:-1], bias.size)
    shares = jnp.moveaxis(shares, 1, 0)
    h, last = _scan(cell, reverse, precision, shares, w_h, bias, tuple(first))  # pyright: ignore[reportGeneralTypeIssues]
    return jnp.moveaxis(h, 0, 1), last


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(
    cell: _Cell,
    reverse: bool,
    precision: Precision,
    x: Array,
    w: Array,
    bias: Array,
    state0: _State,
) -> tuple[Array, _State]:
    """Time first: x is the input's share of the gates; states are of the dtype to sum in."""
    return _forward(cell, reverse, precision, x, w, bias, state0, keep=False)[0]


def _forward(
    cell, reverse, precision, x, w, bias, state0, *, keep: bool
) -> tuple[tuple[Array, _State], Any]:
    """The states shown and the last one; and for each step what was kept, and the other states."""
    dtype, wide = x.dtype, accumulator(x.dtype)

    def step(state, x_t):
        y = _state_conv(state[0].astype(dtype), w, _pads(w), precision)
        state, kept = cell.forward(x_t.astype(wide) + bias, y.astype(wide), state)
        h, *others = _as(dtype, state)
        return state, (h, (kept.astype(dtype), others) if keep else None)

    last, (h, kept) = lax.scan(step, state0, x, reverse=reverse)
    return (h, _as(dtype, last)), kept


def _scan_fwd(cell, reverse, precision, x, w, bias, state0):
    (h, last), (kept, others) = _forward(cell, reverse, precision, x, w, bias, state0, keep=True)
    return (h, last), (w, bias, state0, (h, *others), kept)


def _scan_bwd(cell, reverse, precision, saved, gradients):
    w, bias, state0, states, kept = saved
    dh, dlast = gradients
    dtype, wide = w.dtype, accumulator(w.dtype)
    before = tuple(_before(*each, reverse) for each in zip(states, state0, strict=True))
    mirrored, pads = adjoint(w, 1), [(high, low) for low, high in _pads(w)]

    def step(dstate, inputs):
        dh, kept, state = jax.tree.map(lambda leaf: leaf.astype(wide), inputs)
        dx, direct = cell.backward((dstate[0] + dh, *dstate[1:]), kept, state)
        dy = cell.share(dx, kept).astype(dtype)
        through = _state_conv(dy, mirrored, pads, precision)
        return (direct[0] + through.astype(wide), *direct[1:]), dx.astype(dtype)

    dstate0, dx = lax.scan(step, _as(wide, dlast), (dh, kept, before), reverse=not reverse)
    seen, dy = (_images(jnp.moveaxis(v, 0, 1)) for v in (before[0], cell.share(dx, kept)))
    (dw,) = jax.vjp(lambda w: conv(seen, w, precision=precision), w)[1](dy)
    dbias = dx.sum(range(dx.ndim - 1), dtype=wide).astype(bias.dtype)
    return dx, dw, dbias, dstate0


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


def _before(states: Array, state0: Array, reverse: bool) -> Array:
    """The state that each step began with, time first."""
    first = state0.astype(states.dtype)[None]
    parts = [states[1:], first] if reverse else [first, states[:-1]]
    return jnp.concatenate(parts)


def _as(dtype: jnp.dtype, state: _State) -> _State:
    return tuple(part.astype(dtype) for part in state)
