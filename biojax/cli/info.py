"""`biojax info`: what a bug report needs."""

import dataclasses
import importlib.metadata
import os
import platform
import sys

__all__ = ["Info", "info"]

_PACKAGES = (
    "biojax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "tifffile",
    "nibabel",
    "grain",
    "matplotlib",
    "tyro",
)


@dataclasses.dataclass(frozen=True)
class Info:
    """Print versions, devices and flags: what a bug report needs."""


def info(config: Info) -> None:
    """Print them as a table."""
    import jax

    rows = {"python": sys.version.split()[0], "system": platform.platform()}
    rows["cpu"] = f"{os.cpu_count()} cores, {platform.machine()}"
    for package in _PACKAGES:
        try:
            rows[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            rows[package] = "not installed"
    rows["backend"] = jax.default_backend()
    rows["devices"] = ", ".join(f"{device.id}: {device.device_kind}" for device in jax.devices())
    rows["processes"] = str(jax.process_count())
    rows["x64"] = str(jax.config.read("jax_enable_x64"))
    flags = {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_"))}
    rows |= dict(sorted(flags.items()))
    for name, value in rows.items():
        print(f"{name:18}{value}")
