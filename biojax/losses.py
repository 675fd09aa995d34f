"""Losses for classification and segmentation.

Every loss takes `logits` `(b, *spatial, c)`, or `(b, c)` for whole images, and `labels` that are

- sparse: integers `(b, *spatial)`, told by one axis fewer than the logits, or
- dense: probabilities (or 0 and 1) `(b, *spatial, c)`,

computes in float32 whatever the input's dtype, and returns a scalar. Keywords that are shared:

- `activation`: "softmax" (one class per voxel) or "sigmoid" (channels apart, that may overlap).
  With a single channel it must be "sigmoid", and sparse labels are that channel's 0 and 1.
- `class_weights`, `(c,)`: how much each class counts. Sums are divided by the weights that went
  in, so that scaling all weights changes nothing.
- `ignore_label`: voxels with this sparse label are left out, as if they were not there. Where all
  are, the loss is 0.

All raise `ShapeError` for shapes and dtypes that do not fit, and `ConfigError` for an option that
does not exist, is out of range, or contradicts another (`ignore_label` with dense labels).

A sparse label that is no class cannot raise inside `jit`: it makes the loss NaN rather than
quietly wrong. `biojax.metrics.check_labels` finds and names it on the host.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax

from biojax.errors import ConfigError, ShapeError, nearest
from biojax.typing import Array, ArrayLike

__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "dice_cross_entropy",
    "focal",
    "soft_dice",
    "soft_dice_scores",
    "tversky",
]


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Array:
    """Softmax cross entropy, the mean over voxels.

    L = - sum_ic w_c y_ic log p_ic / sum_ic w_c y_ic,   p = softmax(logits)

    over voxels i and classes c; w are the class weights, or 1. A logit of -inf rules a class out.

    Voxels in which every w_c y_ic is 0 are left out, whatever their logits.

    Args:
      logits, labels, class_weights, ignore_label: see the module. Dense labels sum to 1 over c.

    >>> cross_entropy(jnp.zeros((1, 2, 4)), jnp.array([[0, 3]]))  # log 4
    Array(1.3862944, dtype=float32)
    """
    logits, y, keep = _prepare("cross_entropy", logits, labels, "softmax", ignore_label)
    y = y * keep * _weights("cross_entropy", logits.shape[-1], class_weights)
    # What counts for nothing may be NaN: that would pass through 0 * NaN, and its gradient too.
    logits = jnp.where((y != 0).any(-1, keepdims=True), logits, 0.0)
    # Sums over c come first: XLA on CPU is slow where it would broadcast them back.
    left = logits - lax.stop_gradient(logits.max(-1, keepdims=True))
    log_sum = jnp.log(jnp.exp(left).sum(-1))
    loss = y.sum(-1) * log_sum - jnp.where(y == 0, 0, y * left).sum(-1)
    return _ratio(loss.sum(), y.sum())


def binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Array:
    """Cross entropy of one sigmoid per channel, the mean over voxels and channels.

    L = - sum_ic w_c (y_ic log p_ic + (1 - y_ic) log(1 - p_ic)) / sum_ic w_c,   p = sigmoid(logits)

    Args:
      logits, labels, class_weights, ignore_label: see the module.

    >>> binary_cross_entropy(jnp.zeros((2, 1)), jnp.array([0, 1]))  # log 2
    Array(0.6931472, dtype=float32)
    """
    logits, y, keep = _prepare("binary_cross_entropy", logits, labels, "sigmoid", ignore_label)
    weights = keep * _weights("binary_cross_entropy", logits.shape[-1], class_weights)
    return _ratio((weights * optax.sigmoid_binary_cross_entropy(logits, y)).sum(), weights.sum())


def focal(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: float = 2.0,
    activation: str = "softmax",
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Array:
    """Focal loss: cross entropy in which voxels that are already right count less.

    L = - sum_ic w_c y_ic (1 - p_ic)^gamma log p_ic / sum_ic w_c y_ic

    With sigmoids each channel adds the same term for 1 - y and 1 - p, and the divisor is that of
    `binary_cross_entropy`. With gamma = 0 this is `cross_entropy`, or `binary_cross_entropy`.

    Args:
      gamma: how strongly to turn to the voxels that are wrong, 0 or more.
      class_weights: of the classes; with sigmoids, of the channels, which is not the paper's
        alpha between 1 and 0. The others: see the module.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, section 3.2.

    >>> focal(jnp.zeros((1, 2)), jnp.array([1]))  # log(2) / 4
    Array(0.1732868, dtype=float32)
    """
    _check_nonnegative("focal", gamma=gamma)
    logits, y, keep = _prepare("focal", logits, labels, activation, ignore_label)
    weights = keep * _weights("focal", logits.shape[-1], class_weights)
    if activation == "sigmoid":
        loss = optax.sigmoid_focal_loss(logits, y, gamma=gamma)
        return _ratio((weights * loss).sum(), weights.sum())
    log_p = jax.nn.log_softmax(logits)
    # 1 - p, kept off 0, where a gamma below 1 would have an infinite slope.
    wrong = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(jnp.float32).eps)
    return _ratio(-(weights * y * wrong**gamma * log_p).sum(), (weights * y).sum())


def soft_dice_scores(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    over: str = "sample",
    smooth: float = 1e-5,
    activation: str = "softmax",
    ignore_label: int | None = None,
) -> Array:
    """Soft Dice score of every class, from 0 (no overlap) to 1.

    D = (2 sum p y + smooth) / (sum p + sum y + smooth)

    The sums run over the voxels of each sample, or of the whole batch; p are the activated
    logits. A class with neither labels nor p scores 1, whatever `smooth` is; one without labels
    scores near 0 as soon as it has some p.

    Args:
      over: "sample" or "batch", what the sums run over. Over the batch, small and absent classes
        make less noise.
      smooth: added above and below, 0 or more.
      logits, labels, activation, ignore_label: see the module.

    Returns:
      (b, c) for samples, (c,) for the batch; float32.

    Source: Milletari et al., "V-Net", 3DV 2016, section 3; without their squares below, as in
    Drozdzal et al., "The importance of skip connections in biomedical image segmentation", 2016.

    >>> scores = soft_dice_scores(jnp.array([[[50.0, 0], [0, 50.0]]]), jnp.array([[0, 0]]))
    >>> [round(float(score), 2) for score in scores[0]]
    [0.67, 0.0]
    """
    where = "soft_dice_scores"
    return _overlap(where, logits, labels, 0.5, 0.5, over, smooth, activation, ignore_label)


def soft_dice(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    over: str = "sample",
    include_background: bool = True,
    smooth: float = 1e-5,
    activation: str = "softmax",
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Array:
    """Soft Dice loss: 1 - the mean of `soft_dice_scores` over classes, and over samples.

    L = sum_c w_c (1 - D_c) / sum_c w_c

    Args:
      include_background: whether class 0 counts.
      over, smooth: see `soft_dice_scores`. The others: see the module.

    >>> soft_dice(jnp.zeros((1, 4, 2)), jnp.array([[0, 0, 1, 1]]), smooth=0)
    Array(0.5, dtype=float32)
    """
    where = "soft_dice"
    scores = _overlap(where, logits, labels, 0.5, 0.5, over, smooth, activation, ignore_label)
    return _one_minus(where, scores, class_weights, include_background)


def tversky(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    over: str = "sample",
    include_background: bool = True,
    smooth: float = 1e-5,
    activation: str = "softmax",
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Array:
    """Tversky loss: soft Dice with the price of false positives and false negatives set apart.

    T = (2 TP + smooth) / (2 TP + 2 alpha FP + 2 beta FN + smooth)
    TP = sum p y,   FP = sum p (1 - y),   FN = sum (1 - p) y
    L = sum_c w_c (1 - T_c) / sum_c w_c

    With alpha = beta = 1/2 this is `soft_dice`, `smooth` included.

    Args:
      alpha: the price of a false positive, 0 or more.
      beta: the price of a false negative, 0 or more; above alpha it favours recall.
      include_background: whether class 0 counts.
      over, smooth: see `soft_dice_scores`. The others: see the module.

    Source: Salehi et al., "Tversky loss function for image segmentation using 3D fully
    convolutional deep networks", MLMI 2017, section 2.2.

    >>> tversky(jnp.zeros((1, 4, 2)), jnp.array([[0, 0, 1, 1]]), alpha=1, beta=2, smooth=0)
    Array(0.75, dtype=float32)
    """
    where = "tversky"
    _check_nonnegative(where, alpha=alpha, beta=beta)
    scores = _overlap(where, logits, labels, alpha, beta, over, smooth, activation, ignore_label)
    return _one_minus(where, scores, class_weights, include_background)


def dice_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    dice_weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
    over: str = "sample",
    include_background: bool = True,
    smooth: float = 1e-5,
    activation: str = "softmax",
    class_weights: ArrayLike | Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Array:
    """Soft Dice plus cross entropy, the usual loss of segmentation.

    L = dice_weight * soft_dice + cross_entropy_weight * cross_entropy

    With sigmoids the second is `binary_cross_entropy`. It counts the background always.

    Args:
      dice_weight, cross_entropy_weight: the two factors.
      over, include_background, smooth: see `soft_dice`. The others: see the module.

    Source: Isensee et al., "nnU-Net", Nature Methods 2021, online methods.

    >>> dice_cross_entropy(jnp.zeros((1, 4, 2)), jnp.array([[0, 0, 1, 1]]))  # 1/2 + log 2
    Array(1.19314..., dtype=float32)
    """
    where = "dice_cross_entropy"
    scores = _overlap(where, logits, labels, 0.5, 0.5, over, smooth, activation, ignore_label)
    dice = _one_minus(where, scores, class_weights, include_background)
    entropy = cross_entropy if activation == "softmax" else binary_cross_entropy
    kwargs = {"class_weights": class_weights, "ignore_label": ignore_label}
    return dice_weight * dice + cross_entropy_weight * entropy(logits, labels, **kwargs)


def _overlap(where, logits, labels, alpha, beta, over, smooth, activation, ignore_label) -> Array:
    """Tversky index of every class: (b, c), or (c,) over the batch."""
    _check_choice(where, "over", over, "sample", "batch")
    _check_nonnegative(where, smooth=smooth)
    logits, y, keep = _prepare(where, logits, labels, activation, ignore_label)
    p = jax.nn.softmax(logits) if activation == "softmax" else jax.nn.sigmoid(logits)
    p, y = p * keep, y * keep
    axes = range(1 if over == "sample" else 0, y.ndim - 1)
    both, sum_p, sum_y = (p * y).sum(axes), p.sum(axes), y.sum(axes)
    errors = 2 * alpha * (sum_p - both) + 2 * beta * (sum_y - both)
    return _ratio(2 * both + smooth, 2 * both + errors + smooth, empty=1.0)


def _one_minus(where, scores, class_weights, include_background) -> Array:
    """1 - the weighted mean of scores (b, c) or (c,)."""
    weights = jnp.broadcast_to(_weights(where, scores.shape[-1], class_weights), scores.shape)
    if not include_background:
        scores, weights = scores[..., 1:], weights[..., 1:]
    if not scores.size:
        raise ConfigError(
            where,
            "include_background=False with one channel",
            "a class besides the background",
            "Set include_background=True: a single channel is the foreground",
        )
    return _ratio((weights * (1 - scores)).sum(), weights.sum())


def _prepare(where, logits, labels, activation, ignore_label) -> tuple[Array, Array, Array]:
    """Check, and bring to one form: float32 logits, labels and `keep`, all (b, *spatial, c).

    `keep` is 1, but 0 at voxels to ignore. Where a sparse label is no class, labels are NaN.
    """
    _check_choice(where, "activation", activation, "softmax", "sigmoid")
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ShapeError(
            where,
            f"logits of shape {logits.shape} and dtype {logits.dtype}",
            "floating logits (b, *spatial, c)",
            "Give the model's output before its softmax or sigmoid",
        )
    c = logits.shape[-1]
    if c == 1 and activation == "softmax":
        raise ShapeError(
            where,
            f"logits of shape {logits.shape}, whose softmax is 1 everywhere",
            "two channels or more",
            "Use a sigmoid for a single channel",
            "binary_cross_entropy" if where == "cross_entropy" else 'activation="sigmoid"',
        )
    logits = logits.astype(jnp.float32)
    if labels.shape == logits.shape:
        if ignore_label is not None:
            raise ConfigError(
                where,
                f"ignore_label={ignore_label} with dense labels {labels.shape}",
                f"sparse labels {logits.shape[:-1]}",
                "Give integer labels without the channel axis, or drop ignore_label",
            )
        return logits, labels.astype(jnp.float32), jnp.ones_like(logits)
    integers = jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == bool
    if labels.shape != logits.shape[:-1] or not integers:
        raise ShapeError(
            where,
            f"labels of shape {labels.shape} and dtype {labels.dtype} for logits {logits.shape}",
            f"integers {logits.shape[:-1]} or probabilities {logits.shape}",
            "Cast class numbers to an integer dtype, without a channel axis",
            "labels[..., 0]" if labels.shape == (*logits.shape[:-1], 1) else None,
        )
    labels = labels.astype(jnp.int32)[..., None]
    known = (labels >= 0) & (labels < max(c, 2))
    keep = jnp.ones_like(logits)
    if ignore_label is not None:
        ignored = labels == ignore_label
        known, keep = known | ignored, jnp.where(ignored, 0.0, keep)
        logits = jnp.where(ignored, 0.0, logits)  # a NaN there would pass through 0 * NaN
    y = labels == (jnp.arange(c) if c > 1 else 1)
    return logits, jnp.where(known, y.astype(jnp.float32), jnp.nan), keep


def _weights(where: str, c: int, class_weights: ArrayLike | Sequence[float] | None) -> Array:
    weights = jnp.asarray(1.0 if class_weights is None else class_weights, jnp.float32)
    if class_weights is not None and weights.shape != (c,):
        raise ShapeError(
            where,
            f"class_weights of shape {weights.shape}",
            f"shape ({c},), as the logits have channels",
            "Give one weight per class, the background's included",
        )
    return jnp.broadcast_to(weights, (c,))


def _ratio(numerator: Array, denominator: Array, empty: float = 0.0) -> Array:
    """Quotient that is `empty`, with a gradient of 0, where the denominator is 0."""
    some = denominator != 0
    return jnp.where(some, numerator / jnp.where(some, denominator, 1.0), empty)


def _check_choice(where: str, name: str, value: str, *choices: str) -> None:
    if value not in choices:
        expected = " or ".join(repr(choice) for choice in choices)
        fix = f"Choose one of them for {name}"
        raise ConfigError(where, f"{name}={value!r}", expected, fix, nearest(str(value), choices))


def _check_nonnegative(where: str, **options: float) -> None:
    for name, value in options.items():
        if not value >= 0:
            raise ConfigError(where, f"{name}={value}", "0 or more", f"Raise {name} to 0 or above")
