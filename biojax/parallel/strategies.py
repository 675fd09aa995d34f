"""Strategies: three ways to run the same step `(state, batch) -> (state, metrics)` over devices.

| strategy | how | what the step sees |
| --- | --- | --- |
| `single` | `jax.jit` on one device | the whole batch |
| `data` | `jax.jit` over a mesh, the batch split by `NamedSharding` | the whole batch |
| `pmap` | `jax.pmap`, one program per device | its device's share, and the name of the axis |

The state is one logical copy under each of them, replicated where there are several devices: its
shapes never change, so that a checkpoint of one strategy is a checkpoint of all.

`data` computes what `single` does. Under `pmap` whatever looks across samples looks across one
device's share only: batch normalisation uses each device's own mean and variance (its running
statistics are averaged over devices), and a Dice loss over the batch is the mean of one such loss
per share. Losses that are means over samples agree with the other two.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from biojax.errors import ConfigError, ShapeError, nearest
from biojax.parallel.mesh import Devices, make_mesh

__all__ = ["Strategy", "data", "gather", "make_strategy", "pmap", "single"]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How a step is compiled, and where its state and its batches live.

    Attributes:
      name: "single", "pmap" or "data".
      size: how many devices share a batch.
      state_sharding: where the state lives: replicated over the devices.
      batch_sharding: where batches live: their first axis split over the devices.
      compile: `compile(function, donate=False)` makes the device function of
        `function(state, batch)`, whose results are replicated; `donate` gives the state's memory
        to the results.
      axis: the name of the axis that `function` has to average over, where each device runs a
        program of its own; None where `function` sees whole batches.
    """

    name: str
    size: int
    state_sharding: Sharding
    batch_sharding: Sharding
    compile: Callable[..., Callable]
    axis: str | None = None

    def place_state(self, state: Any) -> Any:
        """Put a state, or any tree that each device needs whole, where the step wants it.

        What is there already stays as it is, and anything else may share its memory: donating the
        result donates the original.
        """

        def place(leaf):
            concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
            # A step would compile once more for arrays that are there without being committed.
            there = concrete and leaf.committed and leaf.sharding == self.state_sharding
            return leaf if there else jax.device_put(leaf, self.state_sharding)

        return jax.tree.map(place, state)

    def place_batch(self, batch: dict[str, Any], *, accumulate: int = 1) -> dict[str, Any]:
        """Split a batch `(b, ...)` over the devices.

        Under `pmap` the result is `(size, b / size, ...)`, otherwise the shape stays.

        Args:
          batch: arrays that share their first axis, b.
          accumulate: into how many microbatches each device's share is to be split further.

        Raises:
          ShapeError: b does not divide by `size * accumulate`, or differs between arrays.
        """
        sizes = {name: x.shape[0] if x.ndim else 0 for name, x in batch.items()}
        b, parts = min(sizes.values()), self.size * accumulate
        if len(set(sizes.values())) > 1:
            raise ShapeError(
                f"strategy {self.name!r}",
                f"a batch with first axes {sizes}",
                "one batch size for all arrays",
                "Stack the same samples into each array",
            )
        if b % parts or not b:
            below, above = b // parts * parts, -(-b // parts) * parts or parts
            raise ShapeError(
                f"strategy {self.name!r}",
                f"a batch of {b} for {self.size} devices and {accumulate} microbatches",
                f"a multiple of {parts}",
                f"Use a batch of {f'{below} or ' if below else ''}{above}",
                f"{above if not below or above - b <= b - below else below}",
            )
        if self.axis:
            shares = (self.size, b // self.size)
            batch = {name: x.reshape(*shares, *x.shape[1:]) for name, x in batch.items()}
        return jax.device_put(batch, self.batch_sharding)


def single(devices: Devices = None) -> Strategy:
    """Everything on one device, the first one if several are given."""
    here = SingleDeviceSharding(make_mesh(devices).devices.flat[0])

    def compile(function, donate=False):
        return jax.jit(function, donate_argnums=(0,) if donate else ())

    return Strategy("single", 1, here, here, compile)


def data(devices: Devices = None) -> Strategy:
    """`jit` over a mesh: the compiler splits the work as the batch is split."""
    mesh = make_mesh(devices)
    state = NamedSharding(mesh, PartitionSpec())
    batch = NamedSharding(mesh, PartitionSpec("data"))

    def compile(function, donate=False):
        compiled = jax.jit(
            function,
            in_shardings=(state, batch),
            out_shardings=state,
            donate_argnums=(0,) if donate else (),
        )
        return _in_turn(compiled, mesh)

    return Strategy("data", mesh.size, state, batch, compile)


def pmap(devices: Devices = None) -> Strategy:
    """`jax.pmap`: one program per device, which averages over the axis "data" by itself."""
    mesh = make_mesh(devices)
    state = NamedSharding(mesh, PartitionSpec())
    batch = NamedSharding(mesh, PartitionSpec("data"))

    def compile(function, donate=False):
        compiled = jax.pmap(
            function,
            axis_name="data",
            in_axes=(None, 0),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=(0,) if donate else (),
        )
        return _in_turn(compiled, mesh)

    return Strategy("pmap", mesh.size, state, batch, compile, axis="data")


_STRATEGIES = {"single": single, "pmap": pmap, "data": data}


def make_strategy(strategy: str | Strategy, devices: Devices = None) -> Strategy:
    """The strategy of this name; a `Strategy` is returned as it is.

    Args:
      strategy: "single", "pmap", "data", or a `Strategy`.
      devices: the devices, or how many; all if None ("single" uses one).

    Raises:
      ConfigError: there is no such strategy, or not so many devices.

    >>> make_strategy("single").size
    1
    """
    if isinstance(strategy, Strategy):
        return strategy
    if strategy not in _STRATEGIES:
        raise ConfigError(
            "make_strategy",
            f"strategy={strategy!r}",
            f"one of {', '.join(map(repr, _STRATEGIES))}",
            "Choose one of these",
            nearest(str(strategy), _STRATEGIES),
        )
    return _STRATEGIES[strategy](devices)


def gather(tree: Any) -> Any:
    """A placed tree on one device, whole: what evaluation and checkpoints read.

    A replicated array is not copied but seen through its first device, so that the result is gone
    once the tree is donated to the next step.
    """

    def view(leaf):
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            return leaf
        if leaf.is_fully_replicated:
            return leaf.addressable_data(0)
        return jax.device_put(leaf, leaf.addressable_shards[0].device)

    return jax.tree.map(view, tree)


def _in_turn(compiled: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """Wait for each call, where devices are emulated on the CPU.

    They share one pool of threads: with two calls in flight, the collectives of the first can wait
    for threads that those of the second hold, for ever.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return compiled
    return lambda state, batch: jax.block_until_ready(compiled(state, batch))
