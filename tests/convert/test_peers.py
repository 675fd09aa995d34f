"""Converted models against their PyTorch originals, with random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.convert import convert_state_dict, load_weights, read_state_dict, save_weights
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
    upkern,
)

torch = pytest.importorskip("torch", reason="torch is not installed")
nets = pytest.importorskip("monai.networks.nets", reason="monai is not installed")
dna = pytest.importorskip(
    "dynamic_network_architectures.architectures.unet", reason="its U-Nets are not installed"
)

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # those of other libraries
]


def randomised(net):
    """Every parameter and statistic random, so that none can be taken for another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.dtype.is_floating_point:
                fan_in = value[0].numel() if value.ndim > 1 else 4
                value.copy_(torch.randn(value.shape, generator=generator) / fan_in**0.5)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return net.eval()


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def arrays(net) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def run(net, x: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        y = net(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
    parts = y if isinstance(y, list | tuple) else [y]
    return [np.moveaxis(part.numpy(), 1, -1) for part in parts]


def compare(net, model, x, *, names=lambda name: name, **options):
    state = {names(name): value for name, value in arrays(net).items()}
    variables = convert_state_dict(state, model)
    y = jax.jit(functools.partial(model.apply, **options))(variables, x)
    y = y if isinstance(y, tuple) else (y,)
    expected = run(net, x)
    assert [part.shape for part in y] == [part.shape for part in expected]
    for a, b in zip(y, expected, strict=True):
        assert np.abs(b).max() > 1e-3
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < 1e-4, error


def conv_of(spatial_dims: int) -> dict:
    kind = torch.nn
    return {
        "conv_op": (kind.Conv1d, kind.Conv2d, kind.Conv3d)[spatial_dims - 1],
        "norm_op": (kind.InstanceNorm1d, kind.InstanceNorm2d, kind.InstanceNorm3d)[
            spatial_dims - 1
        ],
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "conv_bias": True,
        "nonlin": kind.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_unet(deep_supervision):
    features, strides = (4, 6, 8), (1, (1, 2, 2), 2)
    kernels = ((1, 3, 3), (3, 3, 3), (3, 3, 3))  # as planned for thick slices
    net = dna.PlainConvUNet(
        2, 3, features, kernel_sizes=kernels, strides=strides, n_conv_per_stage=2, num_classes=3,
        n_conv_per_stage_decoder=2, deep_supervision=deep_supervision, **conv_of(3),
    )  # fmt: skip
    fields = {"kernel_size": kernels, "deep_supervision": deep_supervision}
    model = UNet(3, features=features, strides=strides, **fields)
    compare(randomised(net), model, image(2, 8, 12, 16, 2), train=deep_supervision)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_resenc_unet(spatial_dims, deep_supervision):
    features, blocks = (4, 6, 6), (1, 2, 2)
    kernels = ((1,) + (3,) * (spatial_dims - 1), (3,) * spatial_dims, (3,) * spatial_dims)
    net = dna.ResidualEncoderUNet(
        1, 3, features, kernel_sizes=kernels, strides=(1, 2, 2), n_blocks_per_stage=blocks,
        num_classes=2, n_conv_per_stage_decoder=1, deep_supervision=deep_supervision,
        **conv_of(spatial_dims),
    )  # fmt: skip
    fields = {"kernel_size": kernels, "deep_supervision": deep_supervision}
    model = ResEncUNet(2, spatial_dims, features, num_blocks=blocks, **fields)
    x = image(2, 8, 12, 8, 1)[:, : 8 if spatial_dims == 3 else 1]
    x = x if spatial_dims == 3 else x[:, 0]
    compare(randomised(net), model, x, train=deep_supervision)


RATIOS = (2, 3, 4, 3, 2)  # differ, so that those of the way down can be told apart


def monai_mednext(kernel_size: int, deep_supervision: bool = False):
    """MONAI's network with the authors' expansion ratios on the way down."""
    net = nets.MedNeXt(
        3, 4, 2, 3, encoder_expansion_ratio=RATIOS[:2], decoder_expansion_ratio=RATIOS[3:],
        bottleneck_expansion_ratio=RATIOS[2], kernel_size=kernel_size, blocks_down=(1, 2),
        deep_supervision=deep_supervision, use_residual_connection=True, blocks_bottleneck=1,
        blocks_up=(2, 1),
    )  # fmt: skip
    down = type(net.down_blocks[0])
    for i, block in enumerate(net.down_blocks):
        c = block.conv3.out_channels
        net.down_blocks[i] = down(c // 2, c, RATIOS[i + 1], kernel_size, True)
    return randomised(net)


def authors_name(name: str) -> str:
    """What the authors' code calls a module of MONAI's network of two steps."""
    parts = name.split(".")
    stages = {"enc_stages": "enc_block", "down_blocks": "down"}
    reversed_ = {"dec_stages": "dec_block", "up_blocks": "up"}
    if parts[0] in stages:
        return ".".join([f"{stages[parts[0]]}_{parts[1]}", *parts[2:]])
    if parts[0] in reversed_:
        return ".".join([f"{reversed_[parts[0]]}_{1 - int(parts[1])}", *parts[2:]])
    if parts[0] == "out_blocks":
        return ".".join([f"out_{2 - int(parts[1])}", *parts[2:]])
    return name


def mednext(kernel_size: int, **fields) -> MedNeXt:
    blocks = (1, 2, 1, 2, 1)
    return MedNeXt(3, 3, 4, blocks, RATIOS, kernel_size, **fields)


@pytest.mark.parametrize("names", [lambda name: name, authors_name], ids=["monai", "authors"])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_mednext(kernel_size, names):
    net = monai_mednext(kernel_size)
    compare(net, mednext(kernel_size), image(2, 8, 12, 8, 2), names=names)


@pytest.mark.parametrize("names", [lambda name: name, authors_name], ids=["monai", "authors"])
def test_mednext_with_deep_supervision(names):
    net = monai_mednext(3, deep_supervision=True).train()  # it has no running statistics
    model = mednext(3, deep_supervision=True)
    compare(net, model, image(2, 8, 8, 8, 2), names=names, train=True)


def test_the_heads_of_deep_supervision_may_be_left_out():
    net = monai_mednext(3, deep_supervision=True)
    net.register_parameter("dummy_tensor", torch.nn.Parameter(torch.ones(1)))
    compare(net, mednext(3), image(1, 8, 8, 8, 2))


def test_a_whole_mednext():
    net = randomised(nets.MedNextS(spatial_dims=3, in_channels=1, out_channels=2))
    compare(net, create_model("mednext_s", out_channels=2), image(1, 32, 32, 32, 1))


def test_upkern_is_trilinear_interpolation():
    small, large = convert_state_dict(arrays(monai_mednext(3)), mednext(3)), monai_mednext(5)
    with torch.no_grad():
        for name, value in monai_mednext(3).state_dict().items():
            target = large.state_dict()[name]
            if value.shape == target.shape:
                target.copy_(value)
            else:
                size = target.shape[2:]
                target.copy_(torch.nn.functional.interpolate(value, size, mode="trilinear"))
    expected = convert_state_dict(arrays(large), mednext(5))
    x = jax.ShapeDtypeStruct((1, 8, 8, 8, 2), jnp.float32)
    shapes = jax.eval_shape(mednext(5).init, jax.random.key(0), x)
    grown = upkern(small["params"], shapes["params"])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        grown,
        expected["params"],
    )


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_residual_unet(norm):
    features, strides = (4, 6, 8), ((1, 2, 2), 2)
    net = nets.UNet(3, 2, 3, features, strides, num_res_units=2, norm=norm)
    model = ResidualUNet(3, features=features, strides=strides, norm=norm)
    compare(randomised(net), model, image(2, 4, 8, 12, 2))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_residual_unet_of_three_convolutions(spatial_dims):
    features, strides = (4, 6, 8, 6), (2, 1, 2)
    net = nets.UNet(spatial_dims, 1, 2, features, strides, num_res_units=3, norm="batch")
    model = ResidualUNet(2, spatial_dims, features, strides, num_convs=3, norm="batch")
    compare(randomised(net), model, image(2, *[8] * spatial_dims, 1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("block", "bottleneck"), [("basic", False), ("bottleneck", True)])
def test_resnet3d(block, bottleneck, bias):
    features, blocks = (4, 6, 8, 10), (1, 2, 1, 1)
    net = nets.ResNet(
        block, list(blocks), list(features), 3, 2, conv1_t_stride=2, num_classes=5,
        bias_downsample=bias,
    )  # fmt: skip
    fields = {"stem_strides": 2, "shortcut_bias": bias}
    model = ResNet3D(5, 3, features, blocks, bottleneck, **fields)
    compare(randomised(net), model, image(2, 17, 20, 24, 2))


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_whole_resnets(depth):
    make = getattr(nets, f"resnet{depth}")
    net = randomised(make(spatial_dims=3, n_input_channels=1, num_classes=2))
    model = create_model(f"resnet3d_{depth}", num_classes=2)
    compare(net, model, image(1, 16, 16, 16, 1))


VIT = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"qk_norm": True, "init_values": 0.1}, {"qk_norm": True, "layer_scale": 0.1}),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {"pool": "mean"}),
        ({"class_token": False, "global_pool": "avg"}, {"pool": "mean", "pool_norm": True}),
        ({"class_token": False, "global_pool": "map"}, {"pool": "attention"}),
    ],
)
def test_vit(theirs, ours):
    timm = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed")
    net = timm.VisionTransformer(num_classes=5, in_chans=2, **VIT, **theirs)
    model = ViT(5, 2, (8, 12), 4, 12, 2, 3, **ours)
    compare(randomised(net), model, image(2, 8, 12, 2))


@pytest.mark.parametrize(("qkv_bias", "norm"), [(False, "instance"), (True, "batch")])
def test_unetr(qkv_bias, norm):
    net = nets.UNETR(
        2, 3, (32, 32, 48), feature_size=4, hidden_size=48, mlp_dim=96, num_heads=4,
        qkv_bias=qkv_bias, norm_name=norm,
    )  # fmt: skip
    model = UNETR(3, 3, (32, 32, 48), 16, 4, 48, 12, 4, 2.0, qkv_bias, norm)
    compare(randomised(net), model, image(1, 32, 32, 48, 2))


def test_the_count_of_unetr():
    with torch.device("meta"):
        net = nets.UNETR(1, 14, 96)
    count = {name: p.numel() for name, p in net.named_parameters()}
    used = sum(n for name, n in count.items() if "cross_attn" not in name)
    assert (sum(count.values()) - used, used) == (18_432, 92_784_046)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"init_values": 0.1, "scale_attn_inner": True}, {}),
        (
            {"init_values": 0.1, "use_abs_pos_embed": False},
            {"attention_norm": False, "learned_positions": False},
        ),
        ({"scale_attn_inner": True}, {"layer_scale": None}),
    ],
)
def test_primus(theirs, ours):
    primus = pytest.importorskip(
        "dynamic_network_architectures.architectures.primus", reason="timm is not installed"
    )
    size, patch = (8, 16, 24), (2, 8, 8)
    net = primus.Primus(2, 48, patch, 3, 2, 2, size, **theirs)
    model = Primus(3, 3, size, patch, 48, 2, 2, **ours)
    compare(randomised(net), model, image(2, *size, 2))


@pytest.mark.parametrize("out_channels", [2, 14])
def test_counts_are_those_of_the_originals(out_channels):
    common = {
        "input_channels": 1, "n_stages": 6, "features_per_stage": (32, 64, 128, 256, 320, 320),
        "kernel_sizes": 3, "strides": (1, 2, 2, 2, 2, 2), "num_classes": out_channels,
        **conv_of(3),
    }  # fmt: skip
    blocks = {"n_blocks_per_stage": (1, 3, 4, 6, 6, 6), "n_conv_per_stage_decoder": 1}
    with torch.device("meta"):
        plain = dna.PlainConvUNet(n_conv_per_stage=2, n_conv_per_stage_decoder=2, **common)
        residual = dna.ResidualEncoderUNet(**blocks, **common)
    for net, published in (
        (plain, {2: 31_195_594, 14: 31_205_254}),
        (residual, {2: 102_349_770, 14: 102_359_430}),
    ):
        assert sum(p.numel() for p in net.parameters()) == published[out_channels]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_a_file_that_pytorch_wrote_to_one_that_is_shared(dtype, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="torch is not installed")
    fields = {"out_channels": 3, "features": [4, 6], "param_dtype": dtype}
    net = dna.PlainConvUNet(
        1, 2, (4, 6), kernel_sizes=3, strides=(1, 2), n_conv_per_stage=2, num_classes=3,
        n_conv_per_stage_decoder=2, **conv_of(3),
    )  # fmt: skip
    net = randomised(net).to(getattr(torch, dtype))
    safetensors.save_model(net, str(tmp_path / "theirs.safetensors"))  # keeps the second names
    model = create_model("unet", **fields)
    variables = convert_state_dict(read_state_dict(tmp_path / "theirs.safetensors"), model)
    recipe = {"name": "unet", **fields}
    save_weights(tmp_path / "ours.safetensors", variables, model=recipe, channels=1)
    loaded, read = load_weights(tmp_path / "ours.safetensors")
    assert loaded == model
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(read)} == {dtype}
    x = image(1, 8, 8, 8, 1)
    (expected,) = run(net.float(), x)
    y = np.asarray(jax.jit(loaded.apply)(read, x))
    assert np.linalg.norm(y - expected) < 1e-4 * np.linalg.norm(expected)
