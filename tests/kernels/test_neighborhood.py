"""Neighbourhood attention: windows by hand, values, what it equals, memory, refusals."""

import itertools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from biojax.errors import ConfigError, ShapeError
from biojax.kernels import attention, explain, neighborhood_attention
from biojax.kernels.attention import neighborhood_blocked
from biojax.kernels.attention.neighborhood_tiles import plan_of
from biojax.kernels.attention.neighbors import Axis, neighbors


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def image(*sizes: int, n=2, k=3, v=3, b=1) -> list[np.ndarray]:
    """A query, a key and a value."""
    return [normal(0, b, *sizes, n, k), normal(1, b, *sizes, n, k), normal(2, b, *sizes, n, v)]


def tokens(x: np.ndarray) -> np.ndarray:
    """(b, *spatial, n, k) as (b, t, n, k)."""
    return x.reshape(x.shape[0], -1, *x.shape[-2:])


def windows(*args, **options) -> list[list[int]]:
    """The keys that each query of an axis sees."""
    axis = Axis(*args, **options)
    rows = zip(*neighbors(axis), strict=True)
    return [[int(first) + j * axis.dilation for j in range(count)] for first, count in rows]


def test_windows_by_hand():
    first, count = neighbors(Axis(7, 3))
    assert first.tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert set(count) == {3}
    assert neighbors(Axis(6, 4))[0].tolist() == [0, 0, 0, 1, 2, 2]  # larger half before the query
    assert windows(7, 2, dilation=3) == [[0, 3], [1, 4], [2, 5], [0, 3], [1, 4], [2, 5], [3, 6]]
    # Leaders are 1, 3, 5, 7: the upper ones of the two in the middle.
    assert neighbors(Axis(8, 4, stride=2))[0].tolist() == [0, 0, 1, 1, 3, 3, 4, 4]
    # The last group has one query, which leads itself.
    assert neighbors(Axis(7, 3, stride=3))[0].tolist() == [0, 0, 0, 3, 3, 3, 4]
    assert windows(5, 3, is_causal=True) == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    strided = [[0], [0, 1], [1, 2], [1, 2, 3], [3, 4]]
    assert windows(5, 3, stride=2, is_causal=True)[:4] == strided[:4]
    # The group of the last one ends with it.
    assert windows(5, 3, stride=2, is_causal=True)[4] == [2, 3, 4]
    dilated = [[0], [1], [0, 2], [1, 3], [2, 4], [3, 5]]
    assert windows(6, 2, dilation=2, is_causal=True) == dilated


@pytest.mark.parametrize(("size", "kernel"), [(9, 5), (9, 9), (8, 3), (8, 1)])
def test_a_window_is_the_one_inside_whose_middle_is_nearest(size, kernel):
    for i, window in enumerate(windows(size, kernel)):
        middles = np.arange(size - kernel + 1) + kernel // 2
        nearest = int(np.argmin(np.abs(middles - i)))
        assert window == list(range(nearest, nearest + kernel))


def test_by_hand():
    query = jnp.ones((1, 4, 1, 1))
    key = jnp.log(jnp.array([1.0, 3.0, 1.0, 1.0])).reshape(1, 4, 1, 1)
    value = jnp.array([4.0, 8.0, 0.0, 10.0]).reshape(1, 4, 1, 1)
    for implementation in ("xla", "blocked"):
        y = neighborhood_attention(
            query, key, value, kernel_size=3, scale=1.0, implementation=implementation
        )
        # exp(q k) is 1, 3, 1, 1: (4 + 3 * 8 + 0) / 5 twice, then (3 * 8 + 0 + 10) / 5 twice.
        np.testing.assert_allclose(y.ravel(), [5.6, 5.6, 6.8, 6.8], rtol=1e-6)


def by_loop(query, key, value, windows, scale) -> np.ndarray:
    """The sums in the docstring, term by term, in float64."""
    y = np.zeros((*query.shape[:-1], value.shape[-1]))
    for b, *i, n in np.ndindex(query.shape[:-1]):
        seen = list(itertools.product(*(axis[j] for axis, j in zip(windows, i, strict=True))))
        keys = [(b, *j, n) for j in seen]
        products = np.array([query[(b, *i, n)].astype(float) @ key[j] for j in keys])
        weights = np.exp(scale * products)
        y[(b, *i, n)] = weights / weights.sum() @ np.array([value[j] for j in keys])
    return y


def test_against_a_loop():
    arrays = image(4, 5, 3, v=2, b=2)
    y = neighborhood_attention(
        *arrays,
        kernel_size=(3, 2, 2),
        dilation=(1, 2, 1),
        stride=(2, 1, 1),
        is_causal=(False, False, True),
        implementation="blocked",
    )
    seen = windows(4, 3, stride=2), windows(5, 2, dilation=2), windows(3, 2, is_causal=True)
    np.testing.assert_allclose(y, by_loop(*arrays, seen, 3**-0.5), rtol=1e-5, atol=1e-6)


# At which a call takes several steps of several tiles.
LARGER = {
    "1d": (Axis(900, 5, dilation=3),),
    "2d": (Axis(50, 7, stride=2, is_causal=True), Axis(64, 6, stride=3)),
    "3d": (Axis(13, 3), Axis(14, 4, dilation=2), Axis(16, 3)),
}


@pytest.mark.parametrize("name", LARGER)
def test_tile_by_tile_is_as_all_at_once(name, outputs_and_gradients, quickly):
    axes = LARGER[name]
    plan = plan_of((*[Axis(1, 1)] * (3 - len(axes)), *axes), 2)
    assert math.prod(plan.steps) > 2
    assert plan.group > 1
    sizes, kernel_size, dilation, stride, is_causal, *_ = zip(*axes, strict=True)
    options = {"kernel_size": kernel_size, "dilation": dilation, "stride": stride}
    results = []
    for implementation in ("xla", "blocked"):
        f = partial(
            neighborhood_attention,
            **options,
            is_causal=is_causal,
            implementation=implementation,
        )
        run = partial(outputs_and_gradients, f)
        results.append(jax.jit(run, compiler_options=quickly)(*image(*sizes)))
    for dense, tiled in zip(*results, strict=True):
        np.testing.assert_allclose(tiled, dense, rtol=1e-4, atol=2e-5)


def test_a_causal_window_as_long_as_a_line_is_causal_attention():
    line = image(6)
    y = neighborhood_attention(*line, kernel_size=6, is_causal=True, implementation="blocked")
    np.testing.assert_allclose(y, attention(*line, is_causal=True), rtol=1e-5, atol=1e-6)


def test_a_stride_as_large_as_the_window_parts_the_image():
    arrays = image(4, 6)
    y = neighborhood_attention(*arrays, kernel_size=(2, 3), stride=(2, 3), implementation="blocked")
    for i, j in np.ndindex(2, 2):
        part = np.s_[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
        alone = attention(*(tokens(x[part]) for x in arrays))
        np.testing.assert_allclose(tokens(y[part]), alone, rtol=1e-5, atol=1e-6)


def test_large_logits_pick_one_key():
    """Of those that are seen: the largest of all lies outside of most windows."""
    key = jnp.array([9.0, 3.0, 1.0, 2.0, 4.0]).reshape(1, 5, 1, 1)
    query, value = jnp.full_like(key, 1e4), jnp.arange(5.0).reshape(key.shape)
    run = partial(neighborhood_attention, kernel_size=3, scale=1.0, implementation="blocked")
    y, pull = jax.vjp(run, query, key, value)
    assert y.ravel().tolist() == [0, 0, 1, 4, 4]
    assert all(np.isfinite(g).all() for g in pull(y))


def test_against_finite_differences():
    with jax.enable_x64():
        arrays = [x.astype(np.float64) for x in image(5, 4, n=1, k=2, v=2)]
        run = partial(
            neighborhood_attention, kernel_size=(2, 3), dilation=(2, 1), implementation="blocked"
        )
        check_grads(jax.jit(run), arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_transforms(stands_every_transform):
    def f(x, w):
        query, key, value = jnp.moveaxis(x @ w, -1, 0)
        return neighborhood_attention(
            query, key, value, kernel_size=2, is_causal=(True, False), implementation="blocked"
        )

    stands_every_transform(f, normal(0, 8, 4, 3, 2, 3, 1), normal(1, 1, 3))


def test_compiles_once(compiles_once, gradients_compile_once):
    run = partial(neighborhood_attention, kernel_size=3, implementation="blocked")
    arrays = list(map(jnp.asarray, image(5, 4)))
    compiles_once(run, *arrays)
    gradients_compile_once(lambda *arrays: (run(*arrays),), *arrays)


def test_memory_is_linear_and_gradients_do_not_scatter(memory):
    """Query, key, value and result are held in tiles, and for gradients two volumes more.

    What a step takes beside them, whatever the size, is less than one more here.
    """
    run = partial(neighborhood_attention, kernel_size=3, dilation=2)
    small, large = (memory(run, *((1, size, 24, 24, 2, 4),) * 3) for size in (24, 96))
    volume = 4 * 96 * 24 * 24 * 2 * 4
    for few, many, copies in zip(small, large, (5, 7), strict=True):
        assert many <= 4 * few
        assert many < copies * volume

    def gradients(*arrays):
        return jax.vjp(run, *arrays)[1](arrays[0])

    assert "scatter" not in jax.jit(gradients).lower(*image(20, 20, 6)).as_text()


def test_precision_reaches_every_product():
    def gradients(*arrays, implementation):
        run = partial(
            neighborhood_attention,
            kernel_size=3,
            precision="highest",
            implementation=implementation,
        )
        return jax.vjp(run, *arrays)[1](arrays[2])

    for implementation, products in (("xla", 6), ("blocked", 7)):
        f = partial(gradients, implementation=implementation)
        traced = str(jax.make_jaxpr(f)(*image(5, 4)))
        assert traced.count("dot_general[") == products
        assert "precision=None" not in traced


def test_products_are_of_bfloat16_on_accelerators(monkeypatch):
    monkeypatch.setattr(neighborhood_blocked, "platform", lambda: "tpu")
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in image(7, 6)]
    run = partial(neighborhood_attention, kernel_size=3, implementation="blocked", scale=0.2)
    traced = str(jax.make_jaxpr(lambda *arrays: jax.vjp(run, *arrays)[1](arrays[2]))(*arrays))
    assert traced.count("preferred_element_type=float32") == 7
    factors = re.findall(r"(\w+):f32\S* = dot_general\[.*?\] (\w+) (\w+)", traced, re.DOTALL)
    assert len(factors) == 7
    for _, *pair in factors:
        assert all(re.search(rf"\b{name}:bf16", traced) for name in pair)


def test_what_is_chosen():
    def chosen(*sizes: int) -> str:
        arrays = [jax.ShapeDtypeStruct((1, *sizes, 2, 4), jnp.float32)] * 3
        return explain(partial(neighborhood_attention, kernel_size=3), *arrays)[0].implementation

    assert chosen(4, 8, 8) == "xla"
    assert chosen(5, 8, 8) == "blocked"


Q, K, V = image(4, 5)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((Q[0, 0], K[0, 0], V[0, 0]), {}, r"query \(5, 2, 3\).*x.reshape\(b, \*spatial, n, k\)"),
        ((Q, K[:, :3], V), {}, r"key \(1, 3, 5, 2, 3\)"),
        ((Q, K, V[:, :, :3]), {}, r"value \(1, 4, 3, 2, 3\)"),
        ((Q[..., :0], K[..., :0], V), {}, "none of them empty"),
        ((Q[:0], K[:0], V[:0]), {}, "none of them empty"),
        ((Q.astype(jnp.bfloat16), K, V), {}, "query of bfloat16.*one floating dtype"),
        ((Q.astype(int), K.astype(int), V.astype(int)), {}, "one floating dtype"),
        ((Q, K, V), {"kernel_size": 5}, r"for an image of \(4, 5\).*mean kernel_size=\(4, 5\)"),
        ((Q, K, V), {"dilation": 2}, r"dilation=\(2, 2\).*mean kernel_size=\(2, 2\)"),
        ((Q, K, V), {"dilation": 9}, r"smaller windows, or larger images\.$"),
        ((Q, K, V), {"stride": (1, 4)}, r"stride=\(1, 4\).*mean stride=\(1, 3\)"),
        ((Q, K, V), {"kernel_size": (3, 3, 3)}, r"kernel_size=\(3, 3, 3\)"),
        ((Q, K, V), {"kernel_size": 0}, "kernel_size=0"),
        ((Q, K, V), {"is_causal": (True,)}, r"is_causal=\(True,\).*as there are spatial axes"),
        ((Q, K, V), {"is_causal": "no"}, "is_causal='no'.*a bool and a name or None for each"),
        ((Q, K, V), {"axis_names": ("z",)}, r"axis_names=\('z',\)"),
    ],
)
def test_what_is_refused(arrays, options, message):
    with pytest.raises(ShapeError, match=rf"^neighborhood_attention: got .*?{message}"):
        neighborhood_attention(*arrays, **{"kernel_size": 3, **options})


def test_causal_of_numpy():
    run = partial(neighborhood_attention, Q, K, V, kernel_size=3)
    for given, same in ((np.bool_(True), True), (np.array([True, False]), (True, False))):
        np.testing.assert_array_equal(run(is_causal=given), run(is_causal=same))


def test_names_of_axes_that_no_mesh_has():
    message = r"^neighborhood_attention: got 'z' in axis_names\..*inside of jax.shard_map"
    with pytest.raises(ConfigError, match=message):
        neighborhood_attention(Q, K, V, kernel_size=3, axis_names=("z", None))


def test_a_misspelt_implementation():
    with pytest.raises(ConfigError, match="mean 'blocked'"):
        neighborhood_attention(Q, K, V, kernel_size=3, implementation="block")
