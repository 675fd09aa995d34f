"""The contract of `mlstm` and `slstm`: loops that can be checked by eye.

Arguments as in the package, states apart in their parts. The stabiliser m is a constant to
gradients; the outputs do not depend on it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from biojax.typing import Array

__all__ = ["mlstm", "slstm"]


def mlstm(query, key, value, i, f, C, n, m, scale, chunk, reverse, precision) -> tuple[Array, ...]:
    """h, C, n, m of h_t = C_t^T q_t / max(|n_t . q_t|, exp(-m_t))"""
    del chunk, precision
    key, log_f, outputs = scale * key, jax.nn.log_sigmoid(f), []
    for t in reversed(range(query.shape[1])) if reverse else range(query.shape[1]):
        q, k, v = query[:, t], key[:, t], value[:, t]
        new = jnp.maximum(jnp.maximum(log_f[:, t] + m, i[:, t]), -1e30)
        before, m = stop_gradient(m), stop_gradient(new)
        forget, enter = jnp.exp(log_f[:, t] + before - m), jnp.exp(i[:, t] - m)
        C = forget[..., None, None] * C + enter[..., None, None] * k[..., None] * v[..., None, :]
        n = forget[..., None] * n + enter[..., None] * k
        size = jnp.maximum(jnp.abs(jnp.sum(n * q, axis=-1)), jnp.exp(-m))
        outputs.append(jnp.sum(C * q[..., None], axis=-2) / size[..., None])
    return jnp.stack(outputs[::-1] if reverse else outputs, axis=1), C, n, m


def slstm(gates, w_h, h, c, n, m, reverse, chunk, precision) -> tuple[Array, tuple[Array, ...]]:
    """h, and (h, c, n, m) of h_t = sigmoid(o) c_t / n_t"""
    del chunk
    outputs, product = [], partial(jnp.einsum, "bnk,nkgj->bngj", precision=precision)
    for t in reversed(range(gates.shape[1])) if reverse else range(gates.shape[1]):
        i, f, z, o = jnp.moveaxis(gates[:, t] + product(h, w_h), 2, 0)
        log_f = jax.nn.log_sigmoid(f)
        before, m = stop_gradient(m), stop_gradient(jnp.where(n > 0, jnp.maximum(log_f + m, i), i))
        forget, enter = jnp.where(n > 0, jnp.exp(log_f + before - m), 0), jnp.exp(i - m)
        c = forget * c + enter * jnp.tanh(z)
        n = forget * n + enter
        h = jax.nn.sigmoid(o) * c / n
        outputs.append(h)
    return jnp.stack(outputs[::-1] if reverse else outputs, axis=1), (h, c, n, m)
