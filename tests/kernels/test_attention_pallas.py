"""Attention by JAX's kernel for TPU: interpreted, lowered, and compiled where the compiler is."""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from biojax.errors import UnsupportedError
from biojax.kernels.attention import pallas, xla
from biojax.kernels.attention.blocked import Inputs
from biojax.kernels.attention.scores import Options


@pytest.fixture(autouse=True)
def for_tpu(monkeypatch):
    """Traced as for a TPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


@pytest.fixture
def interpreted(monkeypatch):
    """What runs here is interpreted."""
    make = functools.partial(splash.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha_single_device", make)
    pallas._kernel.cache_clear()
    yield
    pallas._kernel.cache_clear()


def inputs(t: int, s: int, n=2, m=1, k=8, v=12, dtype=jnp.float32, b=3, **others) -> Inputs:
    rng = np.random.default_rng(0)
    shapes = (b, t, n, k), (b, s, m, k), (b, s, m, v)
    arrays = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    return Inputs(*arrays)._replace(**others)


def run(attend, options: Options, arrays: Inputs):
    """The result and its gradients."""

    def scalar(query, key, value):
        tokens = {"query": query, "key": key, "value": value}
        y = attend(*arrays._replace(**tokens), options)
        weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    gradients, y = jax.grad(scalar, (0, 1, 2), has_aux=True)(*arrays[:3])
    return y, *gradients


def with_all_scores(*args):
    return xla.attention(*args)[0]


HIDDEN = Options(0.5, is_causal=True, soft_cap=2.0)
# The first queries of one image see nothing, all of another, and the last ones of a third.
MASK = jnp.arange(300) > np.array([3, 400, -1])[:, None, None, None]
SOME = {"key_lengths": jnp.array([70, 300, 300]), "query_lengths": jnp.array([140, 140, 9])}
CASES = [(Options(0.3), inputs(128, 256)), (HIDDEN, inputs(140, 300, mask=MASK, **SOME))]


@pytest.mark.parametrize(("options", "arrays"), CASES, ids=["whole", "hidden"])
def test_interpreted(interpreted, quickly, options, arrays):
    names = {"static_argnums": (0, 1), "compiler_options": quickly}
    got, want = (
        jax.jit(run, **names)(f, options, arrays) for f in (pallas.attention, with_all_scores)
    )
    assert [x.dtype for x in got] == [x.dtype for x in want]
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_tpu(dtype):
    arrays = inputs(140, 100, dtype=dtype, key_lengths=jnp.array([70, 100, 0]))
    lower = jax.export.export(jax.jit(run, static_argnums=(0, 1)), platforms=["tpu"])
    exported = lower(pallas.attention, HIDDEN, arrays)
    assert exported.mlir_module().count("tpu_custom_call") == 3
    assert [x.dtype for x in exported.out_avals] == [dtype] * 4


BIAS = jnp.zeros((100, 100))


@pytest.mark.parametrize(
    ("options", "others", "message"),
    [
        (HIDDEN, {"bias": BIAS}, "with a bias"),
        (HIDDEN, {"mask": BIAS > 0}, r"with a mask of shape \(100, 100\).*\(b, 1, 1, s\)"),
        (HIDDEN, {"dropout_key": BIAS}, "with dropout"),
        (HIDDEN._replace(precision="highest"), {}, "at precision='highest'"),
        (HIDDEN, {"dtype": jnp.float16}, "for float16.*float32, bfloat16"),
    ],
)
def test_what_it_refuses(options, others, message):
    with pytest.raises(
        UnsupportedError, match=rf"^attention: got implementation='pallas' {message}"
    ):
        pallas.attention(*inputs(100, 100, **others), options)


def test_it_refuses_to_run_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(UnsupportedError, match=r"implementation='pallas' on cpu\. Expected a TPU"):
        pallas.attention(*inputs(8, 8), HIDDEN)


@pytest.mark.aot
@pytest.mark.parametrize(
    ("t", "n", "m", "k", "dtype"),
    [(1728, 8, 8, 64, jnp.bfloat16), (1000, 4, 2, 24, jnp.float32), (512, 2, 1, 192, jnp.bfloat16)],
)
def test_compiles_for_tpu(t, n, m, k, dtype):
    """Whatever the number of tokens and the size of heads; forward and both kernels of the back."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    chip = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[0]
    place = jax.sharding.SingleDeviceSharding(chip)
    arrays = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        inputs(t, t, n, m, k, k, dtype, b=2, key_lengths=jnp.array([t, 70])),
    )
    traced = jax.jit(run, static_argnums=(0, 1)).trace(pallas.attention, HIDDEN, arrays)
    lowered = traced.lower(lowering_platforms=("tpu",))
    text = str(lowered.compile({"exec_time_optimization_effort": -1.0}).as_text())
    assert text.count('custom_call_target="tpu_custom_call"') == 3
