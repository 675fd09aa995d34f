"""The mesh: devices in a row, under a name."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from biojax.errors import ConfigError

__all__ = ["Devices", "make_mesh"]

Devices = int | Sequence[jax.Device] | None


def make_mesh(devices: Devices = None, *, axis: str = "data") -> Mesh:
    """A mesh of one axis, whose shardings the compiler completes (`AxisType.Auto`).

    Args:
      devices: the devices, or how many of them, counted from the first; all if None.
      axis: the name of the axis.

    Raises:
      ConfigError: fewer than one device, or more than there are.

    >>> dict(make_mesh(1).shape)
    {'data': 1}
    """
    if devices is None or isinstance(devices, int):
        found = jax.devices()
        if devices is not None and not 1 <= devices <= len(found):
            raise ConfigError(
                "make_mesh",
                f"devices={devices}",
                f"1 to {len(found)}, the {found[0].platform} devices that JAX sees",
                "Ask for fewer, or emulate CPU devices with JAX_NUM_CPU_DEVICES",
                f"devices={len(found) if devices > len(found) else 1}",
            )
        devices = found[:devices]
    elif not devices:
        raise ConfigError("make_mesh", "no devices", "one or more", "Give None to use all")
    return jax.make_mesh((len(devices),), (axis,), (AxisType.Auto,), devices=tuple(devices))
