"""The contract of `selective_scan`: a loop that can be checked by eye."""

import jax
import jax.numpy as jnp

from biojax.typing import Array

__all__ = ["selective_scan"]


def selective_scan(
    u, delta, z, B, C, A, D, bias, h0, softplus: bool, reverse: bool, chunk: int
) -> tuple[Array, Array]:
    """B and C are (b, t, g, n); the others are as in the package."""
    del chunk
    delta = delta if bias is None else delta + bias
    delta = jax.nn.softplus(delta) if softplus else delta
    B, C = (jnp.repeat(v, u.shape[-1] // v.shape[2], axis=2) for v in (B, C))  # of each channel
    h, outputs = h0, []
    for t in reversed(range(u.shape[1])) if reverse else range(u.shape[1]):
        h = jnp.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t]
        y = (C[:, t] * h).sum(-1)
        y = y if D is None else y + D * u[:, t]
        outputs.append(y if z is None else y * jax.nn.silu(z[:, t]))
    return jnp.stack(outputs[::-1] if reverse else outputs, axis=1), h
