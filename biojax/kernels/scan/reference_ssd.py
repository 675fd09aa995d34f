"""The contract of `ssd`: a loop that can be checked by eye."""

import jax.numpy as jnp

from biojax.typing import Array

__all__ = ["ssd"]


def ssd(x, dt, A, B, C, D, h0, chunk, reverse, precision) -> tuple[Array, Array]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t + D x_t

    Arguments as in the package; `chunk` and `precision` are none of its business.
    """
    t, n, g = x.shape[1], x.shape[2], B.shape[2]
    B, C = (jnp.repeat(v, n // g, axis=2) for v in (B, C))
    h, outputs = h0, []
    for i in reversed(range(t)) if reverse else range(t):
        decay = jnp.exp(dt[:, i] * A)
        entering = (dt[:, i, :, None] * x[:, i])[..., :, None] * B[:, i, :, None, :]
        h = decay[..., None, None] * h + entering
        y = jnp.sum(h * C[:, i, :, None, :], axis=-1)
        outputs.append(y if D is None else y + D[:, None] * x[:, i])
    return jnp.stack(outputs[::-1] if reverse else outputs, axis=1), h
