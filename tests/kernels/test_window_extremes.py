"""Windows in groups where numbers are hidden, large, or of both signs: as with all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.kernels import window_attention
from biojax.kernels.attention import window_blocked

rng = np.random.default_rng(0)
QUERY, KEY, VALUE = (jnp.asarray(rng.standard_normal((1, 6, 6, 2, 4)), "float32") for _ in range(3))
BIAS = jnp.asarray(rng.standard_normal((2, 9, 9)), "float32")
HIDDEN = BIAS.at[:, 0].set(-jnp.inf).at[:, 1, :5].set(-jnp.inf)
CASES = {
    "hidden": (VALUE, HIDDEN, None),
    "large": (VALUE, 200 * BIAS, None),
    "large_and_hidden": (VALUE, 200 * HIDDEN, None),
    "no_scale": (VALUE, BIAS, 0.0),
    "negative_scale": (VALUE, BIAS, -1.0),
    "large_scale": (VALUE, BIAS, 100.0),
    "large_values": (1e12 * VALUE, 8 * BIAS, None),
    "small_values": (1e-14 * VALUE, 8 * BIAS, None),
}


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_as_with_all_windows_at_once(case, shift, quickly):
    value, bias, scale = CASES[case]

    def found(implementation: str):
        def attend(*arrays):
            return window_attention(
                *arrays, window_size=3, shift=shift, scale=scale, implementation=implementation
            )

        def with_gradients(*arrays):
            y, vjp = jax.vjp(attend, *arrays)
            return y, *vjp(value)

        arrays = QUERY, KEY, value, bias
        return jax.jit(with_gradients).lower(*arrays).compile(quickly)(*arrays)

    size = float(jnp.abs(value).max())
    # Of y and dv; of dq, dk and dbias, into which values go twice.
    sizes = size, size**2, size**2, size, size**2
    expected, got = found("xla"), found("blocked")
    for name, a, b, of in zip(("y", "dq", "dk", "dv", "dbias"), expected, got, sizes, strict=True):
        near = max(of, float(jnp.abs(a).max()))
        np.testing.assert_allclose(b, a, atol=2e-5 * near, rtol=0, err_msg=name)


def test_the_least_bias_hides_nothing_of_a_side_and_all_of_the_other():
    """Voxels 1 to 3 and 4 to 0 are windows, of the latter 0 alone at its side."""
    lowest = jnp.full((1, 3, 3), jnp.finfo(jnp.float32).min)
    query, value = jnp.ones((1, 6, 1, 4)), jnp.arange(6.0).reshape(1, 6, 1, 1)
    y = window_attention(
        query, query, value, lowest, window_size=3, shift=1, implementation="blocked"
    )
    np.testing.assert_allclose(y.ravel(), [0, 2, 2, 2, 4.5, 4.5])


def test_products_are_of_bfloat16_on_accelerators(monkeypatch):
    monkeypatch.setattr(window_blocked, "platform", lambda: "gpu")
    # Of a shape that no other test compiles, for a CPU.
    arrays = [jax.ShapeDtypeStruct((1, 6, 6, 2, 5), jnp.bfloat16)] * 3

    def attend(*arrays):
        y, vjp = jax.vjp(
            lambda *a: window_attention(*a, window_size=3, shift=1, implementation="blocked"),
            *arrays,
        )
        return vjp(y)

    text = jax.jit(attend).lower(*arrays).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all(line.count("bf16>") == 2 and line.endswith("f32>") for line in products)
