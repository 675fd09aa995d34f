"""The contract of the convolutional cells: a loop that can be checked by eye."""

import jax
import jax.numpy as jnp

from biojax.kernels.conv import reference
from biojax.kernels.conv.geometry import Geometry, conv_pads
from biojax.typing import Array

__all__ = ["conv_gru", "conv_lstm"]


def conv_lstm(
    x, w_x, w_h, bias, h0, c0, reverse: bool, precision, chunk=None
) -> tuple[Array, tuple[Array, Array]]:
    """c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),  h_t = sigmoid(o) tanh(c_t)"""
    h, c, states = h0, c0, []
    for t in _steps(x, reverse):
        gates = _same(x[:, t], w_x, precision) + _same(h, w_h, precision) + bias
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        states.append(h)
    return jnp.stack(states[::-1] if reverse else states, axis=1), (h, c)


def conv_gru(x, w_x, w_h, bias, h0, reverse: bool, precision, chunk=None) -> tuple[Array, Array]:
    """h_t = (1 - z) n + z h_{t-1}"""
    h, states = h0, []
    for t in _steps(x, reverse):
        x_r, x_z, x_n = jnp.split(_same(x[:, t], w_x, precision) + bias, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(_same(h, w_h, precision), 3, axis=-1)
        r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        h = (1 - z) * jnp.tanh(x_n + r * h_n) + z * h
        states.append(h)
    return jnp.stack(states[::-1] if reverse else states, axis=1), h


def _steps(x: Array, reverse: bool) -> list[int]:
    steps = list(range(x.shape[1]))
    return steps[::-1] if reverse else steps


def _same(x: Array, w: Array, precision) -> Array:
    """The convolution that keeps the size of the image."""
    kernel = w.shape[:-2]
    one = (1,) * len(kernel)
    pads = conv_pads("conv", "SAME", x.shape[1:-1], kernel, one)
    return reference.conv(x, w, Geometry(one, pads, one, 1, precision))
