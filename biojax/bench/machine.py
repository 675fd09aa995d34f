"""Where something was measured: machine, device, versions, flags, and memory so far."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import jax

__all__ = ["count_cores", "describe_machine", "process_peak_bytes"]

_PACKAGES = ("biojax", "jax", "jaxlib", "flax", "numpy")
_FLAGS = ("JAX_", "XLA_", "OMP_", "MKL_")


def count_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def describe_machine() -> dict[str, str]:
    """The fields `machine`, `device`, `versions` and `flags` of a record."""
    device = jax.devices()[0]
    versions = [f"python {platform.python_version()}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    flags = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(_FLAGS))
    return {
        "machine": f"{_processor()}, {count_cores()} cores, {platform.system()}",
        "device": f"{device.platform} {device.device_kind}",
        "versions": ", ".join(versions),
        "flags": " ".join(flags),
    }


def process_peak_bytes() -> int | None:
    """The most resident memory that this process ever held; None on Windows.

    It never falls, so that of several measurements in one process only a rise says anything, and
    it holds the interpreter, compilation and earlier work as well: an upper bound, no more. It
    sees the host's memory only.
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    """The processor's name, which `platform.processor` leaves empty on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
