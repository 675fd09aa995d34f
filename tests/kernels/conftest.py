"""What every kernel must stand: jit, vmap, grad, checkpoint, shard_map, and no compilation anew.

And what is asked of several: gradients, whether a program scatters, and the memory that it takes.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def value_and_gradients(f: Callable, x, weights, options):
    """The output and the gradients of a fixed weighting of it, as one compiled program."""

    def scalar(x, weights):
        y = f(x, *weights)
        weighting = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.sum(y * weighting), y

    both = jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)
    (_, y), gradients = jax.jit(both, compiler_options=options)(x, weights)
    return y, *gradients


@pytest.fixture(scope="session")
def stands_every_transform(quickly) -> Callable:
    """Checks that f(x, *weights), independent along x's batch of 8, is the same in every way."""
    mesh = jax.make_mesh((8,), ("b",), (AxisType.Auto,))

    def check(f: Callable, x, *weights) -> None:
        def one_by_one(x, *weights):
            return jax.vmap(lambda one: jax.checkpoint(f)(one[None], *weights)[0])(x)

        specs = (P("b"), *(P() for _ in weights))
        sharded = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("b"))
        want = value_and_gradients(f, x, weights, quickly)
        for way in (one_by_one, sharded):
            got = value_and_gradients(way, x, weights, quickly)
            for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                assert g.dtype == w.dtype
                np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5)
        assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(want))

    return check


@pytest.fixture
def compiles_once(caplog) -> Callable:
    """Checks that a second call outside of jit, with other values, compiles nothing."""

    def check(f: Callable, *arrays) -> None:
        jax.block_until_ready(f(*arrays))
        others = [a * 2 for a in arrays]
        jax.block_until_ready(others)
        with jax.log_compiles():
            caplog.clear()
            jax.block_until_ready(f(*others))
        assert not [r.message for r in caplog.records if "ompil" in r.message]

    return check


@pytest.fixture
def gradients_compile_once(compiles_once) -> Callable:
    """Checks that second gradients of (y, *rest) = f(*arrays), outside of jit, compile nothing."""

    def check(f: Callable, *arrays) -> None:
        compiles_once(jax.grad(lambda *given: f(*given)[0].sum(), range(len(arrays))), *arrays)

    return check


@pytest.fixture(scope="session")
def outputs_and_gradients() -> Callable:
    """The output of kernel(*arrays, **options), and the gradients of a fixed weighting of it."""

    def run(kernel: Callable, *arrays, **options) -> list:
        y, pull = jax.vjp(lambda *arrays: kernel(*arrays, **options), *arrays)
        return [y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))]

    return run


@pytest.fixture(scope="session")
def scatters() -> Callable:
    """Whether the program of function(*arrays) scatters, as written or as compiled."""

    def check(function: Callable, *arrays) -> bool:
        lowered = jax.jit(function).lower(*arrays)
        texts = lowered.as_text(), lowered.compile().as_text()
        return any(re.search(r'scatter"?\(', str(text)) for text in texts)

    return check


@pytest.fixture(scope="session")
def memory() -> Callable:
    """Bytes beside arguments and results: of kernel(*arrays), and of its gradients."""

    def measure(kernel: Callable, *shapes: tuple[int, ...], dtype=jnp.float32) -> list[int]:
        def gradients(dy, *arrays):
            return jax.vjp(kernel, *arrays)[1](dy)

        arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        steps = (kernel, arrays), (gradients, [jax.eval_shape(kernel, *arrays), *arrays])
        found = [jax.jit(f).lower(*given).compile().memory_analysis() for f, given in steps]
        return [each.temp_size_in_bytes for each in found if each is not None]

    return measure
