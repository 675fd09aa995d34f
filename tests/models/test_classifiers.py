"""The classifiers and the encoder-decoder against their layers by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import ConfigError, ShapeError
from biojax.models import (
    AttentionClassifier,
    CNNClassifier,
    RNNClassifier,
    RNNEncoderDecoder,
    create_model,
)
from biojax.modules import TransformerBlock, sincos_positions


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def embedded(x, p):
    """Tokens of one pixel each, in raster order."""
    return dense(x.reshape(x.shape[0], -1, x.shape[-1]), jax.tree.map(jnp.squeeze, p["proj"]))


def gru(x, p, h0=None, **options):
    weights = (p[name] for name in ("w_x", "w_h", "bias"))
    return kernels.gru(x, *weights, h0, bias_n=p["bias_n"], **options)


def test_cnn_by_hand(with_parameters, quick_jit):
    x = image(2, 11, 10, 2)
    model = CNNClassifier(features=(2, 3), dense=4)
    variables = with_parameters(model, x)
    p = variables["params"]
    y = jnp.asarray(x)
    for name in ("conv0", "conv1"):
        y = kernels.conv(y, p[name]["kernel"], padding="VALID") + p[name]["bias"]
        y = kernels.max_pool(jnp.maximum(y, 0), 2)
    assert y.shape == (2, 1, 1, 3)
    expected = dense(jnp.maximum(dense(y.reshape(2, -1), p["dense"]), 0), p["head"])
    y = quick_jit(model.apply)(variables, x)
    assert y.shape == (2, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_cnn_says_how_large_the_image_must_be():
    model = CNNClassifier(features=(2, 3, 4), dense=4)
    for size, fits in (((22, 22), True), ((21, 40), False)):
        x = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
        if fits:
            jax.eval_shape(model.init, jax.random.key(0), x)
        else:
            with pytest.raises(ShapeError, match=r"image of \(21, 40\).*at least 22 pixels"):
                jax.eval_shape(model.init, jax.random.key(0), x)


def test_attention_by_hand(with_parameters, quick_jit):
    x = image(2, 3, 4, 2)
    model = AttentionClassifier(3, spatial_dims=2, features=4, num_heads=2, num_layers=1)
    variables = with_parameters(model, x)
    p = variables["params"]

    def by_hand(x):
        tokens = embedded(x, p["embed"]) + sincos_positions((3, 4), 4)
        tokens = jnp.asarray(TransformerBlock(2).apply({"params": p["block0"]}, tokens))
        mean, var = tokens.mean(-1, keepdims=True), tokens.var(-1, keepdims=True)
        tokens = (tokens - mean) / jnp.sqrt(var + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
        return dense(tokens.mean(axis=1), p["head"])

    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, quick_jit(by_hand)(x), rtol=1e-4, atol=1e-5)


def test_attention_heads_must_divide():
    model = AttentionClassifier(3, features=6)
    with pytest.raises(ConfigError, match=r"num_heads=4 for 6 features.*Did you mean num_heads=3"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 5, 2)))


def test_rnn_classifier_by_hand(with_parameters, quick_jit):
    x = image(2, 2, 3, 2)
    model = RNNClassifier(3, spatial_dims=2, cell="gru", features=4, num_layers=2)
    variables = with_parameters(model, x)
    p = variables["params"]
    lengths = jnp.asarray([6, 4])
    h, _ = gru(embedded(x, p["embed"]), p["layer0"])
    _, last = gru(h, p["layer1"], lengths=lengths)
    y = quick_jit(model.apply)(variables, x, lengths=lengths)
    np.testing.assert_allclose(y, dense(last, p["head"]), rtol=1e-5, atol=1e-5)


def test_bidirectional_classifier_sees_both_ends(with_parameters, quick_jit):
    x = image(2, 6, 2)
    model = RNNClassifier(3, cell="gru", features=4, bidirectional=True)
    variables = with_parameters(model, x)
    p = variables["params"]
    tokens = embedded(x, p["embed"])
    _, forward = gru(tokens, p["layer0"]["forward"])
    _, backward = gru(tokens[:, ::-1], p["layer0"]["backward"])
    expected = dense(jnp.concatenate([forward, backward], axis=-1), p["head"])
    y = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_steps", "written"), [(None, 5), (3, 3), (8, 8)])
def test_encoder_decoder_step_by_step(num_steps, written, with_parameters, quick_jit):
    x = image(2, 5, 2)
    model = RNNEncoderDecoder(3, num_steps=num_steps, features=4)
    variables = with_parameters(model, x)
    p = variables["params"]
    _, context = gru(embedded(x, p["embed"]), p["encoder0"])
    h = jnp.tanh(dense(context, p["initial"]))
    steps = []
    for _ in range(written):
        _, h = gru(context[:, None], p["decoder"], h)
        steps.append(dense(h, p["head"]))
    y = quick_jit(model.apply)(variables, x)
    assert y.shape == (2, written, 3)
    np.testing.assert_allclose(y, jnp.stack(steps, axis=1), rtol=1e-5, atol=1e-5)


def test_bidirectional_encoder_has_the_context_of_both_ends(with_parameters, quick_jit):
    x = image(2, 5, 2)
    model = RNNEncoderDecoder(3, features=4, bidirectional=True)
    variables = with_parameters(model, x)
    p = variables["params"]
    lengths = jnp.asarray([3, 5])
    tokens = embedded(x, p["embed"])
    _, forward = gru(tokens, p["encoder0"]["forward"], lengths=lengths)
    _, backward = gru(tokens, p["encoder0"]["backward"], lengths=lengths, reverse=True)
    apply = partial(model.apply, lengths=lengths, mutable=["intermediates"])
    run = quick_jit(lambda x: apply(variables, x)[1])
    (context,) = run(x)["intermediates"]["context"]
    expected = jnp.concatenate([forward, backward], axis=-1)
    np.testing.assert_allclose(context, expected, rtol=1e-5, atol=1e-6)


def test_an_unknown_cell_is_refused():
    for model in (RNNClassifier(3, cell="grru"), RNNEncoderDecoder(3, cell="grru")):
        with pytest.raises(ConfigError, match=r"cell='grru'.*Did you mean 'gru'\?"):
            jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 5, 2)))


@pytest.mark.parametrize("name", ["rnn_classifier", "rnn_encoder_decoder", "attention_classifier"])
def test_the_patch_is_the_stride(name):
    model = create_model(name, num_classes=2, spatial_dims=2, patch_size=(2, 4))
    assert model.stride == (2, 4)
    with pytest.raises(ShapeError, match=r"Did you mean \(8, 12\)"):
        model.init(jax.random.key(0), jnp.zeros((1, 7, 9, 1)))
