"""Orders of voxels: known sequences, permutations and neighbours of any size, what is refused."""

import itertools
import math
import weakref

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.scan.curves import hilbert, morton, snake
from biojax.kernels.scan.orders import (
    THREE_PLANES,
    TRI_ORIENTATED,
    cross_scan_orders,
    permutation,
    raster_orders,
)

CURVES = {"snake": snake, "morton": morton, "hilbert": hilbert}
SMALL = [s for rank in (1, 2, 3) for s in itertools.product(range(1, 7), repeat=rank)]
LARGER = [
    (1,), (17,), (1, 1), (1, 9), (9, 1), (1, 1, 1), (1, 7, 1), (5, 1, 8), (2, 101), (101, 2),
    (3, 100), (64, 64), (31, 33), (2, 2, 77), (2, 31, 29), (31, 3, 2), (3, 3, 50), (7, 8, 9),
    (15, 15, 15), (25, 26, 27), (1, 40, 39), (20, 21, 4), (33, 17, 65),
]  # fmt: skip


def every_voxel_once(path: np.ndarray, shape: tuple[int, ...]) -> bool:
    return path.shape == (math.prod(shape),) and bool((np.sort(path) == np.arange(path.size)).all())


def steps(path: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """How many faces each step crosses: 1 to a neighbour."""
    return np.abs(np.diff(np.array(np.unravel_index(path, shape)), axis=1)).sum(axis=0)


def by_bits(shape: tuple[int, ...]) -> list[int]:
    """Morton's order by sorting the coordinates by their bits, one by one."""

    def code(voxel):
        return [n >> bit & 1 for bit in reversed(range(max(shape).bit_length())) for n in voxel]

    voxels = list(itertools.product(*map(range, shape)))
    return sorted(range(len(voxels)), key=lambda i: code(voxels[i]))


def by_turning(shape: tuple[int, ...]) -> list[int]:
    """The snake, one slice and row after the other."""
    if not shape:
        return [0]
    n, *faster = shape
    within = by_turning(tuple(faster))
    parts = [within if i % 2 == 0 else within[::-1] for i in range(n)]
    return [i * len(within) + voxel for i, part in enumerate(parts) for voxel in part]


def by_rotating(n: int) -> list[int]:
    """Hilbert's curve in a square of n x n by the quadrants of each distance along it."""
    path = []
    for distance in range(n * n):
        x = y = 0
        size, rest = 1, distance
        while size < n:
            right = rest // 2 % 2
            up = (rest ^ right) % 2
            if up == 0:
                if right:
                    x, y = size - 1 - x, size - 1 - y
                x, y = y, x
            x, y = x + size * right, y + size * up
            rest, size = rest // 4, size * 2
        path.append((y, x))
    return [y * n + x for y, x in path]


def test_known_sequences():
    assert hilbert((2, 2)).tolist() == [0, 2, 3, 1]
    assert hilbert((2, 2, 2)).tolist() == [0, 4, 6, 2, 3, 7, 5, 1]
    assert hilbert((1, 5)).tolist() == [0, 1, 2, 3, 4]
    assert hilbert((3, 2)).tolist() == [0, 2, 4, 5, 3, 1]
    assert morton((2, 2)).tolist() == [0, 1, 2, 3]
    assert morton((3, 3)).tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert morton((4, 4)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert morton((2, 2, 2)).tolist() == list(range(8))
    assert snake((2, 2, 3)).tolist() == [0, 1, 2, 5, 4, 3, 9, 10, 11, 8, 7, 6]


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32])
def test_squares_of_a_power_of_two_are_walked_as_hilbert_did(n):
    assert hilbert((n, n)).tolist() == by_rotating(n)


@pytest.mark.parametrize("shape", [(64, 64), (16, 16, 16), (32, 32, 32)])
@pytest.mark.parametrize("curve", ["morton", "hilbert"])
def test_blocks_of_a_power_of_two_are_left_once_all_is_seen(curve, shape):
    position = np.array(np.unravel_index(CURVES[curve](shape), shape))
    for size in (2, 4, 8):
        block = np.ravel_multi_index(tuple(position // size), [n // size for n in shape])
        assert np.count_nonzero(np.diff(block)) == math.prod(shape) // size ** len(shape) - 1


@pytest.mark.parametrize("curve", CURVES)
def test_every_small_box(curve):
    for shape in SMALL:
        path = CURVES[curve](shape)
        assert every_voxel_once(path, shape), shape
        if curve == "morton":
            assert path.tolist() == by_bits(shape), shape
        else:
            assert path[0] == 0, shape
            assert (steps(path, shape) == 1).all(), shape
        if curve == "snake":
            assert path.tolist() == by_turning(shape), shape


@pytest.mark.parametrize("shape", LARGER, ids=str)
def test_larger_boxes(shape):
    assert every_voxel_once(morton(shape), shape)
    for curve in (snake, hilbert):
        path = curve(shape)
        assert every_voxel_once(path, shape)
        assert (steps(path, shape) == 1).all()


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple))
def test_any_box(shape):
    path = hilbert(shape)
    assert every_voxel_once(path, shape)
    assert (steps(path, shape) == 1).all()
    assert every_voxel_once(morton(shape), shape)


@pytest.mark.parametrize("shape", [(9, 12), (5, 5, 5), (4, 6, 3), (2, 5, 7), (1, 6, 5), (8,)])
def test_hilbert_ends_at_the_far_end_of_the_longest_even_axis(shape):
    even = [n for n in shape if n % 2 == 0]
    axis = max(i for i, n in enumerate(shape) if n == max(even or shape))
    end = np.unravel_index(hilbert(shape)[-1], shape)
    assert [int(i) for i in end] == [n - 1 if i == axis else 0 for i, n in enumerate(shape)]


def test_hilbert_stays_near():
    """What is 27 steps apart is not much further than the diameter of a box of 27 voxels."""
    shape = (27, 30, 25)
    position = np.array(np.unravel_index(hilbert(shape), shape))
    apart = np.abs(position[:, 27:] - position[:, :-27]).max(axis=0)
    assert apart.mean() < 4


def test_a_million_voxels():
    shape = (101, 101, 101)
    path = hilbert(shape)
    assert path.dtype == np.int32
    assert every_voxel_once(path, shape)
    assert (steps(path, shape) == 1).all()


@pytest.mark.parametrize("curve", CURVES.values())
def test_paths_are_kept_and_cannot_be_changed(curve):
    path = curve((5, 6))
    assert curve([5, 6]) is curve(np.array([5, 6])) is path
    with pytest.raises(ValueError, match="read-only"):
        path[0] = 1


def test_only_the_last_tables_are_kept():
    for make in (hilbert, lambda shape: permutation("snake", shape)[0]):
        gone = weakref.ref(make((5, 6)))
        assert gone() is not None
        make((6, 5))
        assert gone() is None


# Orders.


@pytest.mark.parametrize("shape", [(5,), (3, 4), (1, 5), (2, 3, 4), (3, 1, 2)])
def test_raster_orders_are_transpositions(shape):
    numbers = np.arange(math.prod(shape)).reshape(shape)
    letters = "zyx"[-len(shape) :]
    orders = raster_orders(len(shape))
    assert len(orders) == len(set(orders)) == 2 * math.factorial(len(shape))
    for order in orders:
        axes = [letters.index(axis) for axis in order.lstrip("-")]
        expected = numbers.transpose(axes).ravel()
        indices, _ = permutation(order, shape)
        np.testing.assert_array_equal(indices, expected[::-1] if order[0] == "-" else expected)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    curve=st.sampled_from(["", "snake", "morton", "hilbert"]),
    backward=st.booleans(),
    data=st.data(),
)
def test_an_order_and_its_inverse(shape, curve, backward, data):
    letters = "".join(data.draw(st.permutations("zyx"[-len(shape) :])))
    order = "-" * backward + (f"{curve}:{letters}" if curve else letters)
    indices, inverse = permutation(order, shape)
    assert every_voxel_once(indices, shape)
    np.testing.assert_array_equal(indices[inverse], np.arange(indices.size))
    np.testing.assert_array_equal(inverse[indices], np.arange(indices.size))
    assert not indices.flags.writeable
    assert not inverse.flags.writeable


@pytest.mark.parametrize("curve", CURVES)
def test_axes_of_a_curve_are_those_of_the_transposed_volume(curve):
    shape = (2, 3, 4)
    numbers = np.arange(24).reshape(shape).transpose(2, 0, 1).ravel()
    forward, _ = permutation(f"{curve}:xzy", shape)
    np.testing.assert_array_equal(forward, numbers[CURVES[curve]((4, 2, 3))])
    backward, _ = permutation(f"-{curve}:xzy", shape)
    np.testing.assert_array_equal(backward, forward[::-1])
    np.testing.assert_array_equal(permutation(curve, shape)[0], CURVES[curve](shape))
    np.testing.assert_array_equal(permutation(f"{curve}:zyx", shape)[0], CURVES[curve](shape))


def test_usual_sets():
    assert raster_orders(1) == cross_scan_orders(1) == ("x", "-x")
    assert raster_orders(2) == cross_scan_orders(2) == ("yx", "xy", "-yx", "-xy")
    assert raster_orders(3)[:6] == ("zyx", "zxy", "yzx", "yxz", "xzy", "xyz")
    for place in range(3):
        assert sorted(order[place] for order in cross_scan_orders(3)[:3]) == ["x", "y", "z"]


def test_published_sets():
    """SegMamba splits the sequence into as many chunks as slices, and interleaves the chunks."""
    shape = (4, 2, 3)
    sequence = np.arange(24)
    between = np.stack(np.split(sequence, shape[0]), axis=-1).ravel()
    for order, expected in zip(TRI_ORIENTATED, (sequence, sequence[::-1], between), strict=True):
        np.testing.assert_array_equal(permutation(order, shape)[0], expected)
    for order, axis in zip(THREE_PLANES, range(3), strict=True):
        slices = np.moveaxis(sequence.reshape(shape), axis, 0).reshape(shape[axis], -1)
        visited = permutation(order, shape)[0].reshape(shape[axis], -1)
        np.testing.assert_array_equal(np.sort(visited), np.sort(slices))


# What is refused.


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, -1), (2, 2, 2, 2), (2.0, 3), "zyx"])
def test_shapes_that_are_none(curve, shape):
    message = rf"^{curve}: got shape=.*Expected one to three positive integers"
    with pytest.raises(ShapeError, match=message):
        CURVES[curve](shape)


@pytest.mark.parametrize(
    ("order", "shape", "message"),
    [
        ("zyz", (2, 2, 2), r"order='zyz' for 3 spatial axes\. Expected 'zyx' in any order"),
        ("zyx", (2, 2), "order='zyx' for 2 spatial axes.*mean '[yx]+'"),
        ("yx", (2, 2, 2), "for 3 spatial axes"),
        ("hilbrt", (2, 2), r"mean 'hilbert'\?"),
        ("-snakes", (2, 2), r"mean '-snake'\?"),
        ("morton:zxy", (2, 2), r"'morton', 'hilbert', which may be.*mean 'morton:xy'\?"),
        ("--yx", (2, 2), "mean '-yx'"),
        ("", (2,), r"order=''.*Name one of these\.$"),
        (None, (2,), "order=None"),
        (["yx"], (2, 2), r"order=\['yx'\]"),
    ],
)
def test_orders_that_are_none(order, shape, message):
    with pytest.raises(ConfigError, match=f"^permutation: got .*?{message}"):
        permutation(order, shape)


def test_numbers_of_axes_that_are_none():
    with pytest.raises(ShapeError, match=r"^raster_orders: got 4 spatial axes"):
        raster_orders(4)
    with pytest.raises(ShapeError, match=r"^cross_scan_orders: got 0 spatial axes"):
        cross_scan_orders(0)
    with pytest.raises(ShapeError, match=r"^permutation: got shape=\(\)"):
        permutation("x", ())
