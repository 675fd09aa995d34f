"""Shared fixtures. Eight CPU devices are emulated, so that sharded code runs anywhere."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images named by BIOJAX_DATA (tests marked `data`)."""
    folder = Path(os.environ.get("BIOJAX_DATA", ""))
    if not os.environ.get("BIOJAX_DATA") or not folder.is_dir():
        pytest.skip("BIOJAX_DATA names no folder of real images")
    return folder
