import json

import numpy as np
import pytest

from biojax.data import Case, patches, samples
from biojax.errors import ConfigError, DataError, ShapeError

SHAPE = (9, 10, 11)
PATCH = (3, 4, 5)


def coordinates(shape):
    """An image whose channels are each voxel's own coordinates."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(np.float32)


@pytest.fixture(scope="module")
def cases():
    """Two cases: one with a blob of class 1 and a single voxel of class 3, one all background."""
    label = np.zeros(SHAPE, np.uint8)
    label[4:7, 3:8, 5:9] = 1
    label[8, 9, 10] = 3
    image = coordinates(SHAPE)
    return [Case("a", image, label), Case("blank", image + 100, np.zeros(SHAPE, np.uint8))]


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == b[name].dtype


def jitter(sample, rng):
    """A degradation that is new for every patch."""
    noise = rng.normal(size=sample["image"].shape).astype(np.float32)
    return {**sample, "image": sample["image"] + noise}


def test_patches_are_cut_from_the_volumes(cases):
    batches = patches(cases, patch=PATCH, batch=4, seed=3)
    for batch in take(batches, 10):
        assert batch["image"].shape == (4, *PATCH, 3)
        assert batch["image"].dtype == np.float32
        assert batch["label"].dtype == np.int32
        for image, label in zip(batch["image"], batch["label"], strict=True):
            case = cases[int(image.max() >= 100)]
            start = (image - (100 if case.name == "blank" else 0))[0, 0, 0].astype(int)
            window = tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True))
            np.testing.assert_array_equal(image, case.image[window])
            np.testing.assert_array_equal(label, case.label[window])


def test_foreground_patches_are_as_many_as_asked_and_centred(cases):
    batches = patches(cases, patch=PATCH, batch=100, foreground=0.25, seed=0)
    forced = np.arange(400) % 4 == 3
    drawn = take(batches, 4)
    image, label = (np.concatenate([batch[name] for batch in drawn]) for name in drawn[0])
    assert (image[forced] < 100).all()  # never from the case that is blank
    centres = label[forced][:, 1, 2, 2]
    corner = (label[forced] == 3).any((1, 2, 3))
    assert ((centres == 1) | corner).all()
    # Classes are drawn evenly, however few their voxels: 50 +- 4 standard deviations of 5.
    assert 30 < corner.sum() < 70
    # The others are uniform over cases and positions: 7 x 7 x 7 of them in each case.
    starts = image[~forced][:, 0, 0, 0]
    assert 0.4 < (starts[:, 0] >= 100).mean() < 0.6
    for axis in range(3):
        np.testing.assert_allclose(
            np.bincount(starts[:, axis].astype(int) % 100) / 300, 1 / 7, atol=0.08
        )


@pytest.mark.parametrize("foreground", [0, 1 / 3, 1])
def test_the_fraction_holds_in_every_run(foreground):
    label = np.zeros((64, 64), int)
    label[10, 10] = 1
    case = Case("a", coordinates(label.shape), label)
    batches = patches([case], patch=(1, 1), batch=30, foreground=foreground, seed=1)
    hits = np.concatenate([batch["label"].ravel() for batch in take(batches, 4)])
    assert abs(hits.sum() - 120 * foreground) <= 1


def test_a_volume_smaller_than_the_patch_repeats_its_far_edge():
    image = coordinates((2, 8)) + 1
    case = Case("thin", image, np.repeat([[1], [2]], 8, axis=1))
    batch = next(patches([case], patch=(4, 4), batch=5))
    np.testing.assert_array_equal(batch["image"][:, 2:], batch["image"][:, [1, 1]])
    np.testing.assert_array_equal(batch["label"][:, :, 0], [[1, 2, 2, 2]] * 5)
    np.testing.assert_array_equal(batch["image"][:, :2, 0, 0], [[1, 2]] * 5)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_follow_from_the_seed_not_the_threads(cases, threads):
    options = {"patch": PATCH, "batch": 3, "transform": jitter}
    expected = take(patches(cases, seed=5, threads=2, **options), 12)
    assert_same(take(patches(cases, seed=5, threads=threads, **options), 12), expected)
    other = next(patches(cases, seed=6, threads=threads, **options))
    assert not np.array_equal(other["image"], expected[0]["image"])


def test_randomness_follows_from_the_position_not_the_batch(cases):
    one = take(patches(cases, patch=PATCH, batch=1, transform=jitter), 6)
    three = take(patches(cases, patch=PATCH, batch=3, transform=jitter), 2)
    np.testing.assert_array_equal(
        np.concatenate([batch["image"] for batch in one]),
        np.concatenate([batch["image"] for batch in three]),
    )


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_patches_resume_exactly(cases, threads, stop):
    def start():
        return patches(cases, patch=PATCH, batch=2, seed=9, transform=jitter, threads=threads)

    expected = take(start(), 12)
    interrupted = start()
    take(interrupted, stop)
    state = json.loads(json.dumps(interrupted.get_state()))
    take(interrupted, 2)  # drawn, and lost with the process
    interrupted.close()
    resumed = start()
    resumed.set_state(state)
    assert_same(take(resumed, 12 - stop), expected[stop:])
    resumed.set_state(state)  # and back again, in the same process
    assert_same(take(resumed, 2), expected[stop : stop + 2])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_samples_resume_exactly_within_an_epoch(shuffle, stop):
    images, labels = np.arange(70.0).reshape(7, 5, 2), np.arange(7)

    def start():
        return samples(images, labels, batch=3, seed=4, shuffle=shuffle, transform=jitter)

    expected = take(start(), 9)
    interrupted = start()
    take(interrupted, stop)
    resumed = start()
    resumed.set_state(json.loads(json.dumps(interrupted.get_state())))
    assert_same(take(resumed, 9 - stop), expected[stop:])


def test_each_epoch_is_another_permutation():
    images = np.arange(10.0)[:, None, None]
    batches = samples(images, np.arange(10), batch=4, seed=0)
    drawn = take(batches, 25)
    labels = np.concatenate([batch["label"] for batch in drawn]).reshape(10, 10)
    np.testing.assert_array_equal(np.sort(labels, axis=1), [np.arange(10)] * 10)
    assert len({tuple(epoch) for epoch in labels}) == 10
    np.testing.assert_array_equal(
        np.concatenate([batch["image"] for batch in drawn])[:, 0, 0], labels.ravel()
    )
    other = next(samples(images, np.arange(10), batch=10, seed=1))["label"]
    assert not np.array_equal(other, labels[0])


def test_samples_keep_the_order_and_the_kind_of_the_labels():
    images = [np.full((4, 1), i, np.uint8) for i in range(3)]
    batch = next(samples(images, [0.5, 1.5, 2.5], batch=3, shuffle=False))
    assert batch["label"].dtype == np.float32
    np.testing.assert_array_equal(batch["label"], [0.5, 1.5, 2.5])
    assert batch["image"].dtype == np.float32
    np.testing.assert_array_equal(batch["image"][:, 0, 0], [0, 1, 2])
    masks = np.ones((3, 4), bool)
    batch = next(samples(images, masks, batch=2))
    assert batch["label"].dtype == np.int32
    assert batch["label"].shape == (2, 4)


def test_cases_without_labels_give_images_alone():
    case = Case("a", coordinates((6, 6)))
    batch = next(patches([case], patch=(2, 2), batch=2, foreground=0))
    assert batch.keys() == {"image"}


def test_renderings_share_their_label():
    label = np.zeros((6, 6), int)
    label[2, 3] = 1
    renderings = [Case(f"{i}", np.full((6, 6, 1), i, np.float16), label) for i in range(3)]
    batches = patches(renderings, patch=(3, 3), batch=30, foreground=1)
    batch = next(batches)
    assert (batch["label"][:, 1, 1] == 1).all()
    assert set(np.unique(batch["image"])) == {0, 1, 2}


def test_what_is_ignored_is_no_foreground():
    label = np.full((20, 20), 255, np.uint8)
    label[7, 9] = 1
    case = Case("a", coordinates(label.shape), label)
    options = {"patch": (1, 1), "batch": 40, "foreground": 1}
    assert (next(patches([case], ignore=255, **options))["label"] == 1).all()
    assert (next(patches([case], **options))["label"] == 255).any()


def test_a_class_of_many_voxels_is_drawn_from_all_over_it():
    label = np.ones((120, 120), np.uint8)  # more voxels than are kept
    case = Case("a", coordinates(label.shape), label)
    batch = next(patches([case], patch=(1, 1), batch=2000, foreground=1))
    means = batch["image"].mean((0, 1, 2))
    np.testing.assert_allclose(means, 59.5, atol=4)
    assert len(np.unique(batch["image"].reshape(-1, 2), axis=0)) > 1700


def test_memory_mapped_volumes(tmp_path, cases):
    np.save(tmp_path / "image.npy", cases[0].image)
    mapped = Case("a", np.load(tmp_path / "image.npy", mmap_mode="r"), cases[0].label)
    options = {"patch": PATCH, "batch": 2, "seed": 2}
    assert_same(take(patches([mapped], **options), 3), take(patches(cases[:1], **options), 3))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_in_a_transform_arrives_as_it_was(cases, threads):
    def fails(sample, rng):
        raise KeyError("the original message")

    batches = patches(cases, patch=PATCH, batch=2, transform=fails, threads=threads)
    with pytest.raises(KeyError, match="the original message") as caught:
        next(batches)
    assert any(entry.name == "fails" for entry in caught.traceback)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"foreground": 33}, ConfigError, "fraction"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"batch": 0}, ConfigError, "batch"),
        ({"threads": -1}, ConfigError, "threads"),
        ({"patch": (3, 3)}, ShapeError, "spatial axis"),
        ({"patch": (3, 3, 0)}, ShapeError, "1 or more"),
    ],
)
def test_options_out_of_range(cases, options, error, said):
    with pytest.raises(error, match=said):
        patches(cases, **{"patch": PATCH, "batch": 2, **options})


def test_cases_that_cannot_be_drawn_from(tmp_path):
    image, label = coordinates((6, 6)), np.zeros((6, 6), int)
    for cases, error, said in [
        ([], DataError, "no cases"),
        ([Case("a", image, label), Case("b", image)], DataError, "without a label"),
        ([Case("a", tmp_path, label)], DataError, "load_case"),
        ([Case("a", image, label)], DataError, "foreground=0"),
        ([Case("a", image)], DataError, "foreground=0"),
        ([Case("a", image, label[:3])], ShapeError, "case a"),
        ([Case("a", image[..., 0], label)], ShapeError, "channel axis"),
    ]:
        with pytest.raises(error, match=said):
            patches(cases, patch=(2, 2), batch=1)


def test_samples_that_do_not_fit():
    images = np.zeros((3, 4, 1))
    with pytest.raises(DataError, match="3 images and 2 labels"):
        samples(images, [0, 1], batch=1)
    with pytest.raises(DataError, match="0 images"):
        samples([], [], batch=1)
    with pytest.raises(ShapeError, match="one shape"):
        samples([np.zeros((4, 1)), np.zeros((5, 1))], [0, 1], batch=1)
    with pytest.raises(DataError, match="numbers"):
        samples(images, ["a", "b", "c"], batch=1)
