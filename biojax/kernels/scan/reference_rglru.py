"""The contract of `rg_lru`: a loop that can be checked by eye."""

import jax
import jax.numpy as jnp

from biojax.typing import Array

__all__ = ["rg_lru"]


def rg_lru(x, r, i, a_param, c, h0, reverse) -> tuple[Array, Array]:
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(i_t) x_t

    Arguments as in the package.
    """
    a = jnp.exp(-c * jax.nn.sigmoid(r) * jax.nn.softplus(a_param))
    inputs = jnp.sqrt(1 - a**2) * jax.nn.sigmoid(i) * x
    h, states = h0, []
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        h = a[:, t] * h + inputs[:, t]
        states.append(h)
    return jnp.stack(states[::-1] if reverse else states, axis=1), h
