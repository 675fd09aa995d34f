"""Overlap metrics and ROC AUC against hand values and scikit-learn; surfaces are tested apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biojax import metrics
from biojax.errors import ConfigError, DataError, ShapeError

LABELS = np.array([[0, 0, 1, 1], [2, 2, 2, 0]])
PREDICTIONS = np.array([[0, 1, 1, 1], [2, 2, 0, 0]])
MATRIX = np.array([[2, 1, 0], [0, 2, 0], [1, 0, 2]])
COUNT = jax.jit(metrics.confusion_matrix, static_argnums=2, static_argnames="ignore_label")


def test_confusion_matrix_by_hand():
    np.testing.assert_array_equal(metrics.confusion_matrix(LABELS, PREDICTIONS, 3), MATRIX)
    absent = metrics.confusion_matrix(LABELS, PREDICTIONS, 5)
    np.testing.assert_array_equal(absent, np.pad(MATRIX, (0, 2)))


def test_metrics_by_hand():
    np.testing.assert_allclose(metrics.dice(MATRIX), [4 / 6, 4 / 5, 4 / 5])
    np.testing.assert_allclose(metrics.iou(MATRIX), [2 / 4, 2 / 3, 2 / 3])
    np.testing.assert_allclose(metrics.precision(MATRIX), [2 / 3, 2 / 3, 1])
    np.testing.assert_allclose(metrics.recall(MATRIX), [2 / 3, 1, 2 / 3])
    np.testing.assert_allclose(metrics.accuracy(MATRIX), 6 / 8)


def test_undefined_is_nan():
    """Class 0 is missed, 1 is found, 2 is invented, 3 is nowhere."""
    matrix = metrics.confusion_matrix(np.array([0, 1]), np.array([2, 1]), 4)
    nan = np.nan
    np.testing.assert_array_equal(metrics.dice(matrix), [0, 1, 0, nan])
    np.testing.assert_array_equal(metrics.iou(matrix), [0, 1, 0, nan])
    np.testing.assert_array_equal(metrics.precision(matrix), [nan, 1, 0, nan])
    np.testing.assert_array_equal(metrics.recall(matrix), [0, 1, nan, nan])
    assert np.isnan(metrics.accuracy(np.zeros((2, 2), int)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_confusion_matrix_is_scikit_learn_s(seed):
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 4, (2, 60)).astype(np.uint8)
    matrix = metrics.confusion_matrix(labels, predictions, 4)
    np.testing.assert_array_equal(
        matrix, reference.confusion_matrix(labels, predictions, labels=range(4))
    )
    assert matrix.dtype == np.int64
    for ours, theirs in (
        (metrics.dice, reference.f1_score),
        (metrics.iou, reference.jaccard_score),
        (metrics.precision, reference.precision_score),
        (metrics.recall, reference.recall_score),
    ):
        expected = theirs(labels, predictions, labels=range(4), average=None, zero_division=0)
        np.testing.assert_allclose(np.nan_to_num(ours(matrix)), expected)
    expected = reference.accuracy_score(labels, predictions)
    np.testing.assert_allclose(metrics.accuracy(matrix), expected)

    # What jit counts is the same, parts add up, and ignoring is removing.
    np.testing.assert_array_equal(COUNT(labels, predictions, 4), matrix)
    parts = [
        metrics.confusion_matrix(y, p, 4)
        for y, p in zip(np.split(labels, 3), np.split(predictions, 3), strict=True)
    ]
    np.testing.assert_array_equal(sum(parts), matrix)
    rest = labels != 2
    without = metrics.confusion_matrix(labels[rest], predictions[rest], 4)
    ignored = metrics.confusion_matrix(labels, predictions, 4, ignore_label=2)
    np.testing.assert_array_equal(ignored, without)
    np.testing.assert_array_equal(COUNT(labels, predictions, 4, ignore_label=2), without)


def test_confusion_matrix_outside_and_inside_jit():
    labels, predictions = jnp.array([0, 1, 255, -1]), jnp.array([0, 0, 1, 1])
    with pytest.raises(DataError, match="labels: got label -1 in 1 of 4 voxels"):
        metrics.confusion_matrix(labels, predictions, 2, ignore_label=255)
    np.testing.assert_array_equal(COUNT(labels, predictions, 2, ignore_label=255), [[1, 0], [1, 0]])
    with pytest.raises(DataError, match="predictions: got label 2"):
        metrics.confusion_matrix(predictions, predictions + 1, 2)
    dice = jax.jit(metrics.dice)(jnp.array([[3, 0, 0], [1, 4, 0], [0, 0, 0]]))
    np.testing.assert_allclose(dice, [6 / 7, 8 / 9, np.nan], rtol=1e-6)


def test_large_counts_do_not_wrap():
    matrix = np.full((2, 2), 2**30, np.int32)
    for counts in (matrix, jnp.asarray(matrix), matrix.astype(np.int64) * 2**20):
        np.testing.assert_allclose(metrics.dice(counts), [0.5, 0.5], rtol=1e-6)


def test_errors():
    with pytest.raises(ShapeError, match="integers of one shape"):
        metrics.confusion_matrix(LABELS, PREDICTIONS[0], 3)
    with pytest.raises(ShapeError, match="integers of one shape"):
        metrics.confusion_matrix(LABELS, PREDICTIONS * 0.5, 3)
    with pytest.raises(ShapeError, match=r"got an array of shape \(2, 4\). .* confusion_matrix"):
        metrics.dice(LABELS)
    with pytest.raises(ConfigError, match="3 different names"):
        metrics.class_report(MATRIX, ["background", "liver", "liver"])
    with pytest.raises(ConfigError, match="3 different names"):
        metrics.class_report(MATRIX, ["background", "liver", "mean"])


def test_class_report():
    matrix = np.pad(MATRIX, (0, 1))  # a last class that is nowhere
    report = metrics.class_report(matrix, ["background", "liver", "spleen", "aorta"])
    assert list(report) == ["background", "liver", "spleen", "aorta", "mean"]
    assert report["liver"] == pytest.approx(
        {"dice": 0.8, "iou": 2 / 3, "precision": 2 / 3, "recall": 1, "count": 2}
    )
    assert np.isnan(report["aorta"]["dice"])
    assert report["mean"]["dice"] == pytest.approx((4 / 6 + 0.8 + 0.8) / 3)
    assert report["mean"]["count"] == 8
    foreground = metrics.class_report(matrix, include_background=False)
    assert foreground["mean"]["dice"] == pytest.approx(0.8)
    assert foreground["mean"]["count"] == 5
    assert foreground["0"]["dice"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 3], {}, "case: got label 3 in 1 of 3 voxels. .* num_classes=4"),
        ([0, 255, 255], {}, "label 255 in 2 of 3 voxels. .* ignore_label=255"),
        ([-1, 0, 255], {"ignore_label": 255}, "label -1 in 1 of 3 voxels. .* ignore_label=-1"),
        ([4, 4, 9], {}, "label 4 in 2 of 3 voxels, and 1 more such values. .* num_classes=10"),
        ([0.5, 0.0, 1.0], {}, "label 0.5 in 1 of 3 voxels"),
        ([np.nan, 0.0, 1.0], {}, "label nan in 1 of 3 voxels"),
    ],
)
def test_check_labels_names_the_value(labels, options, message):
    with pytest.raises(DataError, match=message):
        metrics.check_labels(np.array(labels), 3, where="case", **options)


@pytest.mark.parametrize("label", [[0, 0.5], [0, np.nan], [0, np.inf], ["a"]])
def test_labels_that_are_no_numbers_of_classes(label):
    for num_classes in (3, None):
        with pytest.raises(DataError, match="case: got label"):
            metrics.check_labels(np.array(label), num_classes, where="case")


def test_check_labels_passes():
    metrics.check_labels(np.array([0, 700]), None)
    for labels in ([0, 1, 2], [0.0, 2.0], [True, False], []):
        metrics.check_labels(np.array(labels), 3)
    metrics.check_labels(jnp.array([0, 7]), 3, ignore_label=7)


def test_roc_auc_by_hand():
    assert metrics.roc_auc(np.array([0, 1]), np.array([0.0, 1.0])) == 1
    assert metrics.roc_auc(np.array([1, 0]), np.array([0.0, 1.0])) == 0
    assert metrics.roc_auc(np.array([1, 0, 0, 1]), np.full(4, 0.3)) == 0.5
    # Of the six pairs four are in order, one is tied, one is not in order.
    labels, scores = np.array([0, 0, 1, 1, 1]), np.array([1.0, 3.0, 2.0, 3.0, 4.0])
    assert metrics.roc_auc(labels, scores) == pytest.approx(4.5 / 6)
    assert metrics.roc_auc(labels, scores[:, None]) == pytest.approx(4.5 / 6)
    assert metrics.roc_auc(labels == 1, jnp.asarray(scores)) == pytest.approx(4.5 / 6)
    assert np.isnan(metrics.roc_auc(np.zeros(3, int), scores[:3]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_roc_auc_is_scikit_learn_s(seed):
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, 2, rng.integers(0, 3, 40)]
    scores = rng.dirichlet(np.ones(3), size=43)
    expected = reference.roc_auc_score(labels, scores, multi_class="ovr")
    assert metrics.roc_auc(labels, scores) == pytest.approx(expected)
    # With ties, against an increasing function, for one class and for independent ones.
    rounded = scores.round(1)
    expected = reference.roc_auc_score(labels == 1, rounded[:, 1])
    assert metrics.roc_auc(labels == 1, rounded[:, 1]) == pytest.approx(expected)
    assert metrics.roc_auc(labels == 1, np.exp(7 * rounded[:, 1])) == pytest.approx(expected)
    several = np.stack([labels == 1, labels > 0, labels == 2], 1)
    expected = reference.roc_auc_score(several, rounded)
    assert metrics.roc_auc(several, rounded) == pytest.approx(expected)
    # A class without cases stays out of the mean.
    wider = np.c_[scores, rng.random(43)]
    assert metrics.roc_auc(labels, wider) == pytest.approx(metrics.roc_auc(labels, scores))


def test_roc_auc_errors():
    with pytest.raises(ShapeError, match="a row of scores for each label"):
        metrics.roc_auc(np.zeros(3, int), np.zeros(4))
    with pytest.raises(DataError, match="label 2 in 1 of 3"):
        metrics.roc_auc(np.array([0, 1, 2]), np.zeros(3))
    with pytest.raises(DataError, match="NaN in 1 of 2 scores"):
        metrics.roc_auc(np.array([0, 1]), np.array([0.0, np.nan]))
