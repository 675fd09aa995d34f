"""The contract of the scans: a loop that can be checked by eye. Arguments as in the package."""

import jax
import jax.numpy as jnp

from biojax.typing import Array

__all__ = ["gru", "linear_scan", "lstm", "rnn"]


def _steps(t: int, reverse: bool) -> list[int]:
    return list(reversed(range(t))) if reverse else list(range(t))


def _in_order(states: list[Array], reverse: bool, axis: int) -> Array:
    return jnp.stack(states[::-1] if reverse else states, axis=axis)


def linear_scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    """Time first: a and b are (t, ...)."""
    h, states = h0, []
    for t in _steps(b.shape[0], reverse):
        h = a[t] * h + b[t]
        states.append(h)
    return _in_order(states, reverse, 0), h


def rnn(x, w_x, w_h, bias, h0, activation: str, reverse: bool) -> tuple[Array, Array]:
    """h_t = f(x_t W_x + h_{t-1} W_h + bias)"""
    f = {"tanh": jnp.tanh, "relu": jax.nn.relu}[activation]
    h, states = h0, []
    for t in _steps(x.shape[1], reverse):
        h = f(x[:, t] @ w_x + h @ w_h + bias)
        states.append(h)
    return _in_order(states, reverse, 1), h


def lstm(x, w_x, w_h, bias, h0, c0, reverse: bool) -> tuple[Array, tuple[Array, Array]]:
    """c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),  h_t = sigmoid(o) tanh(c_t)"""
    h, c, states = h0, c0, []
    for t in _steps(x.shape[1], reverse):
        i, f, g, o = jnp.split(x[:, t] @ w_x + h @ w_h + bias, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        states.append(h)
    return _in_order(states, reverse, 1), (h, c)


def gru(x, w_x, w_h, bias, bias_n, h0, reset: str, reverse: bool) -> tuple[Array, Array]:
    """h_t = (1 - z) n + z h_{t-1}"""
    x_r, x_z, x_n = jnp.split(w_x, 3, axis=1)
    h_r, h_z, h_n = jnp.split(w_h, 3, axis=1)
    b_r, b_z, b_n = jnp.split(bias, 3)
    h, states = h0, []
    for t in _steps(x.shape[1], reverse):
        r = jax.nn.sigmoid(x[:, t] @ x_r + h @ h_r + b_r)
        z = jax.nn.sigmoid(x[:, t] @ x_z + h @ h_z + b_z)
        state = r * (h @ h_n + bias_n) if reset == "after" else (r * h) @ h_n + bias_n
        n = jnp.tanh(x[:, t] @ x_n + b_n + state)
        h = (1 - z) * n + z * h
        states.append(h)
    return _in_order(states, reverse, 1), h
