"""Axial attention: lines one by one, whatever the axis, and memory."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from biojax.errors import ShapeError
from biojax.kernels import attention, axial_attention
from biojax.kernels.attention import axial


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


Q, K, V = normal(0, 2, 3, 4, 5, 4, 3), normal(1, 2, 3, 4, 5, 2, 3), normal(2, 2, 3, 4, 5, 2, 2)
BIAS, MASK = normal(3, 4, 4, 4), np.tri(4, dtype=bool)[::-1, ::-1]


@pytest.mark.parametrize("axis", [1, -3])
def test_line_by_line(axis):
    y = axial_attention(Q, K, V, axis=axis, is_causal=True)
    assert y.shape == (2, 3, 4, 5, 4, 2)
    q, k, v, y = (np.moveaxis(np.asarray(x), axis, -3) for x in (Q, K, V, y))
    attend = jax.jit(partial(attention, is_causal=True))
    for i, j in np.ndindex(q.shape[1:3]):
        line = attend(*(x[:, i, j] for x in (q, k, v)))
        np.testing.assert_allclose(y[:, i, j], line, rtol=1e-5, atol=1e-6)


def test_groups_of_lines_are_as_all(outputs_and_gradients, quickly):
    results = []
    for scores in (axial.SCORES, 400):  # at once, and in 4 groups of 4 of the 15 lines

        def run(query, key, value, bias):  # more keys than queries
            return axial_attention(query[:, :, :3], key, value, bias[:, :3], MASK[:3], axis=2)

        with mock.patch.object(axial, "SCORES", scores):
            assert ("scan[" in str(jax.make_jaxpr(run)(Q, K, V, BIAS))) == (scores == 400)
            f = jax.jit(partial(outputs_and_gradients, run), compiler_options=quickly)
            results.append(f(Q, K, V, BIAS))
    for whole, parts in zip(*results, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_group_is_no_single_line():
    """Whatever the number of lines: of 251, in at least 6 groups, 42 at a time."""
    line = jax.ShapeDtypeStruct((1, 251, 4, 1, 1), jnp.float32)
    with mock.patch.object(axial, "SCORES", 700):
        traced = jax.make_jaxpr(partial(axial_attention, axis=2))(*(line,) * 3)
    assert "length=6" in str(traced)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_bias_and_mask_may_be_spread(kind, mesh_of, compiled):
    """Over heads, as may images."""
    arrays = (Q, K, V, BIAS, np.broadcast_to(MASK, (4, 4, 4)))
    of_images, of_scores = P(None, None, None, None, "a"), P("a")
    with jax.set_mesh(mesh_of(2, kind=kind)):
        specs = (*(of_images,) * 3, *(of_scores,) * 2)
        spread = [jax.device_put(x, spec) for x, spec in zip(arrays, specs, strict=True)]
        y, collectives = compiled(partial(axial_attention, axis=2), *spread)
    assert collectives <= {"all-reduce"}
    np.testing.assert_allclose(y, axial_attention(*arrays, axis=2), rtol=1e-5, atol=1e-6)


def test_memory_is_that_of_volumes_and_a_group(memory):
    run = partial(axial_attention, axis=1)
    shape = (1, 64, 64, 64, 2, 4)
    for found, copies in zip(memory(run, *(shape,) * 3), (8, 16), strict=True):
        assert found < copies * 4 * np.prod(shape) + 8 * 4 * axial.SCORES


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((Q[0, 0, 0], K, V), {}, r"query \(5, 4, 3\).*x.reshape\(b, \*spatial, n, k\)"),
        ((Q, K[:, :2], V[:, :2]), {}, r"key \(2, 2, 4, 5, 2, 3\).*axis=2\. .*images of one size"),
        ((Q, K, V[:, :, :2]), {}, r"value \(2, 3, 2, 5, 2, 2\).*images of one size"),
        ((Q[..., :3, :], K, V), {}, r"query \(2, 3, 4, 5, 3, 3\).*n a multiple of m"),
        ((Q, K, V[..., :1, :]), {}, "n a multiple of m"),
        ((Q[..., :2], K, V), {}, r"key \(b, \*spatial, m, k\)"),
        ((Q.astype(int), K, V), {}, "query of int64.*one floating dtype"),
        ((Q[:0], K[:0], V[:0]), {}, "none of them empty"),
        ((Q, K, V), {"axis": 0}, r"axis=0 .*an axis of space, 1 to 3.*mean axis=1\?"),
        ((Q, K, V), {"axis": 4}, r"axis=4 .*mean axis=3\?"),
        ((Q, K, V), {"axis": -2}, "axis=-2"),
        ((Q, K, V, np.zeros((2, 4, 4, 4))), {}, r"bias of .*\(n, t, s\) = \(4, 4, 4\)"),
        ((Q, K, V, np.zeros((5, 5))), {}, r"bias of shape \(5, 5\).*\(n, t, s\) = \(4, 4, 4\)"),
        ((Q, K, V, None, MASK[:3]), {}, r"mask of shape \(3, 4\).*\(n, t, s\)"),
        ((Q, K, V, [[0.0], [0.0, 1.0]]), {}, "bias of list. Expected an array"),
        ((Q, K, V, MASK), {}, "bias of bool"),
        ((Q, K, V, None, BIAS), {}, "mask of float32"),
    ],
)
def test_what_is_refused(arrays, options, message):
    with pytest.raises(ShapeError, match=rf"^axial_attention: got .*?{message}"):
        axial_attention(*arrays, **{"axis": 2, **options})
