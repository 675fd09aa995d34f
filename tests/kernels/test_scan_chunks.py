"""What `chunk` does to scans that keep all of their steps without it: nothing but to memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError
from biojax.kernels import conv_gru, conv_lstm, gru, slstm
from biojax.kernels.scan.checks import chunk_of_products


def normal(*shape: int) -> jax.Array:
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.standard_normal(shape) / 2, jnp.float32)


# The function, and the shapes of its arrays for t steps.
SCANS = {
    "slstm": (slstm, lambda t, b=1, f=32: ((b, t, 1, 4, f), (1, f, 4, f))),
    "conv_lstm": (
        conv_lstm,
        lambda t, b=1, f=16: ((b, t, 4, 2), (3, 2, 4 * f), (3, f, 4 * f), (4 * f,)),
    ),
    "conv_gru": (
        conv_gru,
        lambda t, b=1, f=16: ((b, t, 4, 2), (3, 2, 3 * f), (3, f, 3 * f), (3 * f,)),
    ),
}
every = pytest.mark.parametrize("name", SCANS)


@every
@pytest.mark.parametrize(("t", "reverse"), [(7, False), (7, True), (6, False)])
def test_chunks_change_nothing_but_memory(name, t, reverse, quickly):
    scan, shapes = SCANS[name]
    values = [normal(*shape) for shape in shapes(t, 2, 2)]
    _, last = jax.eval_shape(scan, *values)
    state0 = jax.tree.map(lambda leaf: normal(*leaf.shape) ** 2, last)

    @partial(jax.jit, static_argnums=2, compiler_options=quickly)
    def run(values, state0, chunk):
        def scalar(values, state0):
            state = (
                {"state0": state0}
                if name == "slstm"
                else dict(zip(("h0", "c0"), state0, strict=False))
            )
            results = scan(*values, **state, reverse=reverse, chunk=chunk)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(results)), results

        return jax.value_and_grad(scalar, (0, 1), has_aux=True)(values, state0)

    state0 = jax.tree.leaves(state0)
    whole, by_chunks = (jax.tree.leaves(run(values, state0, chunk)) for chunk in (None, 3))
    for got, want in zip(by_chunks, whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@every
def test_chunks_keep_the_state_in_float32(name, quickly):
    """Between the chunks of a recurrence in 16 bits it is not rounded."""
    scan, shapes = SCANS[name]
    run = jax.jit(scan, static_argnames="chunk", compiler_options=quickly)
    values = [normal(*shape).astype(jnp.bfloat16) for shape in shapes(6, 1, 2)]
    whole, by_chunks = (jax.tree.leaves(run(*values, chunk=chunk)) for chunk in (None, 2))
    for got, want in zip(by_chunks, whole, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["gru", "slstm", "conv_gru"])
def test_gradients_of_weights_are_added_up_in_float32(name, quickly):
    """Over any number of chunks, also where all inputs and weights are of 16 bits."""
    of_gru = gru, lambda t, b, f: ((b, t, 2), (2, 3 * f), (f, 3 * f), (3 * f,))
    scan, shapes = {**SCANS, "gru": of_gru}[name]
    values = [normal(*shape).astype(jnp.bfloat16) for shape in shapes(1024, 1, 2)]

    @partial(jax.jit, static_argnums=1, compiler_options=quickly)
    def gradients(values, chunk):
        def scalar(weights):
            h, _ = scan(values[0], *weights, chunk=chunk)
            return jnp.sum(h, dtype=jnp.float32)

        return jax.grad(scalar)(values[1:])

    exact = gradients([value.astype(jnp.float32) for value in values], None)
    for got, want in zip(gradients(values, 2), exact, strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.abs(np.asarray(got, np.float32) - want).max()
        assert error <= 2**-7 * np.abs(want).max()


@every
def test_memory_of_long_sequences_does_not_grow(name, quickly):
    """But by a copy of the input, and of a state for each chunk."""
    scan, shapes = SCANS[name]

    def of_gradients(t: int, chunk: int | None) -> int:
        def last(*args):
            return jnp.sum(jax.tree.leaves(scan(*args, chunk=chunk)[1])[0])

        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes(t)]
        gradients = jax.grad(last, range(len(arrays)))
        program = jax.jit(gradients, compiler_options=quickly).lower(*arrays).compile()
        analysis = program.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    short, long = (of_gradients(t, 32) for t in (512, 2048))
    assert long - short <= 2 * 4 * np.prod(shapes(2048 - 512)[0])
    assert of_gradients(2048, None) > 2 * long


@every
def test_a_chunk_has_steps(name):
    scan, shapes = SCANS[name]
    with pytest.raises(ConfigError, match=rf"^{name}: got chunk=0"):
        scan(*(normal(*shape) for shape in shapes(2, 1, 1)), chunk=0)


def test_chunks_of_products_grow_with_the_state(monkeypatch):
    """It is no larger than queries, keys, values and outputs of the chunk."""
    sizes = (1, 1), (0, 0), (32, 64), (64, 64), (96, 96), (192, 192), (384, 384)
    assert [chunk_of_products("", None, *size) for size in sizes] == [16, 16, 16, 16, 32, 48, 96]
    assert chunk_of_products("", 5, 384, 384) == 5
    monkeypatch.setattr("biojax.kernels.scan.checks.platform", lambda: "tpu")
    assert [chunk_of_products("", None, *size) for size in sizes] == [64] * 6 + [128]
