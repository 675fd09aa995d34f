"""What no form of attention depends on, and what each of them is in its limits.

Numbers are halves of small integers and scales powers of two, so that logits are exact: where they
only move, results differ by the rounding of exponentials and of their sums, and by no more.
"""

from collections.abc import Callable
from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.kernels import (
    attention,
    axial_attention,
    linear_attention,
    neighborhood_attention,
    window_attention,
)
from biojax.kernels.attention import blocked, window_blocked

B, H, W, N, K = 2, 4, 6, 2, 4
# Exponentials of numbers up to 60 are exact to as many halves of a unit in the last place.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def halves(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-4, 5, shape) / 2).astype(np.float32)


def images(n=N, m=N) -> list[np.ndarray]:
    """A query, a key and a value."""
    return [halves(i, B, H, W, heads, K) for i, heads in enumerate((n, m, m))]


def tokens(x: np.ndarray) -> np.ndarray:
    """(b, *spatial, n, k) as (b, t, n, k)."""
    return x.reshape(x.shape[0], -1, *x.shape[-2:])


def of_tokens(kernel: Callable, query, key, value, *args, **options) -> jax.Array:
    y = kernel(*map(tokens, (query, key, value)), *args, **options)
    return y.reshape(query.shape)


WAYS = ("xla", "blocked")
_WINDOWS = partial(window_attention, window_size=(2, 3), shift=(1, 2))
_NEIGHBORS = partial(neighborhood_attention, kernel_size=(3, 2), dilation=(1, 2))
_LINEAR = partial(of_tokens, linear_attention)
# With a softmax.
FORMS = {
    f"{name} {way}": partial(form, scale=0.5, implementation=way)
    for name, form in (
        ("neighbourhoods", _NEIGHBORS),
        ("windows", _WINDOWS),
        ("lines", partial(axial_attention, axis=2)),
        ("all", partial(of_tokens, attention)),
    )
    for way in WAYS
}
BIASES = {"windows": (N, 6, 6), "lines": (N, W, W), "all": (N, H * W, H * W)}
OTHERS = {"linear": _LINEAR, "linear causal": partial(_LINEAR, is_causal=True, chunk=5)}


@pytest.fixture(scope="module")
def run(quickly):
    """Every form compiled once for each set of shapes, in several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "QUERIES", 10)
        patch.setattr(blocked, "KEYS", 7)
        patch.setattr(window_blocked, "SCORE_BYTES", 3 * 4 * N * 6 * 6)
        yield {
            name: jax.jit(form, compiler_options=quickly)
            for name, form in {**FORMS, **OTHERS}.items()
        }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", BIASES)
@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(shift=st.sampled_from([-30_000, -100, -60, -1, 9, 55, 75, 30_000]))
def test_shift_of_all_logits_does_not_matter(form, way, shift, run):
    attend, bias = partial(run[f"{form} {way}"], *images()), halves(3, *BIASES[form])
    np.testing.assert_allclose(attend(bias + shift), attend(bias), **CLOSE)


@pytest.mark.parametrize("form", FORMS)
def test_a_vector_added_to_all_keys_does_not_matter(form, run):
    """All logits of a query move by its product with the vector, here by up to 2000."""
    query, key, value = images()
    y = run[form](query, key, value)
    for vector in (halves(4, K), 500 * halves(4, K)):
        np.testing.assert_allclose(run[form](query, key + vector, value), y, **CLOSE)


@pytest.mark.parametrize("form", [*FORMS, *OTHERS])
def test_images_and_heads_do_not_see_each_other(form, run):
    query, key, value = images()
    turned = (x[::-1, :, :, ::-1] for x in (query, key, value))
    y = run[form](query, key, value)
    np.testing.assert_allclose(run[form](*turned)[::-1, :, :, ::-1], y, **CLOSE)
    value[1, :, :, 1] = 0
    other = np.asarray(run[form](query, key, value))
    assert not other[1, :, :, 1].any()
    np.testing.assert_array_equal(other[0], y[0])
    np.testing.assert_array_equal(other[..., 0, :], y[..., 0, :])


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_positive_and_make_one(form, run):
    """Of values between 0 and 1 all means are, and of ones they are 1."""
    query, key, value = images()
    np.testing.assert_allclose(run[form](query, key, np.ones_like(value)), 1, **CLOSE)
    y = np.asarray(run[form](query, key, (value + 2) / 4))
    assert y.min() >= 0
    assert y.max() <= 1 + 1e-6


@pytest.mark.parametrize("form", ["lines xla", "lines blocked", "linear"])
@hypothesis.settings(max_examples=6, deadline=None)
@hypothesis.given(seed=st.integers(0, 999))
def test_order_of_keys_does_not_matter(form, seed, run):
    query, key, value = images()
    order = np.random.default_rng(seed).permutation(W if "lines" in form else H * W)

    def permuted(x: np.ndarray) -> np.ndarray:
        return x[:, :, order] if "lines" in form else tokens(x)[:, order].reshape(x.shape)

    y = run[form](query, key, value)
    np.testing.assert_allclose(run[form](query, permuted(key), permuted(value)), y, **CLOSE)


@pytest.mark.parametrize("way", WAYS)
@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(dropped=st.integers(0, W - 1))
def test_a_mask_that_drops_a_voxel_of_lines_is_as_without_it(way, dropped, run):
    query, key, value = images()
    kept = np.arange(W) != dropped
    loud = np.where(kept[:, None, None], key, 1e4)
    without = run[f"lines {way}"](query, key[:, :, kept], value[:, :, kept])
    y = run[f"lines {way}"](query, loud, value, None, kept)
    np.testing.assert_allclose(y, without, **CLOSE)
    bias = np.where(kept, 0, -np.inf).astype(np.float32)
    np.testing.assert_allclose(run[f"lines {way}"](query, loud, value, bias), without, **CLOSE)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_windowed", [True, False], ids=["windows", "neighbourhoods"])
def test_what_is_as_large_as_the_image_is_attention_to_all(
    is_windowed, way, outputs_and_gradients, quickly
):
    def full(*arrays):
        return of_tokens(attention, *arrays, scale=0.5, implementation="xla")

    arrays = [x.reshape(B, 2, H // 2, W, N, K) for x in images()]
    local = partial(neighborhood_attention, kernel_size=(2, H // 2, W))
    if is_windowed:
        local = partial(window_attention, window_size=(2, H // 2, W))
        arrays.append(halves(3, N, H * W, H * W))
    local = partial(local, scale=0.5, implementation=way)
    got, want = (
        jax.jit(partial(outputs_and_gradients, f), compiler_options=quickly)(*arrays)
        for f in (local, full)
    )
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [*BIASES, "neighbourhoods", "all causal"])
def test_derivatives_of_gradients_forward(form, quickly):
    """Of "blocked", whose gradients are written by hand, as of "xla"."""
    name, *causal = form.split()
    arrays = [x[:1] for x in images()]

    def of(way: str) -> tuple[jax.Array, ...]:
        attend = partial(FORMS[f"{name} {way}"], **({"is_causal": True} if causal else {}))
        slope = jax.grad(lambda *arrays: jnp.sin(attend(*arrays)).sum(), argnums=(0, 1, 2))
        return jax.jvp(slope, arrays, arrays[::-1])[1]

    both = jax.jit(lambda: (of("blocked"), of("xla")), compiler_options=quickly)
    for got, want in zip(*both(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_lines_of_a_row_are_all_there_is(way, run):
    """An image of one row: its lines are all voxels."""
    query, key, value = (x.reshape(B, 1, H * W, N, K) for x in images())
    y = run[f"lines {way}"](query, key, value)
    want = run["all xla"](query, key, value)
    np.testing.assert_allclose(y, want, **CLOSE)


@pytest.mark.parametrize("form", ["lines xla", "lines blocked", "linear"])
def test_heads_of_queries_that_share_a_key_are_as_with_keys_repeated(form, run):
    query, key, value = images(n=4, m=2)
    repeated = (jnp.repeat(x, 2, axis=-2) for x in (key, value))
    y = run[form](query, key, value)
    np.testing.assert_allclose(y, run[form](query, *repeated), **CLOSE)
