"""Shared fixtures. Eight CPU devices are emulated, so that sharded code runs anywhere."""

import functools
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

# Most of the tests' time is compilation of programs that run once or twice. XLA reads this when
# its first device is asked for; `XLA_FLAGS= pytest ...` compiles as anyone would.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def quickly() -> dict[str, int | bool]:
    """Options of a compiler that does not optimise, for programs that run once or twice."""
    return {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@pytest.fixture(scope="session")
def compiled(quickly) -> Callable:
    """The results of f(*arrays) as one program, and the names of the collectives in it."""
    names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"

    def run(f: Callable, *arrays) -> tuple:
        program = jax.jit(f).lower(*arrays).compile(quickly)
        results = jax.block_until_ready(program(*arrays))
        return results, set(re.findall(rf" ({names})(?:-start)?\(", program.as_text() or ""))

    return run


@pytest.fixture(scope="session")
def mesh_of() -> Callable:
    """A mesh of these sizes, whose axes are named a, b and c."""

    def make(*sizes: int, kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
        return jax.make_mesh(sizes, ("a", "b", "c")[: len(sizes)], (kind,) * len(sizes))

    return make


@pytest.fixture(scope="session")
def with_parameters() -> Callable:
    """A module's variables for such an input, random, without compiling its initialisers."""

    def fill(module, x, *args, **options):
        def leaf(path, value):
            rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
            fan_in = np.prod(value.shape[:-1]) if value.ndim > 1 else 4
            return jnp.asarray(rng.standard_normal(value.shape) / np.sqrt(fan_in), value.dtype)

        init = functools.partial(module.init, **options)
        shapes = jax.eval_shape(init, jax.random.key(0), x, *args)
        return jax.tree_util.tree_map_with_path(leaf, dict(shapes))

    return fill


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images named by BIOJAX_DATA (tests marked `data`)."""
    folder = Path(os.environ.get("BIOJAX_DATA", ""))
    if not os.environ.get("BIOJAX_DATA") or not folder.is_dir():
        pytest.skip("BIOJAX_DATA names no folder of real images")
    return folder
