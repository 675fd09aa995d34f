"""One block of scores (s, t), keys first: from products to logits, and their gradients back."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from biojax.kernels.attention.scores import CHUNK, Options, dropout_weights, visible
from biojax.typing import Array

__all__ = ["Block", "Inputs", "Plan", "plan_of"]


class Inputs(NamedTuple):
    """The arrays of a call, named as in the package; the random key as its data."""

    query: Array
    key: Array
    value: Array
    bias: Array | None = None
    mask: Array | None = None
    query_lengths: Array | None = None
    key_lengths: Array | None = None
    dropout_key: Array | None = None


class Plan(NamedTuple):
    """How a call is cut.

    Args:
      b: images.
      m: heads of keys.
      g: heads of queries for each of them.
      t, s: queries and keys.
      queries, keys: into how many blocks, of what size.
    """

    b: int
    m: int
    g: int
    t: int
    s: int
    queries: tuple[int, int]
    keys: tuple[int, int]


def plan_of(inputs: Inputs, queries: int, keys: int) -> Plan:
    """Blocks of at most so many, of one size; the last may reach beyond the end.

    What is given for every score would be copied to fill it up, and so has up to a quarter more
    blocks where those are whole.
    """
    b, t, n, _ = inputs.query.shape
    s, m = inputs.key.shape[1:3]
    shapes = [x.shape[-2:] for x in (inputs.bias, inputs.mask) if x is not None]
    more = 1.25 if any(len(shape) == 2 and 1 not in shape for shape in shapes) else 1.0
    count, size = _cut(s, keys, more)
    if inputs.dropout_key is not None:
        size = -(-size // CHUNK) * CHUNK
        count = -(-s // size)
    return Plan(b, m, n // m, t, s, _cut(t, queries, more), (count, size))


def _cut(n: int, largest: int, more: float) -> tuple[int, int]:
    """Into how many, of what size: the fewest, or so many times more where those are whole."""
    least = -(-n // largest)
    counts = range(least, int(more * least) + 1)
    count = next((count for count in counts if n % count == 0), least)
    return count, -(-n // count)


class Block(NamedTuple):
    """Some queries of one head against some keys.

    Args:
      options, inputs, plan: of the call; bias and mask with four axes, and in whole blocks.
      r: number of the head of keys, of all images.
      at: number of the block of queries, of all heads that share these keys.
      j: number of the block of keys.
    """

    options: Options
    inputs: Inputs
    plan: Plan
    r: Array
    at: Array
    j: Array | int = 0

    @property
    def image(self) -> Array:
        """The number of the image."""
        return self.r // self.plan.m

    @property
    def head(self) -> Array:
        """The number of the queries' head in its image."""
        return self.r % self.plan.m * self.plan.g + self.at // self.plan.queries[0]

    @property
    def i(self) -> Array:
        """The number of the block of queries in its head."""
        return self.at % self.plan.queries[0]

    def key_blocks(self) -> Array | int:
        """How many of the blocks of keys these queries see anything of."""
        count, size = self.plan.keys
        first, end = self.i * self.plan.queries[1], (self.i + 1) * self.plan.queries[1]
        if self.options.is_causal:
            count = jnp.minimum(count, (end - 1) // size + 1)
        if self.inputs.key_lengths is not None:
            count = jnp.minimum(count, (self.inputs.key_lengths[self.image] + size - 1) // size)
        if self.inputs.query_lengths is not None:
            count = jnp.where(first < self.inputs.query_lengths[self.image], count, 0)
        return count

    def logits(self, products: Array) -> Array:
        """Of products <key, query>: what the softmax is taken of, minus infinity where unseen."""
        x, cap = self._scaled(products), self.options.soft_cap
        if cap is not None:
            x = cap * jnp.tanh(x / cap)
        if self.inputs.bias is not None:
            x = x + self._part(self.inputs.bias).T
        seen = self._seen()
        return x if seen is None else jnp.where(seen, x, -jnp.inf)

    def slope(self, products: Array) -> Array | float:
        """The derivative of logits by products."""
        scale, cap = self.options.scale, self.options.soft_cap
        if cap is None:
            return scale
        return scale * (1 - jnp.square(jnp.tanh(self._scaled(products) / cap)))

    def dropped(self, weights: Array) -> Array:
        """The weights, some of them dropped and the others larger."""
        if self.inputs.dropout_key is None:
            return weights
        plan = self.plan
        rows = (self.image * plan.m * plan.g + self.head) * plan.t + self._rows()
        first, count = self.j * plan.keys[1], plan.keys[1]
        rate = self.options.dropout_rate
        return weights * dropout_weights(self.inputs.dropout_key, rows, first, count, rate).T

    def add_bias(self, dbias: Array, dx: Array) -> Array:
        """The gradient of the bias, and that of these logits added to it."""
        part = self._part(dbias)
        summed = [axis for axis in (0, 1) if part.shape[axis] == 1]
        part = part + dx.T.sum(axis=summed, keepdims=True)
        return lax.dynamic_update_slice(dbias, part[None, None], self._start(dbias))

    def _scaled(self, products: Array) -> Array:
        scale = self.options.scale
        return products if scale == 1 else scale * products

    def _rows(self) -> Array:
        return self.i * self.plan.queries[1] + jnp.arange(self.plan.queries[1])

    def _seen(self) -> Array | None:
        count, size = self.plan.keys
        length = self.plan.s if count * size > self.plan.s else None
        if self.inputs.key_lengths is not None:
            length = jnp.minimum(self.inputs.key_lengths[self.image], self.plan.s)
        ends = self.inputs.query_lengths
        columns = (self.j * size + jnp.arange(size))[:, None]
        end = None if ends is None else ends[self.image]
        seen = visible(self._rows(), columns, self.options.is_causal, end, length)
        if self.inputs.mask is None:
            return seen
        mask = self._part(self.inputs.mask).T
        return mask if seen is None else seen & mask

    def _part(self, array: Array) -> Array:
        """This block of a bias or mask, (t or 1, s or 1)."""
        sizes = (1, 1, self.plan.queries[1], self.plan.keys[1])
        sizes = [min(n, size) for n, size in zip(array.shape, sizes, strict=True)]
        return lax.dynamic_slice(array, self._start(array), sizes)[0, 0]

    def _start(self, array: Array) -> tuple:
        first = self.i * self.plan.queries[1], self.j * self.plan.keys[1]
        b, n, *_ = array.shape  # heads are all, or those that share keys
        starts = self.image % b, self.head % n, *first
        return tuple(start if n > 1 else 0 for n, start in zip(array.shape, starts, strict=True))
