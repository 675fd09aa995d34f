"""Losses against hand values, optax, published values and each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biojax import losses
from biojax.errors import ConfigError, ShapeError

SHAPE = (2, 3, 4)  # b, h, w of random cases
C = 3
SOFTMAX = {
    "cross_entropy": losses.cross_entropy,
    "focal": losses.focal,
    "soft_dice": losses.soft_dice,
    "soft_dice_batch": partial(losses.soft_dice, over="batch"),
    "tversky": losses.tversky,
}
SIGMOID = {
    "binary_cross_entropy": losses.binary_cross_entropy,
    "focal_sigmoid": partial(losses.focal, activation="sigmoid"),
    "soft_dice_sigmoid": partial(losses.soft_dice, activation="sigmoid"),
}
ALL = {name: jax.jit(loss) for name, loss in (SOFTMAX | SIGMOID).items()}
GRADIENT = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in (SOFTMAX | SIGMOID).items()}
every = pytest.mark.parametrize("name", ALL)


def case(seed=0, c=C):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(*SHAPE, c)).astype(np.float32)
    return logits, rng.integers(0, c, size=SHAPE).astype(np.int32)


def run(loss, logits, labels, **options):
    """One compiled call: operation by operation takes far longer."""
    return jax.jit(partial(loss, **options))(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))


# Values


def test_cross_entropy_is_optax():
    logits, labels = case()
    optax_loss = jax.jit(optax.softmax_cross_entropy_with_integer_labels)
    expected = optax_loss(logits, labels).mean()
    np.testing.assert_allclose(ALL["cross_entropy"](logits, labels), expected, rtol=1e-6)


def test_class_weights_by_hand():
    logits = np.log([[0.5, 0.5], [0.1, 0.9]])
    weighted = run(losses.cross_entropy, logits, [0, 1], class_weights=[3, 1])
    np.testing.assert_allclose(weighted, (3 * np.log(2) - np.log(0.9)) / 4, rtol=1e-6)


def test_binary_cross_entropy_by_hand():
    p = np.array([[0.2, 0.6], [0.7, 0.5]])
    y = np.array([[0.0, 1.0], [1.0, 1.0]])
    each = -np.log(np.where(y == 1, p, 1 - p))
    loss = partial(run, losses.binary_cross_entropy, np.log(p / (1 - p)), y)
    np.testing.assert_allclose(loss(), each.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss(class_weights=[1, 3]), (each @ [1, 3]).sum() / 8, rtol=1e-5)


def test_focal_by_hand():
    value = run(losses.focal, np.log([[0.25, 0.75]]), [0], gamma=2)
    np.testing.assert_allclose(value, -(0.75**2) * np.log(0.25), rtol=1e-6)
    # One channel: p = 0.8, once right and once wrong.
    value = run(losses.focal, np.log([[4.0], [4.0]]), [1, 0], gamma=3, activation="sigmoid")
    expected = -(0.2**3 * np.log(0.8) + 0.8**3 * np.log(0.2)) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_soft_dice_by_hand():
    p = np.array([[[0.5, 0.5], [0.2, 0.8]], [[0.9, 0.1], [0.6, 0.4]]])
    labels = np.array([[0, 1], [0, 0]])
    scores = partial(run, losses.soft_dice_scores, np.log(p), labels)
    expected = np.array([[2 * 0.5 / 1.7, 2 * 0.8 / 2.3], [2 * 1.5 / 3.5, 0]])
    np.testing.assert_allclose(scores(smooth=0), expected, rtol=1e-6)
    batch = scores(smooth=0, over="batch")
    np.testing.assert_allclose(batch, [2 * 2.0 / 5.2, 2 * 0.8 / 2.8], rtol=1e-6)
    np.testing.assert_allclose(scores(smooth=1.0)[0], [2 / 2.7, 2.6 / 3.3], rtol=1e-6)

    loss = partial(run, losses.soft_dice, np.log(p), labels, smooth=0)
    np.testing.assert_allclose(loss(), 1 - expected.mean(), rtol=1e-6)
    foreground = loss(include_background=False)
    np.testing.assert_allclose(foreground, 1 - expected[:, 1].mean(), rtol=1e-6)
    weighted = loss(class_weights=[1, 3])
    np.testing.assert_allclose(weighted, 1 - (expected @ [1, 3]).mean() / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels", "options", "expected"),
    [  # values published with MONAI's DiceLoss
        ([[[1], [-1], [-1], [1]]], [[1, 0, 1, 1]], {"smooth": 1e-6}, 0.307576),
        ([[[1], [-1], [-1], [1]]] * 2, [[1, 1, 1, 1], [1, 0, 1, 0]], {"smooth": 1e-4}, 0.416657),
        (
            [[[-1, 1], [0, 0], [1, -1]], [[0, 0], [0, 0], [0, 0]]],
            [[1, 0, 0], [1, 1, 0]],
            {"smooth": 1e-4},
            0.435050,
        ),
        (
            [[[-1, 1], [0, 0], [1, -1]], [[0, 0], [0, 0], [0, 0]]],
            [[1, 0, 0], [1, 1, 0]],
            {"smooth": 1e-4, "activation": "softmax"},
            0.383713,
        ),
    ],
)
def test_soft_dice_published_values(logits, labels, options, expected):
    value = run(losses.soft_dice, logits, labels, **{"activation": "sigmoid", **options})
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_tversky_by_hand():
    p = np.array([[[0.4, 0.6], [0.3, 0.7]]])
    scores = [0.4 / (0.4 + 0.2 * 0.3 + 0.8 * 0.6), 0.7 / (0.7 + 0.2 * 0.6 + 0.8 * 0.3)]
    value = run(losses.tversky, np.log(p), [[0, 1]], alpha=0.2, beta=0.8, smooth=0)
    np.testing.assert_allclose(value, 1 - np.mean(scores), rtol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_dice_cross_entropy_is_the_weighted_sum(activation):
    logits, labels = case()
    options = {"class_weights": (1.0, 2.0, 3.0), "ignore_label": 1}
    entropy = losses.cross_entropy if activation == "softmax" else losses.binary_cross_entropy
    entropy = run(entropy, logits, labels, **options)
    options |= {"activation": activation, "over": "batch"}
    dice = run(losses.soft_dice, logits, labels, **options)
    options |= {"dice_weight": 0.3, "cross_entropy_weight": 2.0}
    value = run(losses.dice_cross_entropy, logits, labels, **options)
    np.testing.assert_allclose(value, 0.3 * dice + 2 * entropy, rtol=1e-6)


# Identities

SPECIAL = {  # what equals what
    "cross_entropy": jax.jit(partial(losses.focal, gamma=0.0)),
    "binary_cross_entropy": jax.jit(partial(losses.focal, gamma=0.0, activation="sigmoid")),
    "soft_dice": jax.jit(partial(losses.tversky, alpha=0.5, beta=0.5)),
}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_identities(seed):
    logits, labels = case(seed)
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    one_hot = np.eye(C, dtype=np.float32)[labels]
    order = np.random.default_rng(seed).permutation(C)
    weights = np.array([0.5, 1.0, 4.0], np.float32)
    for loss in ALL.values():
        value = loss(logits, labels)
        weighted = loss(logits, labels, class_weights=weights)
        close(loss(logits, one_hot), value)
        close(loss(logits[..., order], np.argsort(order)[labels].astype(np.int32)), value)
        close(loss(logits, labels, class_weights=7 * weights), weighted)
    for name, loss in SPECIAL.items():
        close(loss(logits, labels), ALL[name](logits, labels))


@every
def test_ignoring_is_removing(name):
    """The same row of each sample is left out, by its label and by deletion."""
    logits, labels = case()
    labels[labels == 1] = 0  # so that 1 may be ignored as well as what is no class
    removed = ALL[name](logits[:, [0, 2]], labels[:, [0, 2]])
    for ignore_label in (1, 255, -1):
        labels[:, 1] = ignore_label
        ignored = ALL[name](logits, labels, ignore_label=ignore_label)
        np.testing.assert_allclose(ignored, removed, rtol=1e-5)


@every
def test_everything_ignored_is_zero(name):
    logits, labels = case()
    assert ALL[name](logits, np.full_like(labels, 9), ignore_label=9) == 0


@pytest.mark.parametrize("name", ["cross_entropy", "soft_dice"])
def test_everything_ignored_has_no_gradient(name):
    logits, labels = case()
    _, gradient = GRADIENT[name](logits, np.full_like(labels, 9), ignore_label=9)
    assert not np.any(gradient)


@every
def test_a_label_that_is_no_class_is_loud(name):
    for label in (C, -1, 255):
        logits, labels = case()
        labels[0, 0, 0] = label
        assert np.isnan(ALL[name](logits, labels))
        labels[0, 0, 1] = 9
        assert np.isnan(ALL[name](logits, labels, ignore_label=9))


@pytest.mark.parametrize("name", SIGMOID)
def test_one_channel_takes_a_mask(name):
    logits, labels = case(c=2)
    logits = logits[..., :1]
    dense = ALL[name](logits, labels[..., None].astype(np.float32))
    np.testing.assert_allclose(ALL[name](logits, labels), dense, rtol=1e-6)
    np.testing.assert_allclose(ALL[name](logits, labels == 1), dense, rtol=1e-6)


def test_a_sigmoid_is_the_softmax_of_itself_and_zero():
    logits, labels = case(c=2)
    logits[..., 0] = 0
    binary = ALL["binary_cross_entropy"](logits[..., 1:], labels)
    np.testing.assert_allclose(binary, ALL["cross_entropy"](logits, labels), rtol=1e-5)


def test_absent_class():
    """Nothing to find and nothing found scores 1; something found scores near 0."""
    logits = [[[0.0, -np.inf], [0.0, -np.inf]]]
    for smooth in (0.0, 1e-5):
        scores = run(losses.soft_dice_scores, logits, [[0, 0]], smooth=smooth)
        np.testing.assert_array_equal(scores, [[1.0, 1.0]])
    assert run(losses.soft_dice_scores, np.zeros((1, 2, 2)), [[0, 0]])[0, 1] < 2e-5


# Extremes


@every
def test_extreme_logits_have_finite_gradients(name):
    """In bfloat16 too, which is computed as float32 and so has the same value."""
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=(*SHAPE, C))
    for size in (0.0, 17.0, 104.0, 1e4):
        logits = jnp.asarray(signs * size, jnp.bfloat16)
        value, gradient = GRADIENT[name](logits, case()[1])
        assert np.isfinite(value)
        assert value.dtype == jnp.float32
        expected = ALL[name](np.asarray(logits, np.float32), case()[1])
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert gradient.dtype == jnp.bfloat16
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_focal_gradient_is_finite_where_p_is_one(activation):
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4], [30.0, -30.0], [0.0, 0.0]])
    labels = jnp.array([0, 0, 0, 1])
    for gamma in (0.0, 0.5, 2.0):
        loss = partial(losses.focal, gamma=gamma, activation=activation)
        value, gradient = jax.jit(jax.value_and_grad(loss))(logits, labels)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_a_ruled_out_class_is_no_nan():
    logits = jnp.array([[0.0, 0.0, -jnp.inf]])
    value, gradient = GRADIENT["cross_entropy"](logits, jnp.array([0]))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.5, 0.5, 0.0]], atol=1e-7)


@every
def test_every_rank(name):
    rng = np.random.default_rng(0)
    for spatial in ((), (2, 3, 4)):
        logits = rng.normal(size=(2, *spatial, C)).astype(np.float32)
        value = ALL[name](logits, rng.integers(0, C, size=(2, *spatial)))
        assert value.shape == ()
        assert 0 < value < 5


@pytest.mark.parametrize("name", ["soft_dice", "tversky", "focal", "focal_sigmoid"])
def test_gradient_by_finite_differences(name):
    logits, labels = case()
    direction = np.random.default_rng(2).normal(size=logits.shape).astype(np.float32)
    _, gradient = GRADIENT[name](logits, labels)
    step = 1e-2 * direction
    slope = (ALL[name](logits + step, labels) - ALL[name](logits - step, labels)) / 2e-2
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-3, atol=2e-4)


# Errors


def test_shapes_that_do_not_fit():
    logits, labels = case()
    with pytest.raises(
        ShapeError, match=r"\(2, 3, 4\) or probabilities .* Did you mean labels\[\.\.\., 0\]"
    ):
        losses.cross_entropy(logits, labels[..., None])
    for loss in (SOFTMAX | SIGMOID).values():
        with pytest.raises(ShapeError, match="labels of shape"):
            loss(logits, labels[:, :2])
        with pytest.raises(ShapeError, match="labels of shape"):
            loss(logits, labels.astype(np.float32))
        with pytest.raises(ShapeError, match="class_weights of shape"):
            run(loss, logits, labels, class_weights=np.ones(2))
        with pytest.raises(ShapeError, match="floating logits"):
            loss(labels, labels)
        with pytest.raises(ConfigError, match="dense labels"):
            loss(logits, np.zeros_like(logits), ignore_label=0)
    for loss in SOFTMAX.values():
        with pytest.raises(ShapeError, match="two channels or more"):
            loss(logits[..., :1], labels)


def test_options_that_do_not_exist():
    logits, labels = case()
    with pytest.raises(ConfigError, match="Did you mean 'sample'"):
        losses.soft_dice(logits, labels, over="samples")
    with pytest.raises(ConfigError, match="Did you mean 'sigmoid'"):
        losses.focal(logits, labels, activation="sigmod")
    with pytest.raises(ConfigError, match="gamma=-1"):
        losses.focal(logits, labels, gamma=-1)
    with pytest.raises(ConfigError, match="beta=-1"):
        losses.tversky(logits, labels, beta=-1)
    with pytest.raises(ConfigError, match="smooth=-1"):
        losses.soft_dice(logits, labels, smooth=-1)
    with pytest.raises(ConfigError, match="single channel is the foreground"):
        run(
            losses.soft_dice,
            logits[..., :1],
            labels,
            activation="sigmoid",
            include_background=False,
        )


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "soft_dice", "dice_cross_entropy"])
def test_nan_where_the_label_is_ignored_leaves_no_trace(name):
    loss = getattr(losses, name)
    labels = jnp.array([[0, 1, 255]])
    logits = jnp.array([[[1.0, 2.0], [0.5, -1.0], [0.3, 0.1]]])
    broken = logits.at[0, 2].set(jnp.nan)
    value, gradient = jax.value_and_grad(loss)(broken, labels, ignore_label=255)
    assert value == loss(logits, labels, ignore_label=255)
    assert jnp.isfinite(gradient).all()
    assert not gradient[0, 2].any()


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([[0, 0, 1]], {"class_weights": (2.0, 0.0)}),
        ([[[1.0, 0.0], [0.2, 0.8], [0.0, 0.0]]], {}),
        ([[0, 1, 255]], {"ignore_label": 255}),
    ],
    ids=["class of weight 0", "empty dense label", "ignored"],
)
@pytest.mark.parametrize("all_channels", [True, False])
def test_logits_of_a_voxel_without_weight_leave_no_trace(labels, options, value, all_channels):
    labels = jnp.array(labels)
    logits = jnp.array([[[1.0, 2.0], [0.5, -1.0], [0.3, 0.1]]])
    broken = logits.at[0, 2, slice(None) if all_channels else 1].set(value)
    both = jax.value_and_grad(partial(losses.cross_entropy, **options))
    got, want = both(broken, labels), both(logits, labels)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-6)
    assert not want[1][0, 2].any()


def test_logits_of_a_voxel_with_weight_stay_loud():
    logits = jnp.array([[jnp.nan, 0.0], [1.0, 2.0]])
    assert jnp.isnan(losses.cross_entropy(logits, jnp.array([0, 1]), class_weights=(1.0, 0.0)))
