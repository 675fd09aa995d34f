"""Images cut into blocks, so that what is made on the way to an output stays in cache.

A block is a box of outputs, whole along the width. Each is computed from the window of the image
that it sees. Arrays are (b, d, h, w, c); batch, depth and height are cut. A window has the zeros
outside of the image along the depth, and along the height if that is in several parts. The memory
on the way is that of one block.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from biojax.kernels.meshes import varying
from biojax.typing import Array

__all__ = ["Cut", "as_bits", "as_floats", "map_blocks", "plan", "sum_blocks"]

# What a block's intermediate arrays may take together: in cache with others, on the CPUs of today.
BLOCK_BYTES = 8 * 2**20


class Cut(NamedTuple):
    """How an axis is cut: block i has `size` outputs from the window [i * step - before, + length).

    Args:
      parts: blocks.
      size: outputs of each.
      step: pixels from one window to the next.
      length: pixels of a window.
      before: pixels of the first window before the image.
    """

    parts: int
    size: int
    step: int
    length: int
    before: int = 0

    @property
    def outputs(self) -> "Cut":
        """The same blocks of the outputs themselves."""
        return Cut(self.parts, self.size, self.size, self.size)


def plan(
    out: Sequence[int],
    strides: Sequence[int],
    extent: Sequence[int],
    before: Sequence[int],
    scratch: int,
    weights: int,
    tile: int = 1,
    rows: int | None = None,
) -> list[Cut]:
    """Cut batch, depth and height into blocks of `BLOCK_BYTES` at most.

    Larger weights allow blocks up to twice as large, for every block reads them once.

    Args:
      out: sizes (b, d, h, w) of the output.
      strides: pixels between outputs along depth and height.
      extent: pixels that an output sees along depth and height.
      before: zeros before the image along depth and height.
      scratch: bytes held for each output; with none, there is one block.
      weights: bytes of the weights.
      tile: the depth of a block is a multiple of this.
      rows: the most rows of a block in an image of several tiles; None for as many as there are,
        before a block gets any deeper.
    """
    b, d, h, w = out
    size = min(max(BLOCK_BYTES, 3 * weights // 2), 2 * BLOCK_BYTES)
    fits = max(1, size // max(1, scratch * w))  # rows of outputs
    tiles = -(-d // tile)
    if rows is not None and tiles > 1:
        height = max(1, min(rows, h, fits // tile))
        depth = tile * _part(tiles, fits // (tile * height))
    else:
        height = _part(h, fits // tile)
        depth = tile * (_part(tiles, fits // (tile * h)) if height == h else 1)
    batch = _part(b, fits // (h * depth)) if depth >= d and height == h else 1
    cuts = [Cut(max(1, -(-b // batch)), batch, batch, batch)]
    for n, size, stride, e, pad in zip(
        (d, h), (depth, height), strides, extent, before, strict=True
    ):
        cuts.append(Cut(-(-n // size), size, size * stride, (size - 1) * stride + e, pad))
    return cuts


def map_blocks(
    compute: Callable[[Array], Array],
    x: Array,
    cuts: Sequence[Cut],
    out: Array | jax.ShapeDtypeStruct,
    apart: bool = False,
) -> Array:
    """Put together the outputs of `compute`, called with every window of x.

    Args:
      compute: window to block; a block may be larger than its cut by a whole factor, the scale.
      x: the image.
      cuts: of batch, depth and height.
      out: the shape and dtype of the result.
      apart: whether a block is to be whole before it is written. The compiler would fuse a sum of
        shifted images with its writing, and run both on one core.
    """
    if _count(cuts) == 1:
        y = compute(_window(x, cuts, 0))
        return y if y.shape == out.shape else y[tuple(slice(n) for n in out.shape)]

    def in_bits(window: Array) -> Array:
        return as_bits(compute(as_floats(window, x.dtype)))

    block = jax.eval_shape(lambda x: in_bits(as_bits(_window(x, cuts, 0))), x)
    shape = (
        tuple(cut.parts * n for cut, n in zip(cuts, block.shape, strict=False)) + block.shape[3:]
    )

    def empty(window: Array) -> Array:
        return varying(jnp.zeros(block.shape, block.dtype), window)

    def step(y: Array, windows: tuple[Array, ...], i: Array | int) -> Array:
        at = [k * n for k, n in zip(_position(cuts, i), block.shape, strict=False)]
        # Nothing is fused across a branch, and the compiler does not see that it is always taken.
        part = lax.cond(i >= 0, in_bits, empty, *windows) if apart else in_bits(*windows)
        return lax.dynamic_update_slice(y, part, (*at, 0, 0))

    y = _over_blocks(step, jnp.zeros(shape, block.dtype), [x], [cuts])
    return as_floats(y[tuple(slice(n) for n in out.shape)], out.dtype)


def sum_blocks(
    compute: Callable[[Array, Array], Array],
    x: Array,
    dy: Array,
    cuts: Sequence[Cut],
    after: Array,
) -> Array:
    """The sum of `compute`, called with every window of x and the outputs dy that it leads to.

    It begins when `after` is there: two loops at once would share the cores and the cache.
    """
    outputs = [cut.outputs for cut in cuts]
    if _count(cuts) == 1:
        return compute(_window(x, cuts, 0), _window(dy, outputs, 0))
    part = jax.eval_shape(
        lambda x, dy: compute(_window(x, cuts, 0), _window(dy, outputs, 0)), x, dy
    )

    def step(total: Array, windows: tuple[Array, ...], i: Array | int) -> Array:
        x_bits, dy_bits = windows
        return total + compute(as_floats(x_bits, x.dtype), as_floats(dy_bits, dy.dtype))

    state = jnp.zeros(part.shape, part.dtype)
    return _over_blocks(step, state, [x, dy], [cuts, outputs], after)


def _over_blocks(
    step: Callable,
    state: Array,
    arrays: list[Array],
    cuts: list[Sequence[Cut]],
    after: Array | None = None,
) -> Array:
    """Carry `state` through step(state, windows, i) over all blocks.

    The windows of a block are read in the step before. Read in their own, the compiler would fuse
    the reading into whatever uses them, and index every pixel anew instead of using vectors.
    """
    count = _count(cuts[0])

    def read(i: Array | int) -> tuple[Array, ...]:
        return tuple(_read(array, cut, i) for array, cut in zip(arrays, cuts, strict=True))

    def body(carry, i):
        state, windows = carry
        state = step(state, windows, i)
        # The next windows go where these are: left free, the compiler makes copies of both.
        return (state, read(jnp.minimum(i + 1, count - 1) + _zero_after(state))), None

    state = varying(state, *arrays)
    first = 0 if after is None else _zero_after(after)
    return lax.scan(body, (state, read(first)), jnp.arange(count))[0][0]


def as_bits(x: Array) -> Array:
    """Floats of 16 bits as integers: the compiler would widen them whole, before the loop."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def as_floats(x: Array, dtype: jnp.dtype) -> Array:
    """The array that `as_bits` was given, of that dtype."""
    return lax.bitcast_convert_type(x, dtype) if x.dtype == jnp.uint16 else x


def _read(x: Array, cuts: Sequence[Cut], i: Array | int) -> Array:
    if x.dtype.itemsize > 2:
        return _window(x, cuts, i)
    window = jax.eval_shape(lambda x: as_bits(_window(x, cuts, 0)), x)
    # In a branch, or the compiler would take the bits of the whole image before the loop.
    return lax.cond(
        jnp.asarray(i) >= 0,
        lambda x: _window(as_bits(x), cuts, i),
        lambda x: varying(jnp.zeros(window.shape, window.dtype), x),
        x,
    )


def _zero_after(array: Array) -> Array:
    """Zero, which the compiler cannot know before the array is there."""
    return (jnp.abs(jnp.ravel(array)[:1].sum().astype(jnp.float32)) < -1).astype(jnp.int32)


def _window(x: Array, cuts: Sequence[Cut], i: Array | int) -> Array:
    """Window i of x, zeros where it leaves the image."""
    for axis, (cut, k) in enumerate(zip(cuts, _position(cuts, i), strict=True)):
        n = x.shape[axis]
        last = (cut.parts - 1) * cut.step - cut.before
        low, high = max(0, cut.before), max(0, last + cut.length - n)
        if cut.parts == 1:
            if axis == 2:  # whoever computes sees all rows, and pads them at no cost
                continue
            x = _padded(x, axis, cut.before, cut.length - cut.before - n)
            continue
        taken = min(cut.length, n)
        start = k * cut.step - cut.before
        inside = jnp.clip(start, 0, n - taken)
        x = lax.dynamic_slice_in_dim(x, inside, taken, axis)
        if low or high:
            x = _padded(x, axis, low, high)
            x = lax.dynamic_slice_in_dim(x, start - inside + low, cut.length, axis)
    return x


def _padded(x: Array, axis: int, before: int, after: int) -> Array:
    if before == after == 0:
        return x
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), widths)


def _position(cuts: Sequence[Cut], i: Array | int) -> list[Array | int]:
    """Which block along each axis number i is."""
    position = []
    for cut in reversed(cuts):
        position.append(i % cut.parts if cut.parts > 1 else 0)
        i = i // cut.parts
    return position[::-1]


def _count(cuts: Sequence[Cut]) -> int:
    return math.prod(cut.parts for cut in cuts)


def _part(n: int, limit: int) -> int:
    """The size of the parts of n: at most `limit`, and without a rest where that costs little."""
    limit = max(1, min(n, limit))
    divisor = max(k for k in range(1, limit + 1) if n % k == 0)
    return divisor if 2 * divisor >= limit else -(-n // -(-n // limit))
