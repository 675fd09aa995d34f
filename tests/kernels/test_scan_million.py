"""A whole volume as one sequence: more than a million steps, forward and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.kernels import scan_volume, selective_scan

SIDE, C, N = 101, 8, 16


@pytest.mark.slow
def test_a_million_steps_along_hilberts_curve():
    """What the compiled gradient holds, and what it gives where the state forgets at once."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, SIDE, SIDE, SIDE, C)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((C, C + 2 * N)) / 3, jnp.float32)

    def run(x, w, A):
        def scan(x):
            ports = x @ w
            B, C_t = ports[..., C : C + N], ports[..., C + N :]
            return selective_scan(x, ports[..., :C], A, B, C_t, delta_softplus=True)[0]

        return scan_volume(x, scan, ["hilbert"])

    gradient = jax.jit(jax.grad(lambda *given: jnp.square(run(*given)).sum(), argnums=(0, 1, 2)))
    A = jnp.full((C, N), -1.0)
    memory = gradient.lower(x, w, A).compile().memory_analysis()
    assert memory is not None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert held < 2**30
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(x, w, A)))
    # Without memory every voxel is by itself: y = softplus(delta) x <B, C>.
    ports = x @ w
    product = (ports[..., C : C + N] * ports[..., C + N :]).sum(-1, keepdims=True)
    expected = jax.nn.softplus(ports[..., :C]) * x * product
    y = jax.jit(run)(x, w, jnp.full((C, N), -1e9))
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
