"""The plain way and PyTorch's compute what each kernel does."""

import functools

import jax
import numpy as np
import pytest

from benchmarks import peer_kernels, torch_kernels
from benchmarks.contest import Contest, check_agreement
from benchmarks.peer_kernels import _prepare, kernel_contests
from benchmarks.plain_kernels import PLAIN
from biojax.bench.kernels import call, make_inputs
from biojax.kernels.specs import LARGE, Spec

# The large shapes in small, with the same options.
SMALL = {
    "conv": [
        Spec("3d", ((1, 4, 5, 6, 3), (3, 3, 3, 3, 4))),
        Spec("strided", ((1, 4, 6, 4, 3), (3, 3, 3, 3, 4)), {"strides": 2, "padding": 1}),
        Spec("depthwise", ((1, 6, 6, 4), (5, 5, 1, 4)), {"feature_group_count": 4}),
    ],
    "conv_transpose": [Spec("3d", ((1, 2, 3, 4, 5), (2, 2, 2, 5, 3)), {"strides": 2})],
    "max_pool": [Spec("pads", ((1, 4, 6, 4, 3),), {"window": 3, "strides": 2, "padding": 1})],
    "avg_pool": [
        Spec("2d", ((1, 4, 6, 3),), {"window": 2}),
        Spec("pads", ((1, 4, 6, 4, 3),), {"window": 3, "strides": 2, "padding": 1}),
    ],
    "resize": [
        Spec("1d", ((2, 5, 3),), {"size": 7}),
        Spec("2d", ((1, 2, 3, 3),), {"size": 4}),
        Spec("3d", ((1, 2, 5, 4, 3),), {"size": (4, 3, 2)}),
        Spec("nearest", ((1, 2, 5, 4, 3),), {"size": (4, 3, 2), "method": "nearest"}),
    ],
    "instance_norm": [
        Spec("all", ((2, 3, 4, 6), (6,), (6,))),
        Spec("one_image", ((1, 3, 4, 5, 6), (6,), (6,))),
    ],
    "group_norm": [Spec("all", ((2, 3, 4, 6), (6,), (6,)), {"num_groups": 3})],
    "layer_norm": [Spec("all", ((2, 3, 4, 6), (6,), (6,)))],
    "batch_norm": [Spec("all", ((2, 3, 4, 6), (6,), (6,)))],
    "linear_scan": [Spec("all", ((2, 5, 3), (2, 5, 3), (2, 3)))],
    "selective_scan": [Spec("all", ((2, 5, 3), (2, 5, 3), (3, 4), (2, 5, 4), (2, 5, 4)))],
    "rnn": [Spec("all", ((2, 5, 3), (3, 4), (4, 4), (4,), (2, 4)))],
    "lstm": [Spec("all", ((2, 5, 3), (3, 16), (4, 16), (16,), (2, 4), (2, 4)))],
    "gru": [Spec("all", ((2, 5, 3), (3, 12), (4, 12), (12,), (2, 4)))],
    "ssd": [Spec("all", ((2, 5, 4, 3), (2, 5, 4), (4,), (2, 5, 2, 2), (2, 5, 2, 2)))],
    "rg_lru": [Spec("all", (*((2, 5, 3),) * 3, (3,)))],
    "mlstm": [Spec("all", (*((2, 5, 2, 4),) * 2, (2, 5, 2, 3), *((2, 5, 2),) * 2))],
    "slstm": [Spec("all", ((2, 5, 2, 4, 3), (2, 3, 4, 3)))],
    "conv_lstm": [
        Spec("1d", ((2, 3, 6, 2), (3, 2, 12), (3, 3, 12), (12,), *((2, 6, 3),) * 2)),
        Spec("2d", ((2, 3, 4, 5, 2), (3, 3, 2, 12), (3, 3, 3, 12), (12,), *((2, 4, 5, 3),) * 2)),
    ],
    "conv_gru": [Spec("2d", ((2, 3, 4, 5, 2), (3, 3, 2, 9), (3, 3, 3, 9), (9,), (2, 4, 5, 3)))],
    "attention": [
        Spec("self", ((2, 5, 2, 4),) * 3),
        Spec("causal", ((2, 5, 2, 4),) * 3, {"is_causal": True}),
    ],
    "axial_attention": [
        Spec("first", ((2, 4, 3, 5, 2, 3),) * 3, {"axis": 1}),
        Spec("last", ((2, 4, 3, 2, 3),) * 3, {"axis": 2}),
    ],
    "linear_attention": [
        Spec("self", ((2, 5, 2, 4),) * 3),
        Spec("causal", ((2, 5, 2, 4),) * 3, {"is_causal": True}),
    ],
    "neighborhood_attention": [
        Spec("2d", ((2, 5, 4, 2, 3),) * 3, {"kernel_size": 3}),
        Spec("3d", ((1, 4, 3, 5, 1, 3),) * 3, {"kernel_size": 3}),
    ],
    "window_attention": [
        Spec("3d", (*((2, 4, 2, 6, 2, 3),) * 3, (2, 8, 8)), {"window_size": 2}),
        Spec("shifted", (*((2, 6, 3, 3, 2, 3),) * 3, (2, 27, 27)), {"window_size": 3, "shift": 1}),
    ],
}
CASES = [
    pytest.param(kernel, spec, id=f"{kernel}-{spec.name}")
    for kernel, specs in SMALL.items()
    for spec in specs
]
# What only models ask of the plain way.
MORE = [
    pytest.param(
        "conv_transpose",
        Spec("", ((1, 3, 4, 4), (3, 3, 1, 4)), {"strides": 2, "padding": pad, **groups}),
        id=f"conv_transpose-groups-{pad}",
    )
    for pad in (1, "SAME", ((1, 2), (1, 2)))
    for groups in ({"feature_group_count": 4},)
]
MORE += [
    pytest.param(
        "conv_transpose",
        Spec("", ((1, 3, 4, 4), (3, 3, 4, 2)), {"strides": 2, "padding": ((1, 2), (1, 2))}),
        id="conv_transpose-explicit",
    ),
    pytest.param("instance_norm", Spec("", ((2, 3, 4, 6),)), id="instance_norm-unscaled"),
]


@pytest.mark.parametrize(("kernel", "spec"), CASES + MORE)
def test_the_plain_way_gives_the_same(kernel, spec, quickly):
    @functools.partial(jax.jit, compiler_options=quickly)
    def both(*arrays):
        return call(kernel, spec)(*arrays), PLAIN[kernel](*arrays, **spec.options)

    ours, plain = both(*make_inputs(kernel, spec))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_there_is_a_contest_for_every_large_shape():
    assert list(SMALL) == list(LARGE) == list(PLAIN)
    names = [f"{c.name}/{c.mode}" for c in kernel_contests()]
    assert len(set(names)) == len(names) == 2 * sum(map(len, LARGE.values()))


@pytest.mark.parametrize(
    ("kernel", "mode", "rivals"),
    [
        ("attention", "both", ["biojax", "torch contiguous"]),
        ("neighborhood_attention", "forward", ["biojax", "torch contiguous"]),
        ("neighborhood_attention", "both", ["biojax"]),
        ("linear_attention", "both", ["biojax", "xla", "torch contiguous"]),
    ],
)
def test_who_would_hold_too_many_scores_sits_out(kernel, mode, rivals, monkeypatch):
    """Of few numbers, where 100 bytes are many."""
    monkeypatch.setattr(peer_kernels, "_MOST_BYTES", 100)
    monkeypatch.setattr(torch_kernels, "MASK_BYTES", 100)
    monkeypatch.setattr(peer_kernels, "jax_contender", lambda *_: None)
    monkeypatch.setattr(peer_kernels, "torch_kernels", lambda *_: {"torch contiguous": None})
    assert list(_prepare(kernel, SMALL[kernel][0], mode)) == rivals


@pytest.mark.peers
@pytest.mark.parametrize("mode", ["forward", "both"])
@pytest.mark.parametrize(("kernel", "spec"), CASES)
def test_pytorch_gives_the_same(kernel, spec, mode):
    pytest.importorskip("torch", reason="torch is not installed")
    contenders = _prepare(kernel, spec, mode)
    alone = {"linear_scan", "rg_lru", "mlstm", "slstm", "conv_gru"}
    assert any(name.startswith("torch") for name in contenders) == (kernel not in alone)
    named = {"rg_lru": "linear_scan", "axial_attention": "attention"}.get(kernel, kernel)
    assert contenders["biojax"].choices[0].startswith(f"{named}: ")
    assert contenders["xla"].choices == ()
    assert min(contenders[name].compile_seconds for name in ("biojax", "xla")) > 0
    check_agreement(Contest(kernel, mode, spec.dtype, dict), contenders)


@pytest.mark.peers
def test_pytorch_sits_out_in_bfloat16():
    spec = SMALL["avg_pool"][0]._replace(dtype="bfloat16")
    assert list(_prepare("avg_pool", spec, "forward")) == ["biojax", "xla"]


@pytest.mark.peers
@pytest.mark.parametrize("spec", SMALL["neighborhood_attention"], ids=lambda spec: spec.name)
def test_pytorch_gives_the_same_where_masks_are_made_anew(spec, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(torch_kernels, "MASK_BYTES", 0)
    contenders = _prepare("neighborhood_attention", spec, "forward")
    check_agreement(Contest("", "forward", spec.dtype, dict), contenders)
