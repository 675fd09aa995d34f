"""Models of plain kernels are the same models, and so are PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.contest import check_agreement
from benchmarks.peer_models import ENTRIES, Entry, _changes, model_contests
from benchmarks.plain_kernels import plainly
from benchmarks.torch_models import torch_network
from biojax import kernels
from biojax.bench.models import initialise
from biojax.errors import ConfigError
from biojax.models import create_model

PLANE = {
    "unet": {"out_channels": 2, "features": (2, 4)},
    "resenc_unet_m": {"out_channels": 2, "features": (2, 4), "num_blocks": (1, 1)},
    "mednext_s": {
        "out_channels": 2,
        "features": 4,
        "num_blocks": (1, 1, 1),
        "expansion_ratio": (2, 2, 2),
    },
    "residual_unet": {"out_channels": 2, "features": (2, 4), "num_convs": 1},
    "resnet3d_18": {"num_classes": 2, "features": (2, 4), "num_blocks": (1, 1)},
}
SMALL = [
    Entry("unet", 8, {"features": (2, 4)}),
    Entry("resenc_unet_m", 8, {"features": (2, 4), "num_blocks": (1, 1)}),
    Entry("mednext_s", 8, {k: v for k, v in PLANE["mednext_s"].items() if k != "out_channels"}),
    Entry("residual_unet", 8, {"features": (2, 4), "num_convs": 1}),
    Entry("resnet3d_18", 20, {"features": (2, 2, 4, 4), "num_blocks": (1,) * 4}, 2, rate=0.1),
]


@pytest.mark.parametrize("name", PLANE)
def test_a_plain_model_is_the_same_without_our_kernels(name, quickly):
    model = create_model(name, spatial_dims=2, **PLANE[name])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 1), np.float32))
    variables = initialise(model, x)

    def apply(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    plain = plainly(apply)
    assert kernels.explain(plain, variables, x) == []
    assert kernels.explain(apply, variables, x)  # they are back in their places
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.jit(apply, compiler_options=quickly)(variables, x),
        jax.jit(plain, compiler_options=quickly)(variables, x),
    )


def test_changes_are_those_of_layers():
    before = {"b": {"kernel": np.ones((2, 1)), "bias": np.zeros(1)}, "a": {"scale": np.ones(1)}}
    after = jax.tree.map(lambda x: x + 1, before)
    after["b"]["bias"] = np.full(1, 3.0)
    found = _changes(before, after)
    np.testing.assert_array_equal(found[0], [1.0])
    np.testing.assert_array_equal(found[1], [3.0, 1.0, 1.0])


def test_every_entry_is_in_the_contest():
    names = [f"{c.name}/{c.mode}" for c in model_contests()]
    assert len(set(names)) == len(names) == 2 * len(ENTRIES)
    assert names[:2] == ["unet/patch_64/forward", "unet/patch_64/train"]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # those of other libraries
@pytest.mark.parametrize(
    ("entry", "mode"),
    [
        pytest.param(entry, mode, id=f"{entry.name}-{mode}")
        for entry in SMALL
        for mode in ("forward", "train")
        if mode == "train" or entry.name in ("unet", "resnet3d_18")  # a train step is forward too
    ],
)
def test_all_start_from_one_model_and_step_alike(entry, mode):
    for module in ("torch", "monai", "dynamic_network_architectures"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    assert [e.name for e in SMALL] == [e.name for e in ENTRIES]
    (contest,) = [c for c in model_contests([entry]) if c.mode == mode]
    contenders = contest.prepare()
    assert [*contenders] == ["biojax", "xla", "torch contiguous", "torch channels_last"]
    assert contenders["biojax"].choices
    assert contenders["xla"].choices == ()
    for each in contenders.values():
        each.run()  # moves states on, which results must not depend on
    check_agreement(contest, contenders)


@pytest.mark.peers
def test_a_model_that_pytorch_has_not():
    pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(ConfigError, match="got a CNNClassifier"):
        torch_network(create_model("cnn_classifier"), "contiguous")
