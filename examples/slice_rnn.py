"""Train a recurrence over slices to tell balls from rods, which look alike in a slice.

    python -m examples.slice_rnn --folder runs/slices

A nodule and a vessel are the same bright disc in a slice; they differ a few slices further on. Here
stacks of 12 windows, 60 mm wide and 3 mm apart, are cut from the coronal slices of one MRI volume,
see `mri_template`, in one of both directions, and two things are drawn into each: a rod through all
slices, and a ball or another rod, which is as thick as the ball would be at a random place. Every
slice then gets its own brightness, contrast and noise. The network answers for each slice (does it
cut a ball?) and for the whole stack (is there a ball?). Stacks to train on come from the back of
the head. Those held out come from the 66 mm at the front, 8 mm apart from the others, so that the
network has seen neither these slices nor this part of a brain.

It is compared with the same network trained on one slice at a time, as much as a slice can tell; it
answers for stacks by the mean over their slices. And with a filter without training, the classical
one for this, which finds dots and not lines by the curvatures of the stack in three dimensions; its
scale is chosen on stacks to train on. Areas under the ROC curve; chance is 0.5.

The head is real, and the average of 152; balls and rods are not, and they are plainer than nodules
and vessels. So this shows that slices get their context from the recurrence, and nothing about
patients. The options were chosen by looking at the result.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import ndimage, stats

from biojax import metrics
from biojax.data import samples
from biojax.errors import require
from biojax.io import make_folder, replacing
from biojax.losses import binary_cross_entropy
from biojax.models import SliceRNN, count_parameters
from biojax.tasks import apply_model, init_variables
from biojax.training import create_state, fit, make_train_step
from examples.classify_planes import run
from examples.mri_template import load_template, split
from examples.next_frame import report

DEPTH = 12  # slices of a stack
BLOCK = 3  # mm along each axis that are averaged
NOISE = 0.05  # standard deviation, as a share of the range
BRIGHT = 0.5  # what balls and rods add, as a share of the range
RADII = (2.0, 3.5)  # of balls, in blocks
SIDE = 20  # blocks along each axis of a slice
TISSUE = 0.6  # of a slice that grey and white matter must fill
SCALES = (0.7, 1.0, 1.5, 2.0)  # of the filter, in blocks


@dataclass(frozen=True)
class Slices:
    """Train a recurrence over slices to tell balls from rods, which look alike in a slice."""

    folder: Path = Path("runs/slices")
    """Where report.md and picture.png are written; earlier ones are replaced."""
    steps: int = 1200
    """Steps of training."""
    batch: int = 16
    """Stacks in a step."""
    stacks: int = 4096
    """Stacks to train on; a sixteenth as many are held out."""
    lr: float = 2e-3
    """Learning rate at the start, which falls to zero along a cosine."""
    seed: int = 0
    """Decides everything that is drawn."""


class Result(NamedTuple):
    """How well a method answers for the held-out stacks.

    Args:
      method: its name.
      slices: area under the ROC curve, over all slices.
      stacks: the same over all stacks.
      parameters: how many it has.
      seconds: to fit and to answer.
    """

    method: str
    slices: float
    stacks: float
    parameters: int
    seconds: float


@dataclass(frozen=True)
class FindBalls:
    """The task: `image` (b, d, h, w, 1) are stacks, `label` (b, d + 1) the answers.

    Those for each slice come first, that for the stack last.
    """

    model: nn.Module

    def init(self, key: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Variables to start from."""
        return init_variables(self.model, key, batch["image"])

    def __call__(
        self, variables: Mapping[str, Any], batch: Mapping[str, Any], *, key: Any, train: bool
    ) -> tuple[Any, tuple[dict[str, Any], dict[str, Any]]]:
        """Cross entropy over stacks, plus that over slices."""
        (stack, each), stats = apply_model(
            self.model, variables, batch["image"], key=key, train=train
        )
        label = jnp.asarray(batch["label"])
        loss = binary_cross_entropy(stack, label[:, -1]) + binary_cross_entropy(each, label[:, :-1])
        return loss, ({"accuracy": jnp.mean((each[..., 0] > 0) == label[:, :-1])}, stats)

    def predict(self, variables: Mapping[str, Any], image: Any) -> Any:
        """Probabilities that there is a ball (b, 1), and that a slice cuts one (b, d, 1)."""
        logits = self.model.apply(variables, image, train=False)
        return jax.tree.map(jax.nn.sigmoid, logits)


def main(config: Slices) -> list[Result]:
    """Train, compare with a slice alone and a filter, and write the report."""
    parts = zip(*(split(volume) for volume in load_template()), strict=True)
    back, front = (prepare(np.asarray(x.data), np.asarray(y.data)) for x, y in parts)
    rng = np.random.default_rng(config.seed)
    images, hits = draw_stacks(back, config.stacks, rng)
    unseen, truth = draw_stacks(front, max(config.stacks // 16, 2), rng)
    folder = make_folder(config.folder)
    print(f"{back.shape[1]} slices to cut stacks from, {front.shape[1]} held out")
    model = SliceRNN(
        1, 1, encoder_features=(8, 16, 32), num_blocks=(1, 1, 1), norm="batch", features=32
    )
    count = count_parameters(model, images.shape)
    labels = np.concatenate([hits, hits.max(1, keepdims=True)], axis=1)
    methods: dict[str, tuple[int, Callable]] = {
        "dot filter": (1, lambda: filtered(images, hits, unseen)),
        "a slice alone": (count, lambda: alone(model, images, labels, unseen, config)),
        "slice_rnn": (count, lambda: train(model, images, labels, config)(unseen)),
    }
    results, found = [], {}
    for name, (parameters, answer) in methods.items():
        print(f"{name} ...")
        start = time.perf_counter()
        stack, found[name] = answer()
        seconds = time.perf_counter() - start
        slices = metrics.roc_auc(truth.ravel(), found[name].ravel())
        stacks = metrics.roc_auc(truth.max(1), stack)
        results.append(Result(name, slices, stacks, parameters, seconds))
    draw(folder / "picture.png", unseen, truth, found)
    header = ["method", "AUC slices", "AUC stacks", "parameters", "seconds"]
    rows = [
        (
            r.method,
            f"{r.slices:.3f}",
            f"{r.stacks:.3f}",
            f"{r.parameters:,}",
            f"{r.seconds:.1f}",
        )
        for r in results
    ]
    report(folder, __doc__ or "", header, rows)
    return results


def shrink(volume: np.ndarray) -> np.ndarray:
    """(z, y, x) to coronal slices (y, z, x), averaged over blocks; what is left over is dropped."""
    d, h, w = (n // BLOCK for n in volume.shape)
    blocks = volume[: d * BLOCK, : h * BLOCK, : w * BLOCK]
    blocks = blocks.reshape(d, BLOCK, h, BLOCK, w, BLOCK).mean((1, 3, 5))
    return np.moveaxis(blocks, 1, 0)


def prepare(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Coronal slices of intensity, and how much of each block is grey or white: (2, n, h, w)."""
    return np.stack([shrink(image), shrink((label >= 2).astype(float))])


def draw_stacks(
    slices: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Stacks (count, DEPTH, SIDE, SIDE, 1), and which slices cut a ball (count, DEPTH).

    Each is a window of `slices`, as from `prepare`, that is full of grey and white matter.
    """
    room = np.subtract(slices.shape[1:], (DEPTH, SIDE, SIDE))
    images, hits = [], []
    while len(images) < count:
        y, z, x = rng.integers(room, endpoint=True)
        stack, tissue = slices[:, y : y + DEPTH, z : z + SIDE, x : x + SIDE]
        if tissue.mean((1, 2)).min() < TISSUE:
            continue
        ball = bool(rng.integers(2))
        second = thing(ball, rng)
        stack = stack + BRIGHT * np.maximum(thing(False, rng), second)
        brightness, contrast = rng.uniform(0.7, 1.3, (2, DEPTH, 1, 1))
        stack = brightness * stack**contrast + rng.normal(0, NOISE, stack.shape)
        stack = stack - stack.mean((1, 2), keepdims=True)
        stack = stack / stack.std((1, 2), keepdims=True)
        along, across = rng.choice([-1, 1], 2)
        images.append(stack[::along, :, ::across])
        hits.append((ball & (second.max((1, 2)) > 0))[::along])
    return np.stack(images)[..., None].astype(np.float32), np.stack(hits).astype(int)


def thing(ball: bool, rng: np.random.Generator) -> np.ndarray:
    """A ball that ends inside of a stack, or a slanting rod: how much of each block it fills."""
    radius, k = rng.uniform(*RADII), np.arange(DEPTH)[:, None, None]
    centre = rng.uniform(3, SIDE - 4, 2)
    if ball:
        squared = radius**2 - (k - rng.uniform(RADII[1], DEPTH - 1 - RADII[1])) ** 2
        slant = np.zeros(2)
    else:
        squared = radius**2 * (1 - rng.uniform(0, 0.9) ** 2) + 0 * k
        slant = rng.uniform(-0.3, 0.3, 2)
    y, x = (np.arange(SIDE) - c - s * (k - DEPTH / 2) for c, s in zip(centre, slant, strict=True))
    distance = np.hypot(np.swapaxes(y, 1, 2), x)
    return np.where(squared > 0, np.clip(np.sqrt(abs(squared)) + 0.5 - distance, 0, 1), 0)


def dots(stacks: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """The strongest dot of each stack (n,) and slice (n, d).

    |a| |a| / |c|,   a the smallest and c the largest curvature, where all three are those of a peak

    Source: Li, Sone and Doi, "Selective enhancement filters for nodules, vessels, and airway walls
    in two- and three-dimensional CT scans", Medical Physics 30, 2003, section II.
    """
    axes = (1, 2, 3)
    smooth = ndimage.gaussian_filter(stacks[..., 0], (0, sigma, sigma, sigma), mode="nearest")
    slopes = np.gradient(smooth, axis=axes)
    hessian = np.stack([np.stack(np.gradient(slope, axis=axes), -1) for slope in slopes], -1)
    curvatures = -np.linalg.eigvalsh(hessian)  # the largest first
    smallest, largest = np.maximum(curvatures[..., 2], 0), curvatures[..., 0]
    each = (smallest**2 / np.maximum(largest, 1e-6)).max((2, 3))
    return each.max(1), each


def filtered(
    images: np.ndarray, hits: np.ndarray, unseen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of stacks (n,) and slices (n, d), at the scale that is best for stacks to train on."""
    few, known = images[:256], hits[:256].ravel()
    scale = max(SCALES, key=lambda sigma: metrics.roc_auc(known, dots(few, sigma)[1].ravel()))
    return dots(unseen, scale)


def alone(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, unseen: np.ndarray, config: Slices
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of stacks (n,) and slices (n, d), of a network that sees stacks of one slice."""

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, 1, *x.shape[2:])

    pairs = np.stack([labels[:, :-1].ravel(), labels[:, -1].repeat(DEPTH)], axis=1)
    stack, each = train(model, flat(images), pairs, config)(flat(unseen))
    return stack.reshape(-1, DEPTH).mean(1), each.reshape(-1, DEPTH)


def train(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, config: Slices
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train; gives the function from stacks to scores of stacks (n,) and slices (n, d).

    As many slices are in a step however many are in a stack.
    """
    task = FindBalls(model)
    optimizer = optax.adamw(optax.cosine_decay_schedule(config.lr, max(config.steps, 1)))
    example = {"image": jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)}
    batch = config.batch * DEPTH // images.shape[1]
    result = fit(
        make_train_step(task, optimizer, clip_norm=1.0),
        create_state(task, optimizer, jax.random.key(config.seed), example),
        samples(images, labels, batch=batch, seed=config.seed, threads=0),
        steps=config.steps,
    )
    if result.interrupted:
        sys.exit(130)
    predict = jax.jit(task.predict)

    def answer(stacks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        stack, each = predict(result.state.variables, stacks)
        return np.asarray(stack)[..., 0], np.asarray(each)[..., 0]

    return answer


def draw(
    path: Path, stacks: np.ndarray, hits: np.ndarray, scores: Mapping[str, np.ndarray]
) -> None:
    """Two stacks with a ball and one without, and below them the scores of their slices."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(11, 9), layout="constrained")
    held = hits.max(1) > 0
    shown = [*np.flatnonzero(held)[:2], *np.flatnonzero(~held)[:1]]
    parts = figure.subfigures(len(shown), 1, squeeze=False).ravel()
    for i, part in zip(shown, parts, strict=True):
        grid = part.add_gridspec(2, DEPTH, height_ratios=(3, 2))
        for k in range(DEPTH):
            axes = part.add_subplot(grid[0, k], xticks=[], yticks=[])
            axes.imshow(stacks[i, k, ..., 0], cmap="gray", vmin=-2, vmax=3.5, origin="lower")
            if hits[i, k]:
                axes.spines[:].set(color="red", linewidth=2)
        axes = part.add_subplot(grid[1, :], xlim=(-0.5, DEPTH - 0.5), ylim=(0, 1.05))
        axes.set(xticks=range(DEPTH), ylabel="rank of score")
        for name, each in scores.items():
            lower = stats.rankdata(each).reshape(each.shape) / each.size
            axes.plot(lower[i], marker="o", label=name)
        for k in np.flatnonzero(hits[i]):
            axes.axvspan(k - 0.5, k + 0.5, color="red", alpha=0.1, linewidth=0)
        part.suptitle("a rod and a ball" if held[i] else "two rods", fontsize="medium")
    figure.axes[-1].legend(ncols=len(scores), loc="lower left")
    figure.suptitle(
        "Held-out stacks, slice by slice, those that cut the ball in red, and the scores of three "
        "methods,\nas shares of all held-out slices that score lower: the red ones should be on top"
    )
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=80)


if __name__ == "__main__":
    run(main, Slices, "slice_rnn")
