"""Shared fixtures. Eight CPU devices are emulated, so that sharded code runs anywhere."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def quickly() -> dict[str, int | bool]:
    """Options of a compiler that does not optimise, for programs that run once or twice."""
    return {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images named by BIOJAX_DATA (tests marked `data`)."""
    folder = Path(os.environ.get("BIOJAX_DATA", ""))
    if not os.environ.get("BIOJAX_DATA") or not folder.is_dir():
        pytest.skip("BIOJAX_DATA names no folder of real images")
    return folder
