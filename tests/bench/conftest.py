"""A record to be varied, and ceilings that cost nothing to measure."""

from collections.abc import Callable

import pytest

from biojax.bench import Ceilings, Record


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """A record of made-up numbers, with any field changed."""

    def make(**changes) -> Record:
        values = {
            "suite": "kernels",
            "target": "conv",
            "spec": "3d_64_c32",
            "mode": "forward",
            "dtype": "float32",
            "shapes": "1x64x64x64x32 3x3x3x32x32",
            "requested": None,
            "implementation": "planes",
            "reason": "conv: planes (3-D on CPU)",
            "lower_seconds": 0.02,
            "compile_seconds": 0.3,
            "first_seconds": 0.2,
            "samples": (0.11, 0.1, 0.09, 0.1, 0.4),
            "flop_count": 10**9,
            "byte_count": 10**7,
            "voxel_count": 64**3,
            "peak_bytes": 2**24,
            "process_peak_bytes": 2**30,
            "matmul_ceiling": 2e10,
            "copy_ceiling": 1e9,
            "machine": "a processor, 2 cores, Linux",
            "device": "cpu cpu",
            "versions": "python 3.11.7, jax 0.10.2",
            "flags": "",
            "date": "2026-01-01T00:00:00+00:00",
        }
        return Record(**{**values, **changes})

    return make


@pytest.fixture
def quick_ceilings(monkeypatch) -> None:
    """The ceilings of a machine that nobody has."""
    monkeypatch.setattr("biojax.bench.suites.ceilings", lambda dtype: Ceilings(2e10, 1e9))
