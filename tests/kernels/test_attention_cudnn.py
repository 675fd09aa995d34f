"""Attention by cuDNN: lowered for CUDA, and refused where it is not there or cannot."""

import re

import jax
import jax.numpy as jnp
import pytest

from biojax.errors import UnsupportedError
from biojax.kernels.attention import cudnn
from biojax.kernels.attention.blocked import Inputs
from biojax.kernels.attention.scores import Options

PLAIN = Options(0.5)


@pytest.fixture(autouse=True)
def for_gpu(monkeypatch):
    """Traced as for a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def inputs(dtype=jnp.bfloat16, s=8, **others) -> Inputs:
    shapes = (2, 6, 4, 20), (2, s, 2, 20), (2, s, 2, 12)
    return Inputs(*(jnp.zeros(shape, dtype) for shape in shapes))._replace(**others)


@pytest.mark.parametrize(
    ("options", "arrays", "kind"),
    [
        (PLAIN, inputs(), "NO_MASK"),
        (PLAIN._replace(is_causal=True), inputs(jnp.float16), "CAUSAL"),
        (PLAIN, inputs(s=5), "PADDING"),
        (PLAIN, inputs(key_lengths=jnp.array([5, 0], jnp.int16)), "PADDING"),
    ],
)
def test_lowers_for_cuda(monkeypatch, options, arrays, kind):
    """To cuDNN's calls, forward and back, with heads of 24; no scores are left beside them."""
    module = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91000)

    def run(query, key, value):
        tokens = {"query": query, "key": key, "value": value}
        y = cudnn.attention(*arrays._replace(**tokens), options)
        return jnp.sum(y, dtype=jnp.float32), y

    calls = [f"__cudnn$fmhaSoftmax{back}" for back in ("", "Backward")]
    exported = jax.export.export(
        jax.jit(jax.grad(run, (0, 1, 2), has_aux=True)),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(name) for name in calls],
    )(*arrays[:3])
    gradients, y = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert [x.shape for x in (y, *gradients)] == [(2, 6, 4, 12), *(x.shape for x in arrays[:3])]
    assert {x.dtype for x in (y, *gradients)} == {arrays.query.dtype}
    text = exported.mlir_module()
    assert set(re.findall(r"custom_call @([\w$]+)\(", text)) == set(calls)
    text = text.replace(r"\22", '"')
    assert set(re.findall(r'"mask_type": "(\w+)"', text)) == {kind}
    assert text.count("dot_general") == 0


@pytest.mark.parametrize(
    ("options", "others", "message"),
    [
        (PLAIN, {"dtype": jnp.float32}, "for float32. Expected bfloat16 or float16"),
        (PLAIN, {"bias": jnp.zeros((6, 8))}, "with a bias"),
        (PLAIN, {"mask": jnp.ones((6, 8), bool)}, "with a mask. Expected lengths, or is_causal"),
        (PLAIN, {"dropout_key": jnp.zeros(2)}, "with dropout"),
        (PLAIN._replace(soft_cap=3.0), {}, r"with soft_cap=3.0"),
        (PLAIN, {}, "where 'cuDNN is not detected.'. Expected what cuDNN can do here"),
    ],
)
def test_what_it_refuses(options, others, message):
    message = re.escape(f"attention: got implementation='cudnn' {message}")
    with pytest.raises(UnsupportedError, match=message):
        jax.eval_shape(lambda: cudnn.attention(*inputs(**others), options))


def test_it_refuses_to_run_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(
        UnsupportedError, match=r"implementation='cudnn' on cpu\. Expected an NVIDIA"
    ):
        cudnn.attention(*inputs(), PLAIN)
