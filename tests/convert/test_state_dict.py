"""Names, layouts, and what does not fit."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.convert import convert_state_dict
from biojax.convert.module import Module
from biojax.convert.names import module_names, plain_name
from biojax.convert.state_dict import _converted, input_channels
from biojax.errors import CheckpointError, ConfigError, DataError, ShapeError
from biojax.models import (
    UNETR,
    MedNeXt,
    Primus,
    ResEncUNet,
    ResidualUNet,
    ResNet3D,
    UNet,
    ViT,
    create_model,
)

MODELS = {
    "unet": UNet(3, 1, (2, 4, 6), num_convs=1),
    "unet with heads": UNet(3, 2, (2, 4, 6), num_convs=1, deep_supervision=True),
    "resenc_unet": ResEncUNet(3, 1, (2, 4), num_blocks=(1, 2)),
    "mednext": MedNeXt(3, 1, 2, (1, 1, 1), (2, 3, 2)),
    "residual_unet": ResidualUNet(3, 1, (2, 4), num_convs=1, norm="batch"),
    "resnet3d": ResNet3D(3, 1, (2, 4), (1, 1)),
    "unetr": UNETR(3, 1, 8, 8, 2, 4, 1, 2),
    "primus": Primus(3, 1, 8, 4, 4, 1, 2, qk_norm=True),
    "vit": ViT(3, 2, 8, 4, 4, 1, 2, qk_norm=True, layer_scale=0.1),
    "vit with a pool": ViT(3, 1, 8, 4, 4, 1, 2, pool="attention"),
}

# Every name that the originals give their modules.
NAMES = {
    "unet": """
        encoder.stages.0.0.convs.0.conv encoder.stages.0.0.convs.0.norm
        encoder.stages.1.0.convs.0.conv encoder.stages.1.0.convs.0.norm
        encoder.stages.2.0.convs.0.conv encoder.stages.2.0.convs.0.norm
        decoder.transpconvs.0 decoder.stages.0.convs.0.conv decoder.stages.0.convs.0.norm
        decoder.transpconvs.1 decoder.stages.1.convs.0.conv decoder.stages.1.convs.0.norm
        decoder.seg_layers.1""",
    "resenc_unet": """
        encoder.stem.convs.0.conv encoder.stem.convs.0.norm
        encoder.stages.0.blocks.0.conv1.conv encoder.stages.0.blocks.0.conv1.norm
        encoder.stages.0.blocks.0.conv2.conv encoder.stages.0.blocks.0.conv2.norm
        encoder.stages.1.blocks.0.conv1.conv encoder.stages.1.blocks.0.conv1.norm
        encoder.stages.1.blocks.0.conv2.conv encoder.stages.1.blocks.0.conv2.norm
        encoder.stages.1.blocks.0.skip.conv encoder.stages.1.blocks.0.skip.norm
        encoder.stages.1.blocks.1.conv1.conv encoder.stages.1.blocks.1.conv1.norm
        encoder.stages.1.blocks.1.conv2.conv encoder.stages.1.blocks.1.conv2.norm
        decoder.transpconvs.0 decoder.stages.0.convs.0.conv decoder.stages.0.convs.0.norm
        decoder.seg_layers.0""",
    "mednext": """
        stem out_0.conv_out down_0.res_conv up_0.res_conv
        enc_block_0.0.conv1 enc_block_0.0.norm enc_block_0.0.conv2 enc_block_0.0.conv3
        down_0.conv1 down_0.norm down_0.conv2 down_0.conv3
        bottleneck.0.conv1 bottleneck.0.norm bottleneck.0.conv2 bottleneck.0.conv3
        up_0.conv1 up_0.norm up_0.conv2 up_0.conv3
        dec_block_0.0.conv1 dec_block_0.0.norm dec_block_0.0.conv2 dec_block_0.0.conv3""",
    "residual_unet": """
        model.0.conv.unit0.conv model.0.conv.unit0.adn.N model.0.conv.unit0.adn.A model.0.residual
        model.1.submodule.conv.unit0.conv model.1.submodule.conv.unit0.adn.N
        model.1.submodule.conv.unit0.adn.A model.1.submodule.residual
        model.2.0.conv model.2.0.adn.N model.2.0.adn.A model.2.1.conv.unit0.conv""",
    "resnet3d": """
        conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2
        layer2.0.conv1 layer2.0.bn1 layer2.0.conv2 layer2.0.bn2
        layer2.0.downsample.0 layer2.0.downsample.1 fc""",
    "unetr": """
        vit.patch_embedding.patch_embeddings vit.patch_embedding.position_embeddings
        vit.blocks.0.norm1 vit.blocks.0.attn.qkv vit.blocks.0.attn.out_proj vit.blocks.0.norm2
        vit.blocks.0.mlp.linear1 vit.blocks.0.mlp.linear2 vit.norm
        encoder1.layer.conv1.conv encoder1.layer.conv2.conv
        encoder2.transp_conv_init.conv encoder2.blocks.0.0.conv encoder2.blocks.0.1.conv1.conv
        encoder2.blocks.0.1.conv2.conv encoder3.transp_conv_init.conv
        decoder4.transp_conv.conv decoder4.conv_block.conv1.conv decoder4.conv_block.conv2.conv
        decoder4.conv_block.conv3.conv
        decoder3.transp_conv.conv decoder3.conv_block.conv1.conv decoder3.conv_block.conv2.conv
        decoder3.conv_block.conv3.conv
        decoder2.transp_conv.conv decoder2.conv_block.conv1.conv decoder2.conv_block.conv2.conv
        decoder2.conv_block.conv3.conv out.conv.conv""",
    "primus": """
        down_projection.proj eva.pos_embed eva.blocks.0.norm1 eva.blocks.0.norm2
        eva.blocks.0.gamma_1 eva.blocks.0.gamma_2 eva.blocks.0.attn.q_proj
        eva.blocks.0.attn.k_proj eva.blocks.0.attn.v_proj eva.blocks.0.attn.q_norm
        eva.blocks.0.attn.k_norm eva.blocks.0.attn.norm eva.blocks.0.attn.proj
        eva.blocks.0.mlp.fc1_g eva.blocks.0.mlp.fc1_x eva.blocks.0.mlp.norm eva.blocks.0.mlp.fc2
        eva.norm up_projection.decode.0.0 up_projection.decode.0.1 up_projection.decode.1""",
}
VIT = """
    pos_embed patch_embed.proj norm head blocks.0.norm1 blocks.0.norm2
    blocks.0.attn.qkv blocks.0.attn.proj blocks.0.mlp.fc1 blocks.0.mlp.fc2"""
NAMES["vit"] = f"""
    {VIT} cls_token blocks.0.attn.q_norm blocks.0.attn.k_norm
    blocks.0.ls1.gamma blocks.0.ls2.gamma"""
NAMES["vit with a pool"] = f"""
    {VIT} attn_pool.latent attn_pool.q attn_pool.kv attn_pool.proj attn_pool.norm
    attn_pool.mlp.fc1 attn_pool.mlp.fc2"""
NAMES["unet with heads"] = NAMES["unet"] + " decoder.seg_layers.0"


@pytest.mark.parametrize("name", MODELS)
def test_every_name_fills_every_variable(name, torch_state):
    model, state = MODELS[name], torch_state(MODELS[name], 2)
    leaf = re.compile(r"\.(weight|bias|running_mean|running_var)$")
    assert {leaf.sub("", key) for key in state} == set(NAMES[name].split())
    variables = convert_state_dict(state, model)
    x = jax.ShapeDtypeStruct((1, *[8] * model.spatial_dims, 2), jnp.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x)
    expected = {k: v for k, v in expected.items() if k != "intermediates"}
    kind = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, str(leaf.dtype)))
    assert kind(variables) == kind(expected)
    assert input_channels(state, model) == 2


def test_values_land_where_they_belong(torch_state):
    state = torch_state(MODELS["resnet3d"])
    variables = convert_state_dict(state, MODELS["resnet3d"])
    params, stats = variables["params"], variables["batch_stats"]
    np.testing.assert_array_equal(
        params["stage1_block0_conv1"]["conv"]["kernel"][2, 1, 3],
        state["layer2.0.conv1.weight"][3, 1, 2],
    )
    np.testing.assert_array_equal(params["head"]["kernel"], state["fc.weight"].T)
    np.testing.assert_array_equal(params["stem"]["norm"]["scale"], state["bn1.weight"])
    np.testing.assert_array_equal(stats["stem"]["norm"]["mean"], state["bn1.running_mean"])
    np.testing.assert_array_equal(stats["stem"]["norm"]["var"], state["bn1.running_var"])
    state = torch_state(MODELS["residual_unet"])
    params = convert_state_dict(state, MODELS["residual_unet"])["params"]
    slope = state["model.2.0.adn.A.weight"]
    assert slope.shape == (1,)
    assert params["up0"]["prelu"]["negative_slope"] == slope[0]


def test_one_array_there_may_be_several_here(torch_state):
    state = torch_state(MODELS["vit"])
    state["pos_embed"] = state["pos_embed"][None]  # as PyTorch has it
    params = convert_state_dict(state, MODELS["vit"])["params"]
    attention, qkv = params["block0"]["attention"], state["blocks.0.attn.qkv.weight"]
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(attention[name]["kernel"], qkv[4 * i : 4 * i + 4].T)
        bias = state["blocks.0.attn.qkv.bias"][4 * i : 4 * i + 4]
        np.testing.assert_array_equal(attention[name]["bias"], bias)
    table = params["positions"]["table"].reshape(4, 4)
    np.testing.assert_array_equal(params["class_position"], state["pos_embed"][0, 0])
    np.testing.assert_array_equal(table, state["pos_embed"][0, 1:])
    np.testing.assert_array_equal(params["class_token"], state["cls_token"][0])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("pos_embed", (1, 6, 4), r"\(1, 6, 4\)\. Expected \(4, 4\) in rows 1 to the last for pos"),
        ("cls_token", (), r"\(\)\. Expected \(1, 4\) for class_token"),
        ("blocks.0.attn.qkv.weight", (8, 4), r"\(8, 4\)\. Expected \(4, 4\) in rows 8 to 12 for"),
        ("blocks.0.attn.qkv.weight", (12, 5), r"Expected \(4, 4\) in rows 0 to 4 for block0/att"),
    ],
)
def test_parts_that_do_not_fit(name, shape, message, torch_state):
    state = torch_state(MODELS["vit"]) | {name: np.ones(shape, np.float32)}
    with pytest.raises(ShapeError, match=message):
        convert_state_dict(state, MODELS["vit"])


def test_what_the_original_never_uses_is_left_out(torch_state, monkeypatch):
    state = torch_state(MODELS["resnet3d"])
    expected = convert_state_dict(state, MODELS["resnet3d"])
    idle = {"index": np.zeros(2, int), "extra.weight": np.ones(3, np.float32)}
    with pytest.raises(CheckpointError, match=r"2 names that it has no place for: extra\.weight"):
        convert_state_dict(state | idle, MODELS["resnet3d"])
    known = [*module_names(MODELS["resnet3d"]), Module("index", "", "array"), Module("extra", "")]
    monkeypatch.setattr("biojax.convert.state_dict.module_names", lambda _: known)
    found = convert_state_dict(state | idle, MODELS["resnet3d"])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("model", "idle"),
    [
        ("unetr", "norm_cross_attn.bias cross_attn.to_q.weight cross_attn.out_proj.bias"),
        ("primus", "mask_token"),
    ],
)
def test_names_that_the_originals_carry_in_vain(model, idle, torch_state):
    block = "vit.blocks.0." if model == "unetr" else ""
    state = torch_state(MODELS[model])
    extra = {block + name: np.ones(4, np.float32) for name in idle.split()}
    found = convert_state_dict(state | extra, MODELS[model])
    jax.tree.map(np.testing.assert_array_equal, found, convert_state_dict(state, MODELS[model]))


@pytest.mark.parametrize("groups", [1, 3])
def test_transposed_kernels_by_their_definition(groups):
    """PyTorch: y[f, stride * i + k - padding] is the sum of x[c, i] w[c, f, k]."""
    rng, stride, padding = np.random.default_rng(0), 2, 1
    x = rng.standard_normal((4, 3)).astype(np.float32)
    w = rng.standard_normal((3, 1 if groups == 3 else 5, 3)).astype(np.float32)
    channels = 3 if groups == 3 else 5
    expected = np.zeros((stride * 3 + 3, channels))
    for i, c, k in np.ndindex(4, 3, 3):
        for f in range(channels):
            if groups == 1 or c == f:
                expected[stride * i + k, f] += x[i, c] * w[c, f if groups == 1 else 0, k]
    expected = expected[padding:-padding]
    layout = "transposed" if groups == 1 else "depthwise transposed"
    leaf = jax.ShapeDtypeStruct((3, 3 // groups, channels), jnp.float32)
    kernel = jnp.asarray(_converted("up.weight", w, leaf, Module("up", "up", layout)))
    spread = np.zeros((1, 7, 3), np.float32)
    spread[0, ::2] = x
    y = kernels.conv(jnp.asarray(spread), kernel, padding=1, feature_group_count=groups)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("stem.weight", "stem.weight"),
        ("module._orig_mod.stem.weight", "stem.weight"),
        ("encoder.stages.1.blocks.0.skip.1.all_modules.1.bias", None),
        ("encoder.stages.1.blocks.0.skip.0.norm.bias", None),
        ("decoder.encoder.stages.1.blocks.0.skip.1.norm.bias", None),
        ("decoder.stages.1.convs.0.all_modules.0.weight", "decoder.stages.1.convs.0.conv.weight"),
    ],
)
def test_second_names(name, plain):
    assert plain_name(name) == (plain or "encoder.stages.1.blocks.0.skip.norm.bias")


def test_what_may_be_left_out_and_what_counts_once(torch_state):
    state = torch_state(MODELS["unet"])
    expected = convert_state_dict(state, MODELS["unet"])
    extra = {
        "decoder.seg_layers.0.weight": np.zeros((3, 4, 1), np.float32),
        "decoder.seg_layers.0.bias": np.zeros(3, np.float32),
        "encoder.stages.0.0.convs.0.norm.num_batches_tracked": np.array(7),
    }
    extra |= {f"decoder.{k}": v for k, v in state.items() if k.startswith("encoder")}
    found = convert_state_dict(
        {f"module.{k}": v for k, v in (state | extra).items()}, MODELS["unet"]
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    state = torch_state(MODELS["mednext"]) | {"dummy_tensor": np.ones(1, np.float32)}
    convert_state_dict(state, MODELS["mednext"])


def test_wide_floats_become_those_of_the_model(torch_state):
    state = {k: v.astype(np.float64) for k, v in torch_state(MODELS["unet"]).items()}
    leaves = jax.tree.leaves(convert_state_dict(state, MODELS["unet"]))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    half = MODELS["unet"].clone(param_dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(convert_state_dict(state, half))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}


CONV = "encoder.stages.0.0.convs.0.conv"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {f"{CONV}.wieght": np.ones(2, np.float32)},
            CheckpointError,
            rf"1 names that it has no place for: {CONV}\.wieght\. Expected the state dict",
        ),
        ({f"{CONV}.bias": None}, CheckpointError, rf"nothing for 1 names: {CONV}\.bias"),
        (
            {f"{CONV}.bias": None, f"{CONV}.bais": np.ones(2, np.float32)},
            CheckpointError,
            rf"no place for: {CONV}\.bais; and nothing for .*mean '{CONV}\.bias'\?",
        ),
        (
            {f"{CONV}.weight": np.ones((2, 1, 3, 3), np.float32)},
            ShapeError,
            rf"{CONV}\.weight: got \(2, 1, 3, 3\)\. Expected \(2, 1, 3\) for encoder0_block0/conv",
        ),
        (
            {"decoder.transpconvs.0.weight": np.ones((4, 6, 2), np.float32)},
            ShapeError,
            r"got \(4, 6, 2\)\. Expected \(6, 4, 2\) for up1",
        ),
        ({f"{CONV}.bias": np.ones(2, int)}, ShapeError, "int64. Expected floating point"),
        ({f"{CONV}.bias": np.array([1, np.nan])}, DataError, "not finite"),
        ({f"decoder.{CONV}.bias": np.ones(2)}, DataError, "under the second name"),
    ],
)
def test_what_does_not_fit(change, error, message, torch_state):
    state = torch_state(MODELS["unet"]) | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(error, match=message):
        convert_state_dict(state, MODELS["unet"])


def test_another_model_altogether(torch_state):
    with pytest.raises(CheckpointError, match=r"\d+ names .* and \d+ more; and nothing for"):
        convert_state_dict(torch_state(MODELS["mednext"]), MODELS["resnet3d"])
    with pytest.raises(CheckpointError, match="nothing for"):
        convert_state_dict({}, MODELS["unet"])
    with pytest.raises(ConfigError, match=r"a CNNClassifier. Expected one of UNet, ResEncUNet"):
        convert_state_dict({}, create_model("cnn_classifier"))
