"""Sliding-window prediction: exact where it can be checked, bounded, and honest about mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biojax.errors import ConfigError, FileError, ShapeError
from biojax.inference import predict_volume
from biojax.io import Volume, open_volume, read_volume, write_volume


def plus(params, image):
    return image + params


def two_classes(params, image):
    return jnp.concatenate([image, params - image], axis=-1)


def image(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("shape", "window", "overlap", "batch"),
    [
        ((7,), (3,), 0.5, 2),
        ((9, 7), (4, 4), 0.5, 3),
        ((5, 4), (8, 8), 0.5, 1),
        ((10, 9, 8), (4, 4, 4), 0.5, 4),
        ((10, 9, 8), (4, 3, 5), 0.0, 1),
        ((3, 12, 5), (8, 4, 8), 0.75, 2),
        ((1, 1, 1), (2, 2, 2), 0.5, 2),
    ],
)
def test_adding_one_adds_one(shape, window, overlap, batch, blend):
    x = image(*shape, 2)
    options = {"window": window, "overlap": overlap, "batch": batch, "blend": blend}
    y = predict_volume(plus, 1.0, x, **options)
    assert y.shape == x.shape
    np.testing.assert_allclose(y, x + 1, rtol=2e-6, atol=2e-6)


@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    window=st.sampled_from([(4, 4, 4), (2, 5, 3)]),
    overlap=st.sampled_from([0.0, 0.3, 0.8]),
)
def test_adding_one_adds_one_to_any_shape(shape, window, overlap):
    x = image(*shape, 1)
    y = predict_volume(plus, 1.0, x, window=window, overlap=overlap)
    np.testing.assert_allclose(y, x + 1, rtol=2e-6, atol=2e-6)


def test_windows_meet_as_their_weights_say():
    """Each window answers with its own mean, so the blend shows the weights."""

    def mean(params, window):
        return jnp.broadcast_to(window.mean(axis=(1, 2), keepdims=True), window.shape)

    x = np.zeros((4, 6, 1), np.float32)
    x[:, 4:] = 1.0  # windows start at 0 and 2: their means are 0 and 1/2
    y = predict_volume(mean, None, x, window=(4, 4), overlap=0.5)
    position = (np.arange(4) - 1.5) / (4 / 8)
    weight = np.exp(-(position**2) / 2)
    share = weight[:2] / (weight[:2] + weight[2:])  # of the second window, over columns 2 and 3
    expected = np.array([0, 0, share[0] / 2, share[1] / 2, 0.5, 0.5])
    np.testing.assert_allclose(y[..., 0], np.tile(expected, (4, 1)), atol=1e-6)


def test_reductions_agree():
    x = image(6, 5, 4, 1)
    options = {"window": (4, 4, 4), "batch": 2}
    logits = predict_volume(two_classes, 0.5, x, **options)
    probabilities = predict_volume(two_classes, 0.5, x, reduce="probabilities", **options)
    labels = predict_volume(two_classes, 0.5, x, reduce="argmax", **options)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-6)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits.argmax(-1))


def test_one_class_is_a_sigmoid():
    x = image(6, 5, 1)
    options = {"window": (4, 4)}
    probabilities = predict_volume(plus, 0.0, x, reduce="probabilities", **options)
    labels = predict_volume(plus, 0.0, x, reduce="argmax", **options)
    np.testing.assert_allclose(probabilities, jax.nn.sigmoid(x), atol=1e-6)
    np.testing.assert_array_equal(labels, x[..., 0] > 0)


def test_integers_are_exact_as_float32():
    x = np.arange(30_000, 30_040, dtype=np.int16).reshape(5, 8, 1)
    y = predict_volume(plus, 0.0, x, window=(4, 4), blend="constant")
    np.testing.assert_allclose(y, x, rtol=1e-6)


def test_a_volume_gives_a_volume():
    volume = Volume(image(6, 5, 4), "zyx", spacing=(2.0, 1.0, 1.0), modality="MRI")
    y = predict_volume(two_classes, 0.5, volume, window=(4, 4, 4))
    assert (y.axes, y.spacing, y.modality) == ("zyxc", (2.0, 1.0, 1.0), "MRI")
    labels = predict_volume(two_classes, 0.5, volume, window=(4, 4, 4), reduce="argmax")
    assert labels.axes == "zyx"
    np.testing.assert_array_equal(labels.data, y.data.argmax(-1))


def test_streaming_from_file_to_file_is_the_same_and_bounded(tmp_path, monkeypatch):
    volume = Volume(image(23, 9, 8), "zyx", spacing=(2.0, 1.0, 1.0))
    write_volume(tmp_path / "in.ome.tif", volume)
    whole = predict_volume(two_classes, 0.5, volume, window=(4, 4, 4), reduce="argmax")
    deepest = 0
    with open_volume(tmp_path / "in.ome.tif") as lazy:
        read = type(lazy.data).__getitem__

        def counting(self, index):
            nonlocal deepest
            piece = read(self, index)
            deepest = max(deepest, len(piece))
            return piece

        monkeypatch.setattr(type(lazy.data), "__getitem__", counting)
        out = predict_volume(
            two_classes,
            0.5,
            lazy,
            window=(4, 4, 4),
            reduce="argmax",
            out=tmp_path / "out.ome.tif",
        )
    assert deepest == 4, "no more than one window's depth is ever read at once"
    written = read_volume(out)
    assert written.spacing == (2.0, 1.0, 1.0)
    np.testing.assert_array_equal(written.data, whole.data)


def test_a_failure_while_streaming_leaves_nothing(tmp_path):
    calls = []

    def progress(done, total):
        calls.append(done)
        if done > 2:
            raise RuntimeError("stop")

    x = image(12, 4, 4, 1)
    with pytest.raises(RuntimeError, match="stop"):
        predict_volume(
            plus, 1.0, x, window=(4, 4, 4), out=tmp_path / "out.ome.tif", progress=progress
        )
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "out.ome.tif").write_text("precious")
    with pytest.raises(FileError):
        predict_volume(plus, 1.0, image(4, 4, 4, 1), window=(4, 4, 4), out=tmp_path / "out.ome.tif")
    assert (tmp_path / "out.ome.tif").read_text() == "precious"


def test_infinite_logits_do_not_depend_on_the_batch():
    def forbid(params, window):
        return jnp.concatenate([window, jnp.full_like(window, -jnp.inf)], axis=-1)

    x = image(9, 8, 1)
    one, three = (
        predict_volume(forbid, None, x, window=4, batch=batch, reduce="argmax") for batch in (1, 3)
    )
    np.testing.assert_array_equal(one, three)
    assert not one.any()


def test_float64_is_float32_without_a_word():
    x = np.random.default_rng(0).random((6, 5, 1))
    y = predict_volume(plus, 1.0, x, window=(4, 4))
    np.testing.assert_allclose(y, x + 1, rtol=1e-6)


def test_progress_counts_every_window():
    seen = []
    predict_volume(
        plus, 1.0, image(6, 6, 1), window=(4, 4), batch=3, progress=lambda *a: seen.append(a)
    )
    assert seen == [(2, 4), (4, 4)]


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ConfigError, {"blend": "gausian"}),
        (ConfigError, {"reduce": "max"}),
        (ConfigError, {"batch": 0}),
        (ConfigError, {"overlap": 1.0}),
        (ShapeError, {"window": (4, 4, 4)}),
        (ShapeError, {"window": (4, 0)}),
    ],
)
def test_mistakes_are_named(error, options):
    with pytest.raises(error, match=r"got .* Expected .*"):
        predict_volume(plus, 1.0, image(6, 6, 1), **{"window": (4, 4), **options})


def test_a_classifier_is_refused():
    with pytest.raises(ShapeError, match="dense prediction"):
        predict_volume(lambda p, x: x.mean((1, 2)), None, image(6, 6, 1), window=(4, 4))


def test_a_movie_is_refused():
    movie = Volume(image(2, 6, 6), "tyx")
    with pytest.raises(ShapeError, match="point in time"):
        predict_volume(plus, 1.0, movie, window=(4, 4))
