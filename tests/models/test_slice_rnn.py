"""The recurrence over slices against its layers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.models import ResNet3D, SliceRNN
from biojax.modules import make_recurrent


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


SMALL = {"encoder_features": (2, 3), "num_blocks": (1, 1), "features": 4}


def test_slice_rnn_by_hand(with_parameters, quick_jit):
    x = image(2, 3, 8, 6, 2)
    model = SliceRNN(5, 3, num_layers=2, **SMALL)
    variables = with_parameters(model, x)
    p = variables["params"]

    def by_hand(x):
        encoder = ResNet3D(4, 2, (2, 3), (1, 1), stem_strides=2, norm="layer")
        slices = [encoder.apply({"params": p["encoder"]}, x[:, i]) for i in range(3)]
        h, last = jnp.stack(slices, axis=1), None
        for i in (0, 1):
            layer = make_recurrent("gru", 4, bidirectional=True)
            h, last = layer.apply({"params": p[f"layer{i}"]}, h)
        return dense(last, p["head"]), dense(h, p["slice_head"])

    volume, each = quick_jit(model.apply)(variables, x)
    assert volume.shape == (2, 5)
    assert each.shape == (2, 3, 3)
    for got, expected in zip((volume, each), quick_jit(by_hand)(x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    for fields, head, expected in (((5, None), "slice_head", volume), ((None, 3), "head", each)):
        params = {name: value for name, value in p.items() if name != head}
        alone = SliceRNN(*fields, num_layers=2, **SMALL)
        np.testing.assert_allclose(
            quick_jit(alone.apply)({"params": params}, x), expected, rtol=1e-5, atol=1e-5
        )


def test_a_slice_sees_the_others(with_parameters, quick_jit):
    model = SliceRNN(None, 1, **SMALL)
    x = image(1, 4, 8, 8, 1)
    variables = with_parameters(model, x)
    run = quick_jit(model.apply)
    before, after = run(variables, x), run(variables, _changed(x))
    assert np.abs(before - after)[0, :, 0].min() > 1e-6
    forward = SliceRNN(None, 1, bidirectional=False, **SMALL)
    variables = with_parameters(forward, x)
    run = quick_jit(forward.apply)
    before, after = run(variables, x), run(variables, _changed(x))
    np.testing.assert_allclose(before[0, :3], after[0, :3], rtol=1e-5, atol=1e-6)
    assert np.abs(before - after)[0, 3, 0] > 1e-6


def test_slices_that_do_not_count_change_nothing(with_parameters, quick_jit):
    model = SliceRNN(2, 1, **SMALL)
    x = np.concatenate([image(1, 4, 8, 8, 1), _changed(image(1, 4, 8, 8, 1))])
    variables = with_parameters(model, x)
    run = quick_jit(model.apply)
    volume, each = run(variables, x, lengths=jnp.asarray([3, 3]))
    np.testing.assert_allclose(volume[0], volume[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(each[0, :3], each[1, :3], rtol=1e-5, atol=1e-6)
    volume, _ = run(variables, x, lengths=jnp.asarray([3, 4]))
    assert np.abs(volume[0] - volume[1]).min() > 1e-4


def _changed(x):
    """Another last slice."""
    x = x.copy()
    x[0, -1] = np.roll(x[0, -1], 3, axis=0) * 2
    return x


def test_dropout_only_while_training(with_parameters, quick_jit):
    model = SliceRNN(2, dropout_rate=0.5, **SMALL)
    x = image(1, 3, 8, 8, 1)
    variables = with_parameters(model, x)
    run = quick_jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    one, same, other = (run(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_what_slice_rnn_refuses():
    x = jnp.ones((1, 3, 8, 8, 1))
    with pytest.raises(ConfigError, match="neither num_classes nor slice_classes"):
        jax.eval_shape(SliceRNN(None).init, jax.random.key(0), x)
    with pytest.raises(ConfigError, match="got spatial_dims=1"):
        jax.eval_shape(SliceRNN(2, spatial_dims=1).init, jax.random.key(0), x[:, :, 0, 0])
    with pytest.raises(ShapeError, match="with spatial_dims=3"):
        jax.eval_shape(SliceRNN(2).init, jax.random.key(0), x[:, 0])
    with pytest.raises(
        ConfigError, match=r"^slice_rnn: got num_blocks for 4 .*encoder_features for 2\."
    ):
        jax.eval_shape(SliceRNN(2, encoder_features=(2, 3)).init, jax.random.key(0), x)
    with pytest.raises(ConfigError, match=r"cell='grru'.*Did you mean 'gru'\?"):
        jax.eval_shape(SliceRNN(2, cell="grru").init, jax.random.key(0), x)


def test_both_kinds_of_logits_are_float32():
    model = SliceRNN(2, 3, dtype="bfloat16", **SMALL)
    x = jax.ShapeDtypeStruct((1, 2, 4, 4, 1), jnp.bfloat16)
    y, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert [(leaf.shape, str(leaf.dtype)) for leaf in y] == [
        ((1, 2), "float32"),
        ((1, 2, 3), "float32"),
    ]
