"""The three maps of a convolution, and which of them its gradients compute."""

import jax
import jax.numpy as jnp
import pytest

from biojax.kernels import conv, conv_transpose
from biojax.kernels.conv import blocks


def multiplications(f, *arrays) -> float:
    cost = jax.jit(f).lower(*arrays).compile().cost_analysis() or {}
    return cost["flops"]


@pytest.mark.parametrize(
    ("kernel", "implementation"),
    [(conv, "planes"), (conv_transpose, "phases"), (conv_transpose, "xla")],
)
def test_only_the_gradients_asked_for_are_computed(monkeypatch, kernel, implementation):
    """Several blocks, so that one gradient waits for the other where both are wanted."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**16)

    def loss(x, w):
        return jnp.sum(kernel(x, w, strides=2, padding=1, implementation=implementation) ** 2)

    x, w = jnp.ones((1, 16, 8, 8, 16)), jnp.ones((3, 3, 3, 16, 16))
    both, of_x, of_w = (multiplications(jax.grad(loss, of), x, w) for of in ((0, 1), 0, 1))
    assert of_x < 0.9 * both
    assert of_w < 0.9 * both
