"""The linear recurrence for TPU: interpreted, lowered, and compiled where the compiler is there."""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import UnsupportedError
from biojax.kernels import linear_scan

pallas = functools.partial(linear_scan, implementation="pallas")


@pytest.fixture(autouse=True)
def for_tpu(request, monkeypatch):
    """Traced as for a TPU; what runs here is interpreted."""
    if "refuses" not in request.node.name:
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def inputs(t: int, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 1, (2, t, 3)), rng.standard_normal((2, t, 3))
    return jnp.asarray(a, dtype), jnp.asarray(b, dtype), jnp.asarray(b[:, 0] + 1, dtype)


def outputs_and_gradients(scan, *args):
    (h, last), pull = jax.vjp(scan, *args)
    return h, last, *pull((jnp.cos(h), jnp.sin(last)))


@pytest.mark.parametrize(("t", "reverse"), [(1, False), (13, True), (300, False)])
def test_interpreted(t, reverse):
    run = jax.jit(outputs_and_gradients, static_argnums=0)
    got = run(functools.partial(pallas, reverse=reverse), *inputs(t))
    plain = functools.partial(linear_scan, reverse=reverse, implementation="sequential")
    want = run(plain, *inputs(t))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5)


def test_bfloat16_is_summed_in_float32():
    ones = jnp.ones((1, 600, 1), jnp.bfloat16)
    h, last = pallas(ones, ones)
    assert h.dtype == jnp.bfloat16
    assert last.tolist() == [[600.0]]


def test_what_it_refuses(monkeypatch):
    with pytest.raises(UnsupportedError, match=r"implementation='pallas' on cpu.*a TPU"):
        pallas(jnp.ones(()), jnp.ones((1, 3, 1)))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(UnsupportedError, match=r"implementation='pallas' for complex64"):
        pallas(jnp.ones(()), jnp.ones((1, 3, 1), jnp.complex64))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_tpu(dtype):
    text = jax.export.export(jax.jit(pallas), platforms=["tpu"])(*inputs(300, dtype)).mlir_module()
    assert "tpu_custom_call" in text


@pytest.mark.aot
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_compiles_for_tpu(dtype):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    chip = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[0]
    place = jax.sharding.SingleDeviceSharding(chip)
    args = [jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place) for v in inputs(4096, dtype)]
    lowered = jax.jit(pallas).trace(*args).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in str(lowered.compile().as_text())
