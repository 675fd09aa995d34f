"""Train a recurrence over slices to tell where an MRI volume has much white matter.

    python -m examples.slice_rnn --folder runs/slices

Stacks of 12 windows, 60 mm wide and 3 mm apart, are cut from the coronal slices of one MRI volume,
see `mri_template`, in one of both directions. Every slice of a stack gets its own brightness,
contrast and noise. The network answers for each slice (is more than 45% of its grey and white
matter white?) and for the whole stack (is the last slice's share greater than the first one's?).
Stacks to train on come from the back of the head. Those held out come from the 66 mm at the front,
8 mm apart from the others, so that the network has seen neither these slices nor this part of a
brain.

It is compared with a rule that looks at one slice at a time: least squares on the histogram of its
intensities. That rule is better. White matter is brighter, wherever it is, and the rule can learn
nothing else; the network learns what the back of this head looks like, and only part of that holds
at the front. Chance is 0.5.

There is one head in this, the average of 152, and 22 slices of it are held out, of which windows
are cut again and again. This shows that the path from a file to a trained recurrence over slices,
with answers for both, works; it says nothing about patients, and does not show that such a network
is needed. The options were chosen by looking at the result.
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
WHITE = 0.45  # the share of white matter to tell
SIDE = 20  # blocks along each axis of a slice
BINS = 32  # of a histogram
TISSUE = 0.6  # of a slice that grey and white matter must fill


@dataclass(frozen=True)
class Slices:
    """Train a recurrence over slices to tell where an MRI volume has much white matter."""

    folder: Path = Path("runs/slices")
    """Where report.md and picture.png are written; earlier ones are replaced."""
    steps: int = 800
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
class WhiteMatter:
    """The task: `image` (b, d, h, w, 1) are stacks, `label` (b, d) each slice's share of white."""

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
        rises, much = questions(jnp.asarray(batch["label"]))
        loss = binary_cross_entropy(stack, rises) + binary_cross_entropy(each, much)
        return loss, ({"accuracy": jnp.mean((each[..., 0] > 0) == much)}, stats)

    def predict(self, variables: Mapping[str, Any], image: Any) -> Any:
        """Probabilities that the share rises (b, 1), and that a slice has much (b, d, 1)."""
        logits = self.model.apply(variables, image, train=False)
        return jax.tree.map(jax.nn.sigmoid, logits)


def main(config: Slices) -> list[Result]:
    """Train, compare with the rule, and write the report."""
    parts = zip(*(split(volume) for volume in load_template()), strict=True)
    back, front = (prepare(np.asarray(x.data), np.asarray(y.data)) for x, y in parts)
    rng = np.random.default_rng(config.seed)
    images, shares = draw_stacks(back, config.stacks, rng)
    unseen, truth = draw_stacks(front, max(config.stacks // 16, 2), rng)
    folder = make_folder(config.folder)
    print(f"{back.shape[1]} slices to cut stacks from, {front.shape[1]} held out")
    model = SliceRNN(
        1, 1, encoder_features=(8, 16, 32), num_blocks=(1, 1, 1), norm="batch", features=32
    )
    methods: dict[str, tuple[int, Callable]] = {
        "histogram of a slice": (BINS + 1, lambda: rule(images, shares, unseen)),
        "slice_rnn": (
            count_parameters(model, images.shape),
            lambda: train(model, images, shares, config)(unseen),
        ),
    }
    results, found = [], {}
    for name, (parameters, answer) in methods.items():
        print(f"{name} ...")
        start = time.perf_counter()
        stack, found[name] = answer()
        seconds = time.perf_counter() - start
        rises, much = questions(truth)
        slices = metrics.roc_auc(much.ravel(), found[name].ravel())
        stacks = metrics.roc_auc(rises, stack)
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
    """Coronal slices of intensity, and how much of each block is grey and white: (3, n, h, w)."""
    return np.stack([shrink(x) for x in (image, *((label == k).astype(float) for k in (2, 3)))])


def draw_stacks(
    slices: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Stacks (count, DEPTH, SIDE, SIDE, 1), and each slice's share of white matter (count, DEPTH).

    Each is a window of `slices`, as from `prepare`, that is full of grey and white matter.
    """
    room = np.subtract(slices.shape[1:], (DEPTH, SIDE, SIDE))
    images, shares = [], []
    while len(images) < count:
        y, z, x = rng.integers(room, endpoint=True)
        stack, grey, white = slices[:, y : y + DEPTH, z : z + SIDE, x : x + SIDE]
        if (grey + white).mean((1, 2)).min() < TISSUE:
            continue
        brightness, contrast = rng.uniform(0.7, 1.3, (2, DEPTH, 1, 1))
        stack = brightness * stack**contrast + rng.normal(0, NOISE, stack.shape)
        stack = stack - stack.mean((1, 2), keepdims=True)
        stack = stack / stack.std((1, 2), keepdims=True)
        along, across = rng.choice([-1, 1], 2)
        images.append(stack[::along, :, ::across])
        shares.append((white.sum((1, 2)) / (grey + white).sum((1, 2)))[::along])
    return np.stack(images)[..., None].astype(np.float32), np.stack(shares).astype(np.float32)


def questions(shares: Any) -> tuple[Any, Any]:
    """Of shares (n, d): whether they rise from first to last (n,), and which are large (n, d)."""
    return (shares[:, -1] > shares[:, 0]).astype(int), (shares > WHITE).astype(int)


def rule(
    images: np.ndarray, shares: np.ndarray, unseen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of stacks (n,) and slices (n, d): the share, as the histogram of a slice tells it."""

    def histograms(stacks: np.ndarray) -> np.ndarray:
        """(n, d, BINS + 1), the last of which is 1."""
        bins = np.clip((stacks + 2) / 6 * BINS, 0, BINS - 1).astype(int)
        flat = bins.reshape(*stacks.shape[:2], -1)
        counts = np.stack([(flat == k).mean(-1) for k in range(BINS)], axis=-1)
        return np.concatenate([counts, np.ones_like(counts[..., :1])], axis=-1)

    x = histograms(images).reshape(-1, BINS + 1)
    each = histograms(unseen) @ np.linalg.lstsq(x, shares.ravel())[0]
    return each[:, -1] - each[:, 0], each


def train(
    model: nn.Module, images: np.ndarray, shares: np.ndarray, config: Slices
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train; gives the function from stacks to scores of stacks (n,) and slices (n, d)."""
    task = WhiteMatter(model)
    optimizer = optax.adamw(optax.cosine_decay_schedule(config.lr, max(config.steps, 1)))
    example = {"image": jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)}
    result = fit(
        make_train_step(task, optimizer, clip_norm=1.0),
        create_state(task, optimizer, jax.random.key(config.seed), example),
        samples(images, shares, batch=config.batch, seed=config.seed, threads=0),
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
    path: Path, stacks: np.ndarray, shares: np.ndarray, scores: Mapping[str, np.ndarray]
) -> None:
    """Three stacks, with the share of each slice above it and the scores below."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(15, 8), layout="constrained")
    count = min(3, len(stacks))
    for i, part in zip(range(count), figure.subfigures(count, 1, squeeze=False).flat, strict=True):
        for k, axes in enumerate(part.subplots(1, DEPTH)):
            axes.imshow(stacks[i, k, ..., 0], cmap="gray", vmin=-1.5, vmax=3, origin="lower")
            colour = "red" if shares[i, k] > WHITE else "black"
            axes.set_title(f"{shares[i, k]:.0%} white", color=colour, fontsize="small")
            each = " ".join(f"{score[i, k]:.2f}" for score in scores.values())
            axes.set_xlabel(each, fontsize="small")
            axes.set(xticks=[], yticks=[])
    figure.suptitle(f"red: above {WHITE:.0%}; below each slice its scores: {', '.join(scores)}")
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=80)


if __name__ == "__main__":
    run(main, Slices, "slice_rnn")
