"""The contests: all contenders do the same, and ratios are read the right way round."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import peers
from benchmarks.contest import Contender, Contest, check_agreement
from benchmarks.peer_kernels import _PLAIN, _prepare, kernel_contests
from benchmarks.peer_unet import PlainUNet, unet_contests
from benchmarks.peers import Result, hold, summary, table
from biojax.bench.kernels import call, make_inputs
from biojax.errors import DataError
from biojax.kernels.specs import LARGE, Spec
from biojax.models import create_model

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
    "resize": [Spec("larger", ((1, 2, 3, 3),), {"size": 4})],
    "instance_norm": [Spec("all", ((2, 3, 4, 6), (6,), (6,)))],
    "group_norm": [Spec("all", ((2, 3, 4, 6), (6,), (6,)), {"num_groups": 3})],
    "layer_norm": [Spec("all", ((2, 3, 4, 6), (6,), (6,)))],
    "batch_norm": [Spec("all", ((2, 3, 4, 6), (6,), (6,)))],
    "linear_scan": [Spec("all", ((2, 5, 3), (2, 5, 3), (2, 3)))],
    "rnn": [Spec("all", ((2, 5, 3), (3, 4), (4, 4), (4,), (2, 4)))],
    "lstm": [Spec("all", ((2, 5, 3), (3, 16), (4, 16), (16,), (2, 4), (2, 4)))],
    "gru": [Spec("all", ((2, 5, 3), (3, 12), (4, 12), (12,), (2, 4)))],
    "attention": [
        Spec("self", ((2, 5, 2, 4),) * 3),
        Spec("causal", ((2, 5, 2, 4),) * 3, {"is_causal": True}),
    ],
}
CASES = [
    pytest.param(kernel, spec, id=f"{kernel}-{spec.name}")
    for kernel, specs in SMALL.items()
    for spec in specs
]


@pytest.fixture
def results() -> list[Result]:
    """Two convolutions, one of them not of three dimensions."""
    rounds = {
        "biojax": (1.0, 2.0, 1.0),
        "xla": (4.0, 8.0, 4.0),
        "torch contiguous": (3.0, 6.0, 3.0),
        "torch channels_last": (0.5, 1.0, 0.5),
    }
    flat = {"biojax": (2.0, 2.0), "xla": (2.0, 2.0)}
    return [
        Result("conv/3d_64_c32", "forward", "float32", rounds),
        Result("conv/2d_256_c64", "forward", "float32", flat),
    ]


@pytest.mark.parametrize(("kernel", "spec"), CASES)
def test_the_plain_way_gives_the_same(kernel, spec):
    assert list(SMALL) == list(LARGE)
    arrays = make_inputs(kernel, spec)
    ours, plain = call(kernel, spec)(*arrays), _PLAIN[kernel](spec.options, *arrays)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_plain_unet_has_our_parameters():
    ours = create_model("unet", out_channels=3, features=(2, 4))
    plain, x = PlainUNet(3, (2, 4)), jnp.ones((1, 4, 4, 4, 1))
    shapes = [jax.eval_shape(m.init, jax.random.key(0), x)["params"] for m in (ours, plain)]
    assert jax.tree.map(lambda leaf: leaf.shape, shapes[0]) == jax.tree.map(
        lambda leaf: leaf.shape, shapes[1]
    )


def contender(*arrays, has_our_weights=True) -> Contender:
    return Contender(lambda: None, lambda: [np.asarray(a) for a in arrays], has_our_weights)


def test_disagreement_is_found_before_anything_is_timed():
    ours = contender([1.0, 2.0], [3.0])
    check_agreement("x", "float32", {"biojax": ours, "xla": contender([1.0, 2.001], [3.0])})
    for rival in (contender([1.0, 2.01], [3.0]), contender([1.0, 2.0], [[3.0]])):
        with pytest.raises(DataError, match="x: xla"):
            check_agreement("x", "float32", {"biojax": ours, "xla": rival})
    check_agreement("x", "bfloat16", {"biojax": ours, "xla": contender([1.0, 2.01], [3.0])})
    for nan in (contender([1.0, np.nan], [3.0]), contender([1.0, 2.0])):
        with pytest.raises((DataError, ValueError)):
            check_agreement("x", "float32", {"biojax": ours, "xla": nan})
    other = contender([7.0, 7.0], [7.0], has_our_weights=False)
    check_agreement("x", "float32", {"biojax": ours, "torch": other})


def test_a_contest_is_held():
    contest = Contest("x/y", "forward", "float32", lambda: {"biojax": contender([1.0])})
    found = hold(contest, at_most=2, pause=0.0, turn=0.0)
    assert len(found.rounds["biojax"]) == 2
    assert found.layout is None


def test_ratios_above_one_are_in_our_favour(results):
    first, second = results
    assert first.layout == "torch channels_last"
    assert first.against("xla") == (4.0, 0.0)
    assert first.against(first.layout) == (0.5, 0.0)
    assert second.against(second.layout) is None
    line = json.loads(first.to_json({"machine": "m"}))
    assert line["against_torch"] == {"ratio": 0.5, "deviation": 0.0}
    assert line["rounds"]["xla"] == [4.0, 8.0, 4.0]
    assert json.loads(second.to_json({}))["against_torch"] is None


def test_the_table_and_the_summary(results):
    rows = table(results).splitlines()
    assert rows[2] == (
        "| conv/3d_64_c32 | forward | 1000 ms | 4000 ms | 500 ms channels_last "
        "| 4.00 ±0.00 | 0.50 ±0.00 | 3 |"
    )
    assert rows[3].endswith("| - | 1.00 ±0.00 | - | 2 |")
    assert summary(results).splitlines() == [
        "- 3-D convolution vs XLA, forward: geometric mean 4.00 over 1, "
        "least 4.00 (conv/3d_64_c32)",
        "- convolution vs XLA, forward: geometric mean 2.00 over 2, least 1.00 (conv/2d_256_c64)",
        "- everything vs XLA, forward: geometric mean 2.00 over 2, least 1.00 (conv/2d_256_c64)",
        "- convolution vs PyTorch, forward: geometric mean 0.50 over 1, "
        "least 0.50 (conv/3d_64_c32)",
        "- everything vs PyTorch, forward: geometric mean 0.50 over 1, least 0.50 (conv/3d_64_c32)",
    ]


def test_contests_are_named_apart_and_mistakes_are_answered(capsys):
    names = [f"{c.name}/{c.mode}" for c in (*kernel_contests(), *unet_contests())]
    assert len(set(names)) == len(names) == 2 * sum(map(len, LARGE.values())) + 2
    assert peers.main(["--filter", "conv/3d_65_c32/both"]) == 2
    assert "Did you mean 'conv/3d_64_c32/both'?" in capsys.readouterr().err
    assert peers.main(["--threads", "0"]) == 2
    assert "threads=0" in capsys.readouterr().err


@pytest.mark.peers
@pytest.mark.parametrize("mode", ["forward", "both"])
@pytest.mark.parametrize(("kernel", "spec"), CASES)
def test_pytorch_gives_the_same(kernel, spec, mode):
    pytest.importorskip("torch", reason="torch is not installed")
    contenders = _prepare(kernel, spec, mode)
    alone = kernel in ("linear_scan", "resize") or kernel.endswith("_norm")
    assert (len(contenders) == 2) == alone
    check_agreement(f"{kernel}/{spec.name}", "float32", contenders)


@pytest.mark.peers
def test_the_unets_are_the_same():
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("dynamic_network_architectures", reason="its U-Net is not installed")
    for contest in unet_contests(8, (2, 4), 3):
        contenders = contest.prepare()
        assert [*contenders] == ["biojax", "xla", "torch contiguous", "torch channels_last"]
        check_agreement(contest.name, "float32", contenders)
