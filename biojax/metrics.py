"""Metrics of classification and segmentation: arrays in, numbers out.

Overlap metrics are read off a confusion matrix, which adds up: stream a large volume in parts, or
many cases, and sum the matrices.

>>> parts = [([0, 0, 1], [0, 1, 1]), ([1, 1, 1], [1, 1, 0])]
>>> matrix = sum(confusion_matrix(np.array(y), np.array(p), 2) for y, p in parts)
>>> matrix
array([[1, 1],
       [1, 3]])
>>> dice(matrix)
array([0.5 , 0.75])

One convention throughout: what is undefined, 0 / 0, is NaN (Dice and IoU of a class that is in
neither labels nor predictions, recall of one without labels, precision of one never predicted),
and means leave NaN out (`np.nanmean`).

Distances between surfaces are in `biojax.surface`, and exported from here as well.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from biojax.errors import ConfigError, DataError, ShapeError
from biojax.surface import assd, hausdorff, hd95, surface_dice, surface_distances
from biojax.typing import ArrayLike

__all__ = [
    "accuracy",
    "assd",
    "check_labels",
    "class_report",
    "confusion_matrix",
    "dice",
    "hausdorff",
    "hd95",
    "iou",
    "precision",
    "recall",
    "roc_auc",
    "surface_dice",
    "surface_distances",
]


def check_labels(
    labels: ArrayLike,
    num_classes: int | None,
    *,
    where: str = "check_labels",
    ignore_label: int | None = None,
) -> None:
    """Check on the host that labels are whole numbers from 0 to num_classes - 1.

    Args:
      labels: any shape; integer, bool, or floating with whole values, as some files have them.
      num_classes: how many classes there are, the background included; None for any.
      where: what to name in the error, such as the case or its file.
      ignore_label: a label that is allowed besides.

    Raises:
      DataError: there is another value; the text says which and how many.

    >>> check_labels(np.array([0, 1, 7, 7]), 3, where="case_001")
    Traceback (most recent call last):
    ...
    biojax.errors.DataError: case_001: got label 7 in 2 of 4 voxels. Expected whole numbers
    from 0 to 2. Correct or remap the labels, raise num_classes, or name a label to ignore.
    Did you mean num_classes=8?
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iubf":
        raise DataError(where, f"labels of dtype {labels.dtype}", "integers", "Convert them first")
    known = labels >= 0
    if num_classes is not None:
        known &= labels < num_classes
    if labels.dtype.kind == "f":
        known &= np.isfinite(labels) & (labels == np.floor(labels))
    if ignore_label is not None:
        known |= labels == ignore_label
    if known.all():
        return
    values, counts = np.unique(labels[~known], return_counts=True)
    worst = counts.argmax()
    value, more = values[worst].item(), len(values) - 1
    got = f"label {value} in {counts[worst]} of {labels.size} voxels"
    guess = None
    if value < 0 or value == 255:
        guess = f"ignore_label={value}"
    elif isinstance(value, int) and values.max() < 255:
        guess = f"num_classes={values.max() + 1}"
    raise DataError(
        where,
        f"{got}, and {more} more such values" if more else got,
        f"whole numbers from 0{'' if num_classes is None else f' to {num_classes - 1}'}",
        "Correct or remap the labels, raise num_classes, or name a label to ignore",
        guess,
    )


def confusion_matrix(
    labels: ArrayLike,
    predictions: ArrayLike,
    num_classes: int,
    *,
    ignore_label: int | None = None,
) -> np.ndarray | jax.Array:
    """Count how often each class is predicted as each: rows are labels, columns predictions.

    Args:
      labels: integers of any shape, 0 to num_classes - 1.
      predictions: integers of the same shape and range.
      num_classes: how many classes there are, the background included.
      ignore_label: voxels with this label are not counted, whatever is predicted there.

    Returns:
      (num_classes, num_classes) counts; int64. Inside `jit`, int32 (enough for 2^31 voxels a
      call), and voxels with values out of range are not counted, since they cannot raise there.

    Raises:
      ShapeError: shapes differ, or dtypes are not integer.
      DataError: a label or a prediction is out of range.

    >>> confusion_matrix(np.array([0, 1, 1, 255]), np.array([0, 0, 1, 1]), 2, ignore_label=255)
    array([[1, 0],
           [1, 1]])
    """
    traced = isinstance(labels, Tracer) or isinstance(predictions, Tracer)
    xp = jnp if traced else np
    labels, predictions = xp.asarray(labels), xp.asarray(predictions)
    integers = all(np.dtype(x.dtype).kind in "iub" for x in (labels, predictions))
    if labels.shape != predictions.shape or not integers:
        raise ShapeError(
            "confusion_matrix",
            f"labels {labels.shape} {labels.dtype}, predictions {predictions.shape} "
            f"{predictions.dtype}",
            "integers of one shape",
            "Take the argmax of logits over channels, and cast class numbers to integers",
        )
    count = _count_traced if traced else _count_checked
    return count(labels, predictions, num_classes, ignore_label)


def _count_checked(labels, predictions, n, ignore_label):
    check_labels(labels, n, where="confusion_matrix, labels", ignore_label=ignore_label)
    if ignore_label is not None:
        keep = labels != ignore_label
        labels, predictions = labels[keep], predictions[keep]
    check_labels(predictions, n, where="confusion_matrix, predictions")
    index = labels.astype(np.int64) * n + predictions.astype(np.int64)
    return np.bincount(index.ravel(), minlength=n * n).reshape(n, n)


def _count_traced(labels, predictions, n, ignore_label):
    labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    keep = (labels >= 0) & (labels < n) & (predictions >= 0) & (predictions < n)
    if ignore_label is not None:
        keep &= labels != ignore_label
    index = jnp.where(keep, labels * n + predictions, n * n)
    return jnp.bincount(index.ravel(), length=n * n + 1)[:-1].reshape(n, n)


def dice(matrix: ArrayLike) -> ArrayLike:
    """Dice score (F1) of every class, (c,), from a confusion matrix: 2 TP / (2 TP + FP + FN).

    >>> dice(np.array([[2, 2], [0, 0]]))
    array([0.66666667, 0. ])
    """
    true_positive, labelled, predicted = _counts("dice", matrix)
    return _divide(2 * true_positive, labelled + predicted)


def iou(matrix: ArrayLike) -> ArrayLike:
    """Intersection over union (Jaccard) of every class, (c,): TP / (TP + FP + FN).

    >>> iou(np.array([[2, 2], [0, 0]]))
    array([0.5, 0. ])
    """
    true_positive, labelled, predicted = _counts("iou", matrix)
    return _divide(true_positive, labelled + predicted - true_positive)


def precision(matrix: ArrayLike) -> ArrayLike:
    """How much of what was predicted is right, of every class, (c,): TP / (TP + FP).

    >>> precision(np.array([[2, 2], [0, 0]]))
    array([1., 0.])
    """
    true_positive, _, predicted = _counts("precision", matrix)
    return _divide(true_positive, predicted)


def recall(matrix: ArrayLike) -> ArrayLike:
    """How much of what is there was found (sensitivity), of every class, (c,): TP / (TP + FN).

    >>> recall(np.array([[2, 2], [0, 0]]))
    array([0.5, nan])
    """
    true_positive, labelled, _ = _counts("recall", matrix)
    return _divide(true_positive, labelled)


def accuracy(matrix: ArrayLike) -> ArrayLike:
    """Share of all voxels, or cases, that are right: a scalar, sum TP / N.

    >>> float(accuracy(np.array([[2, 2], [0, 0]])))
    0.5
    """
    true_positive, labelled, _ = _counts("accuracy", matrix)
    return _divide(true_positive.sum(), labelled.sum())


def class_report(
    matrix: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    include_background: bool = True,
) -> dict[str, dict[str, float]]:
    """Overlap metrics as a table, a row for each class and a last row "mean".

    Args:
      matrix: (c, c) confusion matrix.
      class_names: c names; "0", "1", ... if None.
      include_background: whether class 0 goes into the mean. It has its own row either way.

    Returns:
      `{name: {"dice", "iou", "precision", "recall", "count"}}`, where count is how many voxels
      have that label. In the row "mean", NaN is left out, and count is the sum.

    Raises:
      ShapeError: the matrix is not square.
      ConfigError: the names are not one for each class.

    >>> report = class_report(np.array([[8, 0], [1, 1]]), ["background", "liver"])
    >>> report["liver"]
    {'dice': 0.666..., 'iou': 0.5, 'precision': 1.0, 'recall': 0.5, 'count': 2.0}
    """
    matrix = np.asarray(matrix)
    columns = {metric.__name__: metric(matrix) for metric in (dice, iou, precision, recall)}
    columns["count"] = matrix.sum(1)
    names = [str(i) for i in range(len(matrix))] if class_names is None else list(class_names)
    if len(names) != len(matrix) or len({*names, "mean"}) != len(matrix) + 1:
        raise ConfigError(
            "class_report",
            f"class_names={names}",
            f"{len(matrix)} different names, none of them 'mean'",
            "Name every class of the matrix once, the background included",
        )
    rows = {
        name: {column: float(values[i]) for column, values in columns.items()}
        for i, name in enumerate(names)
    }
    counted = list(rows.values())[0 if include_background else 1 :]
    rows["mean"] = {column: _nanmean([row[column] for row in counted]) for column in columns}
    rows["mean"]["count"] = sum(row["count"] for row in counted)
    return rows


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive case scores above a negative one.

    AUC = (R - n1 (n1 + 1) / 2) / (n1 n0)

    with R the sum of the ranks of the n1 positive cases among all; ties share their mean rank,
    and so count one half. Exact, and the same for any increasing function of the scores.

    Args:
      labels: 0 and 1, of the shape of scores; or class numbers (n,) for scores (n, c).
      scores: logits or probabilities of the positive class, (n,) or (n, 1), or of each class
        against the rest, (n, c).

    Returns:
      The area; for c classes the mean (macro) over those that have both positive and negative
      cases. NaN where there is none. One class alone is `roc_auc(labels == k, scores[:, k])`.

    Raises:
      ShapeError: shapes do not fit.
      DataError: a label is out of range, or a score is NaN.

    Source: Hanley and McNeil, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve", Radiology 143, 1982.

    >>> roc_auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    from scipy.stats import rankdata

    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if scores.shape == (*labels.shape, 1):
        scores = scores.reshape(labels.shape)
    if scores.ndim not in (1, 2) or labels.shape not in (scores.shape, scores.shape[:1]):
        raise ShapeError(
            "roc_auc",
            f"labels {labels.shape} and scores {scores.shape}",
            "labels (n,) or (n, c) with scores (n, c), or both (n,)",
            "Give a row of scores for each label",
        )
    if np.isnan(scores).any():
        raise DataError(
            "roc_auc",
            f"NaN in {np.isnan(scores).sum()} of {scores.size} scores",
            "numbers",
            "Find out why the model returns NaN, or drop these cases",
        )
    classes = 2 if labels.shape == scores.shape else scores.shape[1]
    check_labels(labels, classes, where="roc_auc, labels")
    if labels.shape != scores.shape:
        labels = labels[:, None] == np.arange(classes)
    positive = labels.astype(bool).reshape(len(labels), -1)
    ranks = rankdata(scores.reshape(positive.shape), axis=0)
    n1 = positive.sum(0)
    n0 = len(positive) - n1
    area = _divide((ranks * positive).sum(0) - n1 * (n1 + 1) / 2, n1 * n0)
    return _nanmean(area)


def _counts(where: str, matrix: ArrayLike) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
    """True positives, labelled and predicted, (c,) each, floating (so that int32 cannot wrap)."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(
            where,
            f"an array of shape {matrix.shape}",
            "a confusion matrix (c, c)",
            "Make one with confusion_matrix(labels, predictions, num_classes)",
        )
    matrix = matrix * 1.0
    return matrix.diagonal(), matrix.sum(1), matrix.sum(0)


def _divide(numerator, denominator):
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerator / denominator


def _nanmean(values) -> float:
    values = np.asarray(values)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
