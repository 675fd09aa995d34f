from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.data import augment, random_flip, random_intensity, random_rot90
from biojax.errors import ShapeError

SHAPE = (3, 4, 4)
flip, turn, intensity = map(jax.jit, (random_flip, random_rot90, random_intensity))


@pytest.fixture(scope="module")
def sample():
    """An image whose first channel is its label, every voxel different."""
    label = jnp.arange(48).reshape(SHAPE)
    image = jnp.stack([label, -label], axis=-1).astype(jnp.float32)
    return {"image": image, "label": label, "weight": jnp.float32(2)}


@pytest.mark.parametrize("move", [flip, turn])
def test_label_moves_with_the_image(sample, move):
    seen = Counter()
    for seed in range(60):
        moved = move(jax.random.key(seed), sample)
        np.testing.assert_array_equal(moved["image"][..., 0], moved["label"])
        np.testing.assert_array_equal(moved["image"][..., 1], -moved["label"])
        assert moved["weight"] == 2
        assert moved["label"].dtype == sample["label"].dtype
        seen[np.asarray(moved["label"]).tobytes()] += 1
    assert len(seen) == (8 if move is flip else 4)  # each outcome is reached
    assert max(seen.values()) < 60 * (0.3 if move is flip else 0.5)


def test_flip_is_its_own_inverse(sample):
    for seed in range(10):
        key = jax.random.key(seed)
        twice = flip(key, flip(key, sample))
        np.testing.assert_array_equal(twice["image"], sample["image"])
        np.testing.assert_array_equal(twice["label"], sample["label"])


def test_flip_keeps_to_the_axes_named(sample):
    outcomes = {
        np.asarray(random_flip(jax.random.key(seed), sample, axes=(-1,))["label"]).tobytes()
        for seed in range(10)
    }
    label = np.asarray(sample["label"])
    assert outcomes == {label.tobytes(), label[..., ::-1].tobytes()}


def test_rot90_is_a_turn_in_the_plane(sample):
    label = np.asarray(sample["label"])
    turns = [np.rot90(label, k, (1, 2)) for k in range(4)]
    for seed in range(10):
        moved = np.asarray(turn(jax.random.key(seed), sample)["label"])
        assert sum(np.array_equal(moved, turned) for turned in turns) == 1


@pytest.mark.parametrize("label", [jnp.int32(3), jnp.ones(5)])
def test_a_label_without_space_stays(sample, label):
    for move in (flip, turn):
        moved = move(jax.random.key(3), {**sample, "label": label})
        np.testing.assert_array_equal(moved["label"], label)


def test_a_sample_needs_no_label_and_a_label_may_have_channels(sample):
    key = jax.random.key(1)
    alone = flip(key, {"image": sample["image"]})
    assert set(alone) == {"image"}
    target = flip(key, {"image": sample["image"], "label": sample["image"] + 1})["label"]
    np.testing.assert_array_equal(target, alone["image"] + 1)


def test_geometry_that_does_not_fit(sample):
    key = jax.random.key(0)
    with pytest.raises(ShapeError, match="square"):
        random_rot90(key, sample, plane=(0, 1))
    with pytest.raises(ShapeError, match="two spatial axes"):
        random_rot90(key, sample, plane=(1,))  # pyright: ignore[reportArgumentType]
    for axes in [(3,), (-4,), (1, 1), (1, -2)]:
        with pytest.raises(ShapeError, match="spatial axes"):
            random_flip(key, sample, axes=axes)
    with pytest.raises(ShapeError, match="alike"):
        random_flip(key, {**sample, "label": sample["label"][:2]})


def test_intensity_is_affine_and_leaves_the_label(sample):
    image = np.asarray(sample["image"])
    scales, shifts = [], []
    for seed in range(40):
        changed = intensity(jax.random.key(seed), sample)
        np.testing.assert_array_equal(changed["label"], sample["label"])
        scale, shift = np.polyfit(image.ravel(), np.asarray(changed["image"]).ravel(), 1)
        np.testing.assert_allclose(changed["image"], scale * image + shift, atol=1e-4)
        scales.append(scale)
        shifts.append(shift)
    assert 0.9 <= min(scales) < 0.95 < 1.05 < max(scales) <= 1.1
    assert -0.1 <= min(shifts) < -0.05 < 0.05 < max(shifts) <= 0.1


def test_gamma_bends_between_the_extremes_of_each_channel(sample):
    only = jax.jit(partial(random_intensity, scale=0, shift=0, gamma=0.5))
    image = np.asarray(sample["image"])
    changed = np.asarray(only(jax.random.key(0), sample)["image"])
    axes = (0, 1, 2)
    np.testing.assert_allclose(changed.min(axes), image.min(axes), atol=1e-4)
    np.testing.assert_allclose(changed.max(axes), image.max(axes), atol=1e-4)
    unit = (changed[..., 0] / 47).ravel()[1:-1]
    exponents = np.log(unit) / np.log(image[..., 0].ravel()[1:-1] / 47)
    np.testing.assert_allclose(exponents, exponents[0], rtol=1e-3)
    assert np.exp(-0.5) <= exponents[0] <= np.exp(0.5)
    assert abs(exponents[0] - 1) > 1e-3


def test_noise_has_the_deviation_asked_for_and_zero_changes_nothing():
    sample = {"image": jnp.ones((40, 40, 2), jnp.bfloat16)}
    still = random_intensity(jax.random.key(0), sample, scale=0, shift=0)
    np.testing.assert_array_equal(still["image"], sample["image"])
    noisy = random_intensity(jax.random.key(0), sample, scale=0, shift=0, noise=0.5)["image"]
    assert noisy.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.std(np.float32(noisy)), 0.5, rtol=0.05)
    with pytest.raises(ShapeError, match="floating"):
        random_intensity(jax.random.key(0), {"image": jnp.ones((4, 1), jnp.int32)})


def test_a_constant_image_survives_gamma():
    sample = {"image": jnp.full((4, 4, 1), 3.0)}
    changed = random_intensity(jax.random.key(0), sample, scale=0, shift=0, gamma=0.5)
    np.testing.assert_array_equal(changed["image"], sample["image"])


def test_what_becomes_of_a_sample_does_not_depend_on_the_split_of_the_batch(sample):
    batch = jax.tree.map(lambda x: jnp.stack([x] * 4), sample)
    transforms = (random_flip, random_intensity)
    run = jax.jit(lambda key, batch, first: augment(key, batch, transforms, first=first))
    key = jax.random.key(7)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = run(key, jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data"))), 0)
    halves = [run(key, jax.tree.map(lambda x, i=i: x[i : i + 2], batch), i) for i in (0, 2)]
    for name in batch:
        joined = np.concatenate([half[name] for half in halves])
        np.testing.assert_allclose(joined, sharded[name], atol=1e-5)
    assert len({np.asarray(image).tobytes() for image in sharded["image"]}) == 4


def test_the_key_of_a_sample_is_folded_from_its_position(sample):
    batch = jax.tree.map(lambda x: jnp.stack([x] * 3), sample)
    key = jax.random.key(5)
    moved = jax.jit(augment, static_argnums=2)(key, batch, (random_flip,))
    for i in range(3):
        own = jax.random.fold_in(jax.random.fold_in(key, i), 0)
        expected = flip(own, sample)
        np.testing.assert_array_equal(moved["image"][i], expected["image"])
