"""The selective recurrence over the steps of a chunk, one after the other, and its gradient.

A step is a few sums over the states of each channel. XLA on CPU makes vectors of them along the
channels, in a loop without calls. With one more axis, of length 1, it took 7 times as long (jaxlib
0.10.2), so sequences and groups go one by one. What sums over channels, the
gradients of B and C, are matrix products of all steps of the chunk at once.
"""

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.meshes import varying
from biojax.typing import Array

__all__ = ["scan"]


def scan(delta: Array, x: Array, A: Array, B: Array, C: Array, h0: Array) -> tuple[Array, Array]:
    """h_t = exp(delta_t A) h_{t-1} + x_t B_t,  y_t = C_t h_t: y and the last state.

    Args:
      delta, x: (t, b, g, c). A: (n, g, c). B, C: (t, b, n, g). h0: (b, n, g, c).
    """
    t, b, g, c = delta.shape

    def each(v: Array, *axes: int) -> Array:
        """Sequence and group first, as one axis."""
        v = jnp.moveaxis(v, axes, (0, 1))
        return v.reshape(b * g, *v.shape[2:])

    A = each(jnp.broadcast_to(A, (b, *A.shape)), 0, 2)
    sequences = each(delta, 1, 2), each(x, 1, 2), A, each(B, 1, 3), each(C, 1, 3), each(h0, 0, 2)
    y, last = lax.map(lambda given: _scan(*given), sequences)
    y = jnp.moveaxis(y.reshape(b, g, t, c), 2, 0)
    return y, jnp.moveaxis(last.reshape(b, g, -1, c), 1, 2)


@jax.custom_vjp
def _scan(delta: Array, x: Array, A: Array, B: Array, C: Array, h0: Array) -> tuple[Array, Array]:
    """Of one sequence: delta, x (t, c), A (n, c), B, C (t, n), h0 (n, c)."""

    def body(h, given):
        h, y = _step(h, A, *given)
        return h, y

    last, y = lax.scan(body, h0, (delta, x, B, C))
    return y, last


def _step(h: Array, A: Array, delta: Array, x: Array, B: Array, C: Array) -> tuple[Array, Array]:
    h = jnp.exp(delta * A) * h + x * B[:, None]
    return h, (h * C[:, None]).sum(0)


def _forward(delta, x, A, B, C, h0):
    def body(h, given):
        h, y = _step(h, A, *given)
        return h, (y, h)

    last, (y, states) = lax.scan(body, h0, (delta, x, B, C))
    return (y, last), (delta, x, A, B, C, h0, states)


def _backward(saved, cotangents):
    delta, x, A, B, C, h0, states = saved
    dy, dlast = cotangents
    olds = jnp.concatenate([h0[None], states[:-1]])

    def body(carry, given):
        dh, dA = carry
        delta, B, C, dy, old = given
        dh += dy * C[:, None]
        faded = dh * jnp.exp(delta * A)
        on_exponent = faded * old
        ddelta, dx = (on_exponent * A).sum(0), (dh * B[:, None]).sum(0)
        return (faded, dA + on_exponent * delta), (dh, ddelta, dx)

    carry, given = (dlast, varying(jnp.zeros_like(A), dy)), (delta, B, C, dy, olds)
    (dh0, dA), (dh, ddelta, dx) = lax.scan(body, carry, given, reverse=True)
    dB = jnp.einsum("tnc,tc->tn", dh, x, precision="highest")
    dC = jnp.einsum("tnc,tc->tn", states, dy, precision="highest")
    return ddelta, dx, dA, dB, dC, dh0


_scan.defvjp(_forward, _backward)
