"""Endless batches for training: deterministic, resumable, drawn ahead by threads.

What a batch holds follows from the seed and its position alone, not from threads or timing. Both
functions return a `grain.DatasetIterator`: `next(it)` gives a dict of numpy arrays,
`it.get_state()` a small dict of JSON, `it.set_state(state)` goes on exactly there, in this process
or another, and `it.close()` stops its threads.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from biojax.data.dataset import Case
from biojax.errors import ConfigError, DataError, ShapeError, require

if TYPE_CHECKING:
    import grain

__all__ = ["patches", "samples"]

_Sample = dict[str, np.ndarray]
_Transform = Callable[[_Sample, np.random.Generator], _Sample]

_ENDLESS = 2**62  # patches: grain counts in 64 bits
_KEPT = 10_000  # voxels kept of each class of a label


def patches(
    cases: Sequence[Case[np.ndarray]],
    *,
    patch: Sequence[int],
    batch: int,
    foreground: float = 1 / 3,
    ignore: int | None = None,
    seed: int = 0,
    transform: _Transform | None = None,
    threads: int = 2,
) -> "grain.DatasetIterator[_Sample]":
    """Draw patches from volumes, a set fraction of them about foreground voxels.

    Patch i is a foreground patch where floor((i + 1) f) > floor(i f), with f = `foreground`: any
    run of n patches holds n f of them, to within one. For such a patch a case that has foreground
    is drawn uniformly, then one of the classes above 0 present in it, then one of its voxels (of
    up to 10 000 kept for each class), and the patch is centred there as far as the border
    allows. For the others, a case and a position in it are drawn uniformly. A patch leaves the
    volume only along axes on which the volume is shorter; there it starts at 0 and its far end
    repeats its edge, as
    `biojax.inference.predict_volume` has it.

    Args:
      cases: with arrays, as `load_case` gives them: image (*spatial, c) of any real dtype, label
        (*spatial) of integers. Arrays may be memory-mapped, and cases may share a label by
        reference, as several renderings of one volume do. Labels are left out of the batches
        where the cases have none.
      patch: lengths of a patch, one for each spatial axis.
      batch: patches in a batch.
      foreground: fraction of foreground patches, in [0, 1].
      ignore: a label value that is no foreground, such as 255 for what the loss leaves out.
      seed: decides everything that is drawn. Give each host its own.
      transform: changes a patch on the host, (sample, random generator) -> sample; it runs in
        several threads and must draw from its generator alone.
      threads: how many draw ahead, each up to two batches; 0 draws when asked.

    Returns:
      Batches of image (b, *patch, c) in float32 and label (b, *patch) in int32.

    Raises:
      ConfigError: an option out of range.
      DataError: no cases, cases without arrays, or no foreground where some is asked for.
      ShapeError: ranks or shapes that do not fit.
      DependencyError: grain is not installed.

    An error in `transform` is raised by `next`, unchanged.
    Source: the third of foreground patches, and the draw of their classes, follow Isensee et al.,
    "nnU-Net", Nature Methods 18, 2021, supplementary note 2.

    >>> image = np.arange(64.0).reshape(8, 8, 1)
    >>> case = Case("a", image, (image[..., 0] == 27).astype(int))
    >>> batches = patches([case], patch=(3, 3), batch=2, foreground=1)
    >>> next(batches)["image"][0, ..., 0]
    array([[18., 19., 20.],
           [26., 27., 28.],
           [34., 35., 36.]], dtype=float32)
    """
    patch = tuple(patch)
    _check_options(batch, seed, threads)
    if not 0 <= foreground <= 1:
        raise ConfigError(
            "patches", f"foreground={foreground}", "a fraction in [0, 1]", "Give 1/3, not 33"
        )
    if not cases or len({case.label is None for case in cases}) > 1:
        raise DataError(
            "patches",
            "some cases with and some without a label" if cases else "no cases",
            "one or more cases, all with a label or all without",
            "Draw from the two kinds in turns",
        )
    volumes = [_arrays(case, patch) for case in cases]
    with_foreground = _with_foreground(volumes, ignore, seed) if foreground else []
    if foreground and not with_foreground:
        raise DataError(
            "patches",
            f"foreground={foreground} and no label above 0 in {len(cases)} cases",
            "some foreground to draw from",
            "Check the labels, or pass foreground=0",
        )

    def draw(index: int, rng: np.random.Generator) -> _Sample:
        if int((index + 1) * foreground) > int(index * foreground):
            image, label, classes = with_foreground[rng.integers(len(with_foreground))]
            places = classes[rng.integers(len(classes))]
            voxel = np.unravel_index(places[rng.integers(len(places))], label.shape)
            room = np.maximum(np.subtract(label.shape, patch), 0)
            start = np.clip(np.subtract(voxel, np.floor_divide(patch, 2)), 0, room)
        else:
            image, label = volumes[rng.integers(len(volumes))]
            room = np.maximum(np.subtract(image.shape[:-1], patch), 0)
            start = rng.integers(0, room, endpoint=True)
        sample = {"image": _crop(image, start, patch, np.float32)}
        if label is not None:
            sample["label"] = _crop(label, start, patch, np.int32)
        return transform(sample, rng) if transform else sample

    grain = require("grain", "train")
    return _batches(grain.MapDataset.range(_ENDLESS).seed(seed), draw, batch, threads)


def samples(
    images: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence | np.ndarray,
    *,
    batch: int,
    seed: int = 0,
    shuffle: bool = True,
    transform: _Transform | None = None,
    threads: int = 2,
) -> "grain.DatasetIterator[_Sample]":
    """Draw whole images, slices or spectra with their labels, epoch after epoch.

    Each epoch is a new permutation. Batches are all of one size and run on over the end of an
    epoch.

    Args:
      images: n images (*spatial, c) of one shape.
      labels: n labels of one shape: classes (integers), targets (floating) or masks.
      batch: samples in a batch.
      seed: decides the order and what `transform` draws.
      shuffle: False keeps the order given.
      transform: as in `patches`.
      threads: as in `patches`.

    Returns:
      Batches of image (b, *spatial, c) in float32 and label (b, ...), in int32 where it is given
      in integers and in float32 otherwise.

    Raises:
      ConfigError: an option out of range.
      DataError: no images, or not as many labels.
      ShapeError: images of different shapes.
      DependencyError: grain is not installed.

    >>> batches = samples(np.zeros((3, 8, 1)), [0, 1, 2], batch=2, shuffle=False)
    >>> [next(batches)["label"].tolist() for _ in range(3)]
    [[0, 1], [2, 0], [1, 2]]
    """
    _check_options(batch, seed, threads)
    if not len(images) or len(images) != len(labels):
        raise DataError(
            "samples",
            f"{len(images)} images and {len(labels)} labels",
            "one label for each image, and at least one image",
            "Pair them first",
        )
    for name, arrays in (("image", images), ("label", labels)):
        shapes = {np.shape(a) for a in (arrays[:1] if isinstance(arrays, np.ndarray) else arrays)}
        if len(shapes) > 1:
            raise ShapeError(
                "samples",
                f"{name}s of shapes {sorted(shapes)[:5]}",
                "one shape",
                "Crop or pad them to one shape, or draw patches",
            )
        dtype = np.asarray(arrays[0]).dtype
        if dtype.kind not in "iubf":
            raise DataError(
                "samples", f"{name}s of dtype {dtype}", "real numbers", "Number classes from 0"
            )

    def draw(index: int, rng: np.random.Generator) -> _Sample:
        label = np.asarray(labels[index])
        sample = {
            "image": np.array(images[index], np.float32),
            "label": label.astype(np.int32 if label.dtype.kind in "iub" else np.float32),
        }
        return transform(sample, rng) if transform else sample

    grain = require("grain", "train")
    indices = grain.MapDataset.range(len(images)).seed(seed)
    indices = indices.shuffle() if shuffle else indices
    return _batches(indices.repeat(), draw, batch, threads)


def _batches(indices: Any, draw: Callable, batch: int, threads: int) -> Any:
    grain = require("grain", "train")
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(indices.random_map(draw).batch(batch).to_iter_dataset(ahead))


def _with_foreground(
    volumes: Sequence[tuple[np.ndarray, Any]], ignore: int | None, seed: int
) -> list[tuple]:
    """The volumes that have foreground: image, label, and flat indices of voxels by class."""
    found: dict[int, list[np.ndarray]] = {}
    for _, label in volumes:
        if label is not None and id(label) not in found:
            rng = np.random.default_rng(seed)
            flat = np.ravel(label)
            places = np.flatnonzero(flat > 0)
            values = flat[places]
            classes = [value for value in np.unique(values) if value != ignore]
            by_class = (places[values == value] for value in classes)
            found[id(label)] = [
                rng.choice(some, min(_KEPT, len(some)), replace=False) for some in by_class
            ]
    return [(*volume, found[id(volume[1])]) for volume in volumes if found.get(id(volume[1]))]


def _crop(array: np.ndarray, start: np.ndarray, patch: tuple[int, ...], dtype: Any) -> np.ndarray:
    piece = array[tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))]
    short = [p - n for p, n in zip(patch, piece.shape, strict=False)]
    if any(short):
        rest = [(0, 0)] * (array.ndim - len(patch))
        piece = np.pad(piece, [*((0, n) for n in short), *rest], mode="edge")
    return np.array(piece, dtype)


def _arrays(case: Case[np.ndarray], patch: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """Image and label of a case, checked against each other and the patch."""
    image, label = case.image, case.label
    if not isinstance(image, np.ndarray) or not isinstance(label, np.ndarray | None):
        raise DataError(
            f"case {case.name}",
            f"image and label given as {type(image).__name__} and {type(label).__name__}",
            "arrays",
            "Read them first, with load_case",
        )
    spatial = image.shape[:-1]
    if len(spatial) != len(patch) or min(patch + image.shape) < 1:
        raise ShapeError(
            f"case {case.name}",
            f"an image of shape {image.shape} and patch {patch}",
            "image (*spatial, c) and one length of 1 or more for each spatial axis",
            "Add a channel axis with image[..., None], or correct the patch",
        )
    if label is not None and label.shape != spatial:
        raise ShapeError(
            f"case {case.name}",
            f"an image of shape {image.shape} and a label of shape {label.shape}",
            f"a label of shape {spatial}",
            "Check that image and label belong together",
        )
    return image, label


def _check_options(batch: int, seed: int, threads: int) -> None:
    if batch < 1 or threads < 0 or not 0 <= seed < 2**32:
        raise ConfigError(
            "loader",
            f"batch={batch}, seed={seed} and threads={threads}",
            "batch >= 1, 0 <= seed < 2**32 and threads >= 0",
            "Use threads=0 to draw in the calling thread",
        )
