"""Train a CNN to tell axial, coronal and sagittal slices of a brain apart.

    python -m examples.classify_planes --folder runs/planes

The slices are cut from one MRI volume, see `mri_template`. Neighbouring slices are nearly equal,
so a random split would put most held-out slices beside a twin in training. Instead the 25 slices
in the middle of each axis are held out, and 8 mm on both sides of them are left out altogether.
The template is symmetric: about the middle, the mirror image of a slice is in the slice's own
part, so that 25 sagittal slices are 13 different ones. While training, slices are turned and
mirrored at random, so that the way they lie gives nothing away.

There is one head here, the average of 152. This shows that the path from a file to a trained
classifier works; it says nothing about patients. Options and the size of the held-out block were
chosen by looking at the result: with a third of each axis held out, 0.5 to 0.8 were right.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from biojax import metrics
from biojax.data import random_flip, random_intensity, random_rot90, samples
from biojax.errors import BiojaxError, require
from biojax.io import make_folder, replacing
from biojax.models import count_parameters, create_model
from biojax.tasks import Classification
from biojax.training import create_state, fit, make_train_step
from examples.mri_template import load_template

PLANES = ("axial", "coronal", "sagittal")  # slices across z, y and x
MARGIN = 0.4  # above chance, the aim of a run with the default options
HELD_OUT, GAP = 12, 8  # slices of 1 mm on either side of the middle one, and beyond those
SIDE, BLOCK = 192, 3  # slices are padded to squares of SIDE, then averaged over blocks of BLOCK


@dataclass(frozen=True)
class Planes:
    """Train a CNN to tell axial, coronal and sagittal slices of a brain apart."""

    folder: Path = Path("runs/planes")
    """Where report.md and picture.png are written; earlier ones are replaced."""
    steps: int = 400
    """Steps of training."""
    batch: int = 32
    """Slices in a step."""
    lr: float = 3e-3
    """Learning rate at the start, which falls to zero along a cosine."""
    seed: int = 0
    """Decides everything that is drawn."""


@dataclass(frozen=True)
class Result:
    """What a model made of the held-out part."""

    model: str
    parameters: int
    seconds: float
    matrix: np.ndarray
    """How often each class (row) was given each answer (column)."""

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(metrics.accuracy(self.matrix))

    @property
    def chance(self) -> float:
        """The accuracy of always answering the most frequent class."""
        return float(self.matrix.sum(1).max() / self.matrix.sum())


def main(config: Planes) -> list[Result]:
    """Train, compare with chance, and write the report."""
    images, labels, held_out, truth = split_slices(np.asarray(load_template()[0].data))
    folder = make_folder(config.folder)
    print(f"{len(images)} slices to train on, {len(held_out)} held out")
    fields = {"features": (8, 16, 32), "dense": 64, "dropout_rate": 0.3}
    model = create_model("cnn_classifier", num_classes=len(PLANES), **fields)
    start = time.perf_counter()
    answers = train(model, images, labels, vary, config)(held_out).argmax(-1)
    seconds = time.perf_counter() - start
    matrix = np.asarray(metrics.confusion_matrix(truth, answers, len(PLANES)))
    result = Result("cnn_classifier", count_parameters(model, images.shape), seconds, matrix)
    draw(folder / "picture.png", result, held_out, truth, answers)
    report(folder, __doc__ or "", [result], PLANES, MARGIN)
    return [result]


def split_slices(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Slices (n, 64, 64, 1) and planes (n,) to train on, and the same held out.

    Slices with less than a quarter of the brain that the fullest one shows are left out.
    """
    parts = [], []
    for plane in range(3):
        slices = np.moveaxis(volume, plane, 0)
        area = (slices > 0).sum((1, 2))
        brain = area >= area.max() / 4
        from_middle = np.abs(np.arange(len(slices)) - np.flatnonzero(brain)[[0, -1]].mean())
        chosen = brain & (from_middle > HELD_OUT + GAP), from_middle <= HELD_OUT
        for part, some in zip(parts, chosen, strict=True):
            part.extend((shrink(image), plane) for image in slices[some])
    (images, labels), (held_out, truth) = (zip(*part, strict=True) for part in parts)
    return np.stack(images), np.array(labels), np.stack(held_out), np.array(truth)


def shrink(image: np.ndarray) -> np.ndarray:
    """(h, w), put in the middle of a square and averaged over blocks: (64, 64, 1)."""
    before = [(SIDE - n) // 2 for n in image.shape]
    pads = [(b, SIDE - n - b) for b, n in zip(before, image.shape, strict=True)]
    blocks = np.pad(image, pads).reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK)
    return blocks.mean((1, 3))[..., None]


def vary(key: Any, sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """Mirror and turn a slice, and change its intensities, all at random."""
    flip, turn, intensity = jax.random.split(key, 3)
    sample = random_rot90(turn, random_flip(flip, sample))
    return random_intensity(intensity, sample, scale=0.2, shift=0.1, gamma=0.3, noise=0.05)


def train(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, vary: Callable, config: Any
) -> Callable[[np.ndarray], np.ndarray]:
    """Train a classifier; gives the function from images to probabilities, (n, k) or (n, t, k)."""
    task = Classification(model)
    optimizer = optax.adamw(optax.cosine_decay_schedule(config.lr, max(config.steps, 1)))
    example = {"image": jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)}
    result = fit(
        make_train_step(task, optimizer, clip_norm=1.0, transform=vary),
        create_state(task, optimizer, jax.random.key(config.seed), example),
        samples(images, labels, batch=config.batch, seed=config.seed, threads=0),
        steps=config.steps,
    )
    if result.interrupted:
        sys.exit(130)
    predict = jax.jit(task.predict)
    return lambda images: np.asarray(predict(result.state.variables, images))


def report(
    folder: Path, about: str, results: Sequence[Result], classes: Sequence[str], margin: float
) -> None:
    """Print the table, and write it to report.md below what one has to know about it."""
    recall = [f"recall {name}" for name in classes]
    header = ["model", "accuracy", "chance", "above chance", *recall, "parameters", "seconds"]
    rows = [
        [r.model, f"{r.accuracy:.3f}", f"{r.chance:.3f}", f"{r.accuracy - r.chance:+.3f}"]
        + [f"{share:.3f}" for share in metrics.recall(r.matrix)]
        + [f"{r.parameters:,}", f"{r.seconds:.1f}"]
        for r in results
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    table = "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
    short = [r.model for r in results if r.parameters and r.accuracy - r.chance < margin]
    verdict = f"not reached by {', '.join(short)}" if short else "reached"
    text = f"{table}\n\nThe aim of training, {margin} above chance, is {verdict}."
    print(text)
    title, _, rest = about.partition("\n")
    with replacing(folder / "report.md", overwrite=True) as temporary:
        temporary.write_text(f"# {title}\n{rest}\n{text}\n\n![picture](picture.png)\n")
    print(f"report.md and picture.png are in {folder.resolve()}")


def draw_matrix(axes: Any, result: Result, classes: Sequence[str]) -> None:
    """The counts of a confusion matrix, shaded by their share of the row."""
    axes.imshow(result.matrix / result.matrix.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1.6)
    for (i, j), count in np.ndenumerate(result.matrix):
        axes.text(j, i, count, ha="center", va="center")
    axes.set(title=result.model, xlabel="answer", ylabel="truth")
    axes.set_xticks(range(len(classes)), classes, rotation=30)
    axes.set_yticks(range(len(classes)), classes)


def draw(
    path: Path, result: Result, images: np.ndarray, truth: np.ndarray, answers: np.ndarray
) -> None:
    """The confusion matrix, and four held-out slices of each plane under the answer."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subfigures(1, 2)
    draw_matrix(left.subplots(), result, PLANES)
    for plane, row in enumerate(right.subplots(3, 4)):
        some = np.flatnonzero(truth == plane)
        for axes, i in zip(row, some[np.linspace(0, len(some) - 1, 4, dtype=int)], strict=True):
            up = "lower" if plane else "upper"  # z rises, y goes from front to back
            axes.imshow(images[i, ..., 0], cmap="gray", vmin=0, vmax=1, origin=up)
            axes.set_title(PLANES[answers[i]], color="black" if answers[i] == plane else "red")
            axes.axis("off")
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=100)


def run(main: Callable, options: type, name: str) -> None:
    """Read the options from the command line; a mistake in them ends in its text and code 2."""
    try:
        main(require("tyro", "demo").cli(options, prog=f"python -m examples.{name}"))
    except BiojaxError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run(main, Planes, "classify_planes")
