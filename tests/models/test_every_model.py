"""What holds for every model: shapes, dtypes, gradients, intermediates, and what is refused."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from biojax.errors import ShapeError
from biojax.models import create_model, registry

# Small fields, the numbers of spatial axes, and for each of these an image and its axes' names.
MODELS = {
    "abmil": {"num_classes": 3, "encoder_features": (2, 3), "features": 4, "hidden_features": 3},
    "attention_classifier": {"num_classes": 3, "features": 6, "num_heads": 2, "num_layers": 2},
    "cnn_classifier": {"num_classes": 3, "features": (2, 4), "dense": 4},
    "convlstm_forecaster": {"num_frames": 2, "features": (3, 2), "kernel_size": 3, "patch_size": 4},
    "mednext_s": {
        "out_channels": 3,
        "features": 2,
        "num_blocks": (1,) * 5,
        "expansion_ratio": (2, 2, 3, 2, 2),
    },
    "nat_unet_t": {
        "out_channels": 3,
        "features": (2, 12, 12),
        "num_blocks": (2, 1),
        "num_heads": (2, 1),
        "num_convs": 1,
        "attention_kernel_size": 3,
    },
    "primus_s": {
        "out_channels": 3,
        "features": 12,
        "num_heads": 2,
        "num_layers": 2,
        "patch_size": 4,
    },
    "resenc_unet_l": {"out_channels": 3, "features": (2, 3, 4), "num_blocks": (1, 1, 2)},
    "residual_unet": {"out_channels": 3, "features": (2, 3, 4)},
    "resnet3d_18": {"num_classes": 3, "features": (2, 3), "num_blocks": (1, 2)},
    "resnet3d_50": {"num_classes": 3, "features": (2, 3), "num_blocks": (1, 1)},
    "rnn_classifier": {"num_classes": 3, "features": 4, "num_layers": 2},
    "rnn_encoder_decoder": {"num_classes": 3, "features": 4, "num_layers": 2},
    "segmamba": {
        "out_channels": 3,
        "features": (2, 3),
        "num_blocks": (1, 1),
        "hidden_features": 4,
        "state_size": 2,
    },
    "slice_rnn": {
        "num_classes": 3,
        "encoder_features": (2, 3),
        "num_blocks": (1, 1),
        "features": 4,
    },
    "swin_unetr": {
        "out_channels": 3,
        "features": 2,
        "num_blocks": (2,),
        "num_heads": (2,),
        "window_size": 3,
    },
    "umamba_bot": {"out_channels": 3, "features": (2, 3, 4), "num_convs": 1, "state_size": 2},
    "umamba_enc": {"out_channels": 3, "features": (2, 3, 4), "num_convs": 1, "state_size": 2},
    "unet": {"out_channels": 3, "features": (2, 3, 4), "num_convs": 1},
    "unetr": {
        "out_channels": 3,
        "features": 2,
        "hidden_features": 4,
        "num_heads": 2,
        "num_layers": 2,
        "patch_size": 4,
    },
    "vil_t": {"num_classes": 3, "features": 4, "num_heads": 2, "num_layers": 2, "patch_size": 4},
    "vision_mamba_t": {
        "num_classes": 3,
        "features": 4,
        "num_layers": 2,
        "state_size": 2,
        "patch_size": 4,
    },
    "vit_ti": {
        "num_classes": 3,
        "features": 4,
        "num_heads": 2,
        "num_layers": 2,
        "patch_size": 4,
    },
}
DIMS = dict.fromkeys(MODELS, (1, 2, 3)) | {"convlstm_forecaster": (2, 3), "slice_rnn": (2, 3)}
IMAGE = {1: (2, 12, 2), 2: (2, 12, 16, 2), 3: (2, 12, 16, 12, 2)}
AXES = {name: {1: "w", 2: "hw", 3: "dhw"} for name in MODELS}
AXES["abmil"] = {1: "m", 2: "mw", 3: "mhw"}
AXES["convlstm_forecaster"] = {2: "tw", 3: "thw"}
DENSE = [name for name, fields in MODELS.items() if "out_channels" in fields]
PATCHED = [
    "attention_classifier",
    "convlstm_forecaster",
    "primus_s",
    "rnn_classifier",
    "rnn_encoder_decoder",
    "unetr",
    "vil_t",
    "vision_mamba_t",
    "vit_ti",
]
SIZED = ["primus_s", "unetr", "vit_ti"]  # whose positions are made for images of one size
CASES = [pytest.param(name, dims, id=f"{name}-{dims}d") for name in MODELS for dims in DIMS[name]]


def make(name: str, dims: int, **fields):
    patch = {"patch_size": 4} if dims > 1 and name in PATCHED else {}
    size = {"image_size": IMAGE[dims][1:-1]} if name in SIZED else {}
    return create_model(name, spatial_dims=dims, **{**MODELS[name], **patch, **size, **fields})


def output_shape(name: str, dims: int) -> tuple[int, ...]:
    b, *spatial, c = IMAGE[dims]
    steps = math.prod(n // 4 for n in spatial) if dims > 1 else spatial[0]
    others = {
        **dict.fromkeys(DENSE, (b, *spatial, 3)),
        "convlstm_forecaster": (b, 2, *spatial[1:], c),
        "rnn_encoder_decoder": (b, steps, 3),
    }
    return others.get(name, (b, 3))


def shapes(model, dims: int, dtype=jnp.float32, **options):
    """Output and variables, without computing either."""
    x = jax.ShapeDtypeStruct(IMAGE[dims], dtype)
    run = lambda key, x: model.init_with_output(key, x, **options)  # noqa: E731
    return jax.eval_shape(run, jax.random.key(0), x)


def test_every_class_is_here():
    assert {registry.MODELS[name] for name in MODELS} == set(registry.MODELS.values())


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_shapes_and_dtypes(name, dims):
    for train, fields, of_parameters in (
        (False, {}, "float32"),
        (True, {"dtype": jnp.bfloat16}, "float32"),
        (False, {"dtype": "bfloat16", "param_dtype": jnp.bfloat16}, "bfloat16"),
    ):
        y, variables = shapes(make(name, dims, **fields), dims, train=train)
        assert y.shape == output_shape(name, dims)
        assert y.dtype == jnp.float32
        parameters = jax.tree.leaves(variables["params"])
        assert {str(leaf.dtype) for leaf in parameters} == {of_parameters}


@pytest.mark.parametrize("name", MODELS)
def test_the_computation_is_in_bfloat16(name, monkeypatch):
    """All products are, though parameters, logits and the states of recurrences are float32.

    As traced for an accelerator: on CPU, blocks of a convolution are computed in float32.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr("biojax.modules.ssm.selective_scan", lambda u, *_, **__: (u, None))
    monkeypatch.setattr("biojax.modules.xlstm.mlstm", lambda q, k, v, *_: (q + k + v, None))
    model = make(name, 2, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct(IMAGE[2], jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    operands = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                operands.update(str(v.aval.dtype) for v in equation.invars)
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
            ):
                if hasattr(inner, "eqns"):
                    visit(inner)
                elif hasattr(inner, "jaxpr"):
                    visit(inner.jaxpr)

    visit(jax.make_jaxpr(model.apply)(variables, x).jaxpr)
    assert operands == {"bfloat16"}


# Instance and batch normalisation take away the constants that a bias before them adds, a softmax
# what the bias of the keys adds to all scores of a query.
IDLE = ("['depthwise']['bias']", "['key']['bias']")
GRADIENTS = {
    "abmil": (2, {"encoder_features": (4, 6)}),
    "nat_unet_t": (2, {"norm": "layer", "features": (4, 12, 12)}),
    "unet": (3, {"norm": "layer", "features": (2, 3)}),
    "resenc_unet_l": (3, {"norm": "layer", "features": (4, 6), "num_blocks": (1, 1)}),
    "residual_unet": (3, {"norm": "layer", "features": (4, 6)}),
    "resnet3d_18": (2, {"norm": "layer", "features": (4, 6)}),
    "resnet3d_50": (2, {"norm": "layer", "features": (4, 6)}),
    "segmamba": (2, {"norm": "layer", "features": (4, 6)}),
    "slice_rnn": (2, {"encoder_features": (4, 6)}),
    "swin_unetr": (2, {"norm": "layer", "features": 4}),
    "umamba_bot": (2, {"norm": "layer", "features": (4, 6)}),
    "umamba_enc": (2, {"norm": "layer", "features": (4, 6, 6)}),
    "unetr": (2, {"norm": "layer", "features": 4}),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name, with_parameters, quick_jit):
    dims, extra = GRADIENTS.get(name, (2, {}))
    model = make(name, dims, **extra)
    x = np.random.default_rng(0).standard_normal(IMAGE[dims]).astype(np.float32)
    x = x[:, :4, :4, :2] if dims == 3 else x
    variables = with_parameters(model, x)

    def scalar(params):
        y = jnp.asarray(model.apply({"params": params}, x))
        return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

    gradients, y = quick_jit(jax.grad(scalar, has_aux=True))(variables["params"])
    assert np.isfinite(y).all()
    assert not np.allclose(y[0], y[1])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        where = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), where
        assert np.abs(leaf).max() > 1e-6 or where.endswith(IDLE), where


INTERMEDIATES = {
    "abmil": {
        "encoder/stage0": (24, 4, 2),
        "encoder/stage1": (24, 2, 3),
        "instances": (2, 12, 4),
        "pool/weights": (2, 12),
    },
    "attention_classifier": {"tokens0": (2, 12, 6), "tokens1": (2, 12, 6)},
    "cnn_classifier": {"stage0": (2, 5, 7, 2), "stage1": (2, 1, 2, 4)},
    "convlstm_forecaster": {
        "encoder0_states": (2, 12, 4, 3),
        "encoder1_states": (2, 12, 4, 2),
        "forecaster0_states": (2, 2, 4, 3),
        "forecaster1_states": (2, 2, 4, 2),
    },
    "mednext_s": {
        "encoder0": (2, 12, 16, 2),
        "encoder1": (2, 6, 8, 4),
        "bottleneck": (2, 3, 4, 8),
        "decoder1": (2, 6, 8, 4),
        "decoder0": (2, 12, 16, 2),
    },
    "nat_unet_t": {
        "encoder0": (2, 12, 16, 2),
        "encoder1": (2, 6, 8, 12),
        "encoder2": (2, 3, 4, 12),
        "decoder1": (2, 6, 8, 12),
        "decoder0": (2, 12, 16, 2),
    },
    "primus_s": {"tokens0": (2, 12, 12), "tokens1": (2, 12, 12), "decoder1": (2, 6, 8, 8)},
    "residual_unet": {
        "encoder0_output": (2, 6, 8, 2),
        "encoder1_output": (2, 3, 4, 3),
        "encoder2_output": (2, 3, 4, 4),
        "decoder1_output": (2, 6, 8, 2),
        "decoder0_output": (2, 12, 16, 3),
    },
    "resnet3d_18": {"stage0": (2, 6, 8, 2), "stage1": (2, 3, 4, 3)},
    "resnet3d_50": {"stage0": (2, 6, 8, 8), "stage1": (2, 3, 4, 12)},
    "rnn_classifier": {"states0": (2, 12, 4), "states1": (2, 12, 4)},
    "rnn_encoder_decoder": {"context": (2, 4)},
    "segmamba": {
        "stage0": (2, 6, 8, 2),
        "stage1": (2, 3, 4, 3),
        "decoder1": (2, 6, 8, 3),
        "decoder0": (2, 12, 16, 2),
    },
    "slice_rnn": {
        "encoder/stage0": (24, 4, 2),
        "encoder/stage1": (24, 2, 3),
        "slices": (2, 12, 4),
        "states0": (2, 12, 8),
    },
    "swin_unetr": {
        "patches": (2, 6, 8, 2),
        "stage0": (2, 3, 4, 4),
        "decoder1": (2, 6, 8, 2),
        "decoder0": (2, 12, 16, 2),
    },
    "unet": {
        "encoder0": (2, 12, 16, 2),
        "encoder1": (2, 6, 8, 3),
        "encoder2": (2, 3, 4, 4),
        "decoder1": (2, 6, 8, 3),
        "decoder0": (2, 12, 16, 2),
    },
    "unetr": {
        "tokens0": (2, 12, 4),
        "tokens1": (2, 12, 4),
        "decoder1": (2, 6, 8, 4),
        "decoder0": (2, 12, 16, 2),
    },
}


for same in ("resenc_unet_l", "umamba_bot", "umamba_enc"):
    INTERMEDIATES[same] = INTERMEDIATES["unet"]
for same in ("vil_t", "vision_mamba_t", "vit_ti"):
    INTERMEDIATES[same] = {"tokens0": (2, 12, 4), "tokens1": (2, 12, 4)}


@pytest.mark.parametrize("name", MODELS)
def test_intermediates_by_name(name):
    model = make(name, 2)
    x = jax.ShapeDtypeStruct(IMAGE[2], jnp.float32)

    def run(key, x):
        variables = model.init(key, x)
        variables = {k: v for k, v in variables.items() if k != "intermediates"}
        return model.apply(variables, x, mutable=["intermediates"])[1]["intermediates"]

    sown: Any = flatten_dict(jax.eval_shape(run, jax.random.key(0), x), sep="/")
    assert {n: value[0].shape for n, value in sown.items()} == INTERMEDIATES[name]
    assert all(len(value) == 1 for value in sown.values())


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_the_wrong_rank_is_refused(name, dims):
    for shape in (IMAGE[dims][1:], (1, *IMAGE[dims])):
        expected = f"(b, {', '.join(AXES[name][dims])}, c)"
        with pytest.raises(ShapeError, match="with spatial_dims=") as caught:
            make(name, dims).init(jax.random.key(0), jnp.ones(shape))
        assert name.startswith(caught.value.where)
        assert caught.value.expected == expected


@pytest.mark.parametrize("name", DENSE)
def test_sizes_that_the_stride_does_not_divide_are_refused(name):
    model = make(name, 2)
    assert model.stride == (4, 4)
    with pytest.raises(ShapeError, match=r"image of \(12, 14\).*Did you mean \(12, 16\)\?"):
        model.init(jax.random.key(0), jnp.ones((1, 12, 14, 2)))


@pytest.mark.parametrize("name", ["mednext_s", "resenc_unet_l", "umamba_bot", "unet"])
def test_deep_supervision(name, with_parameters, quick_jit):
    x = np.random.default_rng(0).standard_normal(IMAGE[2]).astype(np.float32)
    model = make(name, 2, deep_supervision=True)
    (full, *lower), variables = shapes(model, 2, train=True)
    assert full.shape == (2, 12, 16, 3)
    expected = {"mednext_s": [(2, 6, 8, 3), (2, 3, 4, 3)]}.get(name, [(2, 6, 8, 3)])
    assert [y.shape for y in lower] == expected
    # The parameters are there whichever way the model is initialised.
    y, others = shapes(model, 2, train=False)
    assert y.shape == full.shape
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, others["params"])
    # In inference the heads change nothing; without them there are no others.
    variables = with_parameters(model, x)
    heads = {k for k in variables["params"] if k.startswith("head")}
    without = {k: v for k, v in variables["params"].items() if k == "head" or k not in heads}
    assert len(heads) == 1 + len(lower)
    run = quick_jit(lambda params: make(name, 2).apply({"params": params}, x))
    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, run(without), rtol=1e-5, atol=1e-5)
    full, *_ = quick_jit(lambda v: model.apply(v, x, train=True))(variables)
    np.testing.assert_allclose(full, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PATCHED)
def test_patches_that_do_not_divide_are_refused(name):
    with pytest.raises(ShapeError, match=r"image of \(12, 15\).*Did you mean \(12, 16\)\?"):
        make(name, 2).init(jax.random.key(0), jnp.ones((1, 12, 15, 2)))
    fewest = DIMS[name][0]
    with pytest.raises(ShapeError, match=r"patch_size=\(2, 2\).*one integer"):
        make(name, fewest, patch_size=(2, 2)).init(jax.random.key(0), jnp.ones(IMAGE[fewest]))


@pytest.mark.parametrize("name", ["attention_classifier", "cnn_classifier", "rnn_classifier"])
def test_dropout_only_while_training(name, with_parameters, quick_jit):
    model = make(name, 1, dropout_rate=0.5)
    x = np.random.default_rng(0).standard_normal(IMAGE[1]).astype(np.float32)
    variables = with_parameters(model, x)
    run = quick_jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    one, same, other = (run(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    plain = quick_jit(lambda: make(name, 1).apply(variables, x, train=True))()
    still = quick_jit(lambda: model.apply(variables, x))()
    np.testing.assert_array_equal(still, plain)
    assert not np.allclose(one, still)
