"""The contract of the scans: a loop that can be checked by eye. Arguments as in the package."""

from functools import partial

import jax
import jax.numpy as jnp

from biojax.typing import Array

__all__ = ["gru", "linear_scan", "lstm", "rnn"]


def _steps(t: int, reverse: bool) -> list[int]:
    return list(reversed(range(t))) if reverse else list(range(t))


def _in_order(states: list[Array], reverse: bool, axis: int) -> Array:
    return jnp.stack(states[::-1] if reverse else states, axis=axis)


def _where(lengths: Array | None, t: int, new: Array, old: Array | float) -> Array:
    """`new` for the sequences whose step t counts."""
    return new if lengths is None else jnp.where((t < lengths)[:, None], new, old)


def linear_scan(a: Array, b: Array, h0: Array, reverse: bool) -> tuple[Array, Array]:
    """Time first: a is (t or 1, ...), b (t, ...)."""
    a = jnp.broadcast_to(a, b.shape)
    h, states = h0, []
    for t in _steps(b.shape[0], reverse):
        h = a[t] * h + b[t]
        states.append(h)
    return _in_order(states, reverse, 0), h


def rnn(
    x, w_x, w_h, bias, h0, lengths, activation, reverse, chunk, precision
) -> tuple[Array, Array]:
    """h_t = f(x_t W_x + h_{t-1} W_h + bias)"""
    del chunk
    dot = partial(jnp.matmul, precision=precision)
    f = {"tanh": jnp.tanh, "relu": jax.nn.relu}[activation]
    h, states = h0, []
    for t in _steps(x.shape[1], reverse):
        h = _where(lengths, t, f(dot(x[:, t], w_x) + dot(h, w_h) + bias), h)
        states.append(_where(lengths, t, h, 0))
    return _in_order(states, reverse, 1), h


def lstm(
    x, w_x, w_h, bias, h0, c0, lengths, reverse, chunk, precision
) -> tuple[Array, tuple[Array, Array]]:
    """c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),  h_t = sigmoid(o) tanh(c_t)"""
    del chunk
    dot = partial(jnp.matmul, precision=precision)
    h, c, states = h0, c0, []
    for t in _steps(x.shape[1], reverse):
        i, f, g, o = jnp.split(dot(x[:, t], w_x) + dot(h, w_h) + bias, 4, axis=-1)
        new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = _where(lengths, t, jax.nn.sigmoid(o) * jnp.tanh(new), h)
        c = _where(lengths, t, new, c)
        states.append(_where(lengths, t, h, 0))
    return _in_order(states, reverse, 1), (h, c)


def gru(
    x, w_x, w_h, bias, bias_n, h0, lengths, reset, reverse, chunk, precision
) -> tuple[Array, Array]:
    """h_t = (1 - z) n + z h_{t-1}"""
    del chunk
    dot = partial(jnp.matmul, precision=precision)
    x_r, x_z, x_n = jnp.split(w_x, 3, axis=1)
    h_r, h_z, h_n = jnp.split(w_h, 3, axis=1)
    b_r, b_z, b_n = jnp.split(bias, 3)
    h, states = h0, []
    for t in _steps(x.shape[1], reverse):
        r = jax.nn.sigmoid(dot(x[:, t], x_r) + dot(h, h_r) + b_r)
        z = jax.nn.sigmoid(dot(x[:, t], x_z) + dot(h, h_z) + b_z)
        state = r * (dot(h, h_n) + bias_n) if reset == "after" else dot(r * h, h_n) + bias_n
        n = jnp.tanh(dot(x[:, t], x_n) + b_n + state)
        h = _where(lengths, t, (1 - z) * n + z * h, h)
        states.append(_where(lengths, t, h, 0))
    return _in_order(states, reverse, 1), h
