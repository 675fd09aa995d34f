"""Train a 3-D U-Net on a degraded MRI volume, segment a part it has not seen, and say how well.

    python -m examples.mri_segmentation --folder demo

writes into the folder, besides the checkpoint and the log of the training:

    report.md            the table that is printed
    overlay.png          image, prediction, truth and errors
    progress.png         the loss
    prediction.ome.tif   the labels of the held-out block; image.ome.tif is what was segmented

Interrupted with Ctrl-C, the same command goes on. The data and what the result does not show are
described in `mri_template` and in the report.
"""

import dataclasses
import resource
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax

from biojax import metrics
from biojax.data import Case, ZScore, patches, to_config
from biojax.errors import BiojaxError, require
from biojax.inference import Recipe, draw_overlay, load_segmenter
from biojax.io import Volume, replacing, write_volume
from biojax.losses import dice_cross_entropy
from biojax.models import count_parameters
from biojax.tasks import Segmentation
from biojax.training import Fit, create_state, fit, keep_config, make_train_step
from examples.histogram_baseline import Histogram, fit_histogram
from examples.mri_template import CLASSES, GAP, HELD_OUT, degrade, load_template, split


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train a 3-D U-Net on a degraded MRI volume and segment a part it has not seen."""

    folder: Path = Path("demo")
    """Where everything is written; a run that was interrupted there goes on."""
    steps: int = 500
    """Steps of training."""
    features: tuple[int, ...] = (12, 24, 48)
    """Channels of the U-Net's stages."""
    patch: int = 32
    """Edge of the training patches and of the sliding window, in voxels."""
    batch: int = 2
    """Patches in a batch."""
    renderings: int = 16
    """Degraded versions of the training block."""
    seed: int = 0
    """Decides everything that is drawn."""


def main(config: Demo) -> int:
    """Run the demo; the exit code."""
    print("Reading the template and degrading it ...")
    (image, held_out), (label, truth) = (split(volume) for volume in load_template())
    rng = np.random.default_rng(config.seed)
    scan = held_out.replace(data=degrade(np.asarray(held_out.data), rng))
    normalise = ZScore("otsu")
    renderings = [
        normalise(degrade(np.asarray(image.data), rng)[..., None]) for _ in range(config.renderings)
    ]
    cases = [Case(f"rendering{i}", x, np.asarray(label.data)) for i, x in enumerate(renderings)]
    baseline = fit_histogram([x[..., 0] for x in renderings], np.asarray(label.data), len(CLASSES))

    training = train(config, cases, to_config(normalise))
    if training.interrupted:
        return 0

    print("Segmenting the held-out block ...")
    segmenter = load_segmenter(config.folder)
    start = time.perf_counter()
    prediction = segmenter(scan, batch=4)
    seconds = time.perf_counter() - start
    rows = score(prediction, truth, baseline, normalise(np.asarray(scan.data)[..., None])[..., 0])
    figures = {
        "Training": f"{training.records[-1]['seconds']:.0f} s, {config.steps} steps",
        "Segmentation": f"{seconds:.1f} s, {truth.data.size / seconds:,.0f} voxels/s",
        "Parameters": f"{count_parameters(segmenter.model, (1, *[config.patch] * 3, 1)):,}",
        "Peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
        "Baseline": f"histogram of intensities smoothed by {baseline.sigma} mm",
    }
    write(config.folder, scan, prediction, truth, rows, figures)
    return 0


def train(config: Demo, cases: list[Case], intensity: object) -> Fit:
    """Train on patches of the renderings, or go on with that."""
    keep_config(config.folder, dataclasses.asdict(config), free=("folder",))
    recipe = Recipe(
        # Layer normalisation looks at each voxel alone: however much background a window holds,
        # it does the same.
        model={
            "name": "unet",
            "out_channels": len(CLASSES),
            "features": list(config.features),
            "norm": "layer",
        },
        channels=1,
        classes=CLASSES,
        intensity=intensity,
        patch=(config.patch,) * 3,
    )
    task = Segmentation(recipe.create_model(), loss=dice_cross_entropy)
    optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, config.steps), weight_decay=1e-4)
    batches = patches(
        cases, patch=recipe.patch, batch=config.batch, foreground=0.9, seed=config.seed
    )
    example = {"image": jax.ShapeDtypeStruct((1, *recipe.patch, 1), np.float32)}
    return fit(
        make_train_step(task, optimizer, clip_norm=1.0),
        create_state(task, optimizer, jax.random.key(config.seed), example),
        batches,
        steps=config.steps,
        folder=config.folder,
        config=recipe.to_config(),
    )


def score(
    prediction: Volume, truth: Volume, baseline: Histogram, normalised: np.ndarray
) -> list[tuple[str, float, float]]:
    """Rows of class, Dice of the histogram, Dice of the U-Net; the last one is the mean."""
    columns = []
    for found in (baseline.predict(normalised), prediction.data):
        matrix = metrics.confusion_matrix(np.asarray(truth.data), np.asarray(found), len(CLASSES))
        dice = [float(value) for value in metrics.dice(matrix)]
        columns.append([*dice, (dice[2] + dice[3]) / 2])
    return list(zip((*CLASSES, "mean of grey and white"), *columns, strict=True))


def write(
    folder: Path,
    scan: Volume,
    prediction: Volume,
    truth: Volume,
    rows: list[tuple[str, float, float]],
    figures: dict[str, str],
) -> None:
    """Print the table and write the files."""
    *_, (_, before, after) = rows
    title = f"Held-out block: mean Dice of grey and white {after:.3f}, histogram {before:.3f}"
    draw_overlay(folder / "overlay.png", scan, prediction, truth, classes=CLASSES, title=title)
    write_volume(folder / "prediction.ome.tif", prediction, compression="zlib", overwrite=True)
    write_volume(folder / "image.ome.tif", scan, overwrite=True)

    console, table = require("rich.console", "demo"), require("rich.table", "demo")
    shown = table.Table("class", "histogram", "U-Net", "difference", title="Dice, held-out block")
    for name, a, b in rows:
        shown.add_row(name, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}")
    console.Console().print(shown)
    for name, value in figures.items():
        print(f"{name:14}{value}")

    lines = ["| class | histogram | U-Net | difference |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {a:.3f} | {b:.3f} | {b - a:+.3f} |" for name, a, b in rows]
    report = REPORT.format(
        table="\n".join(lines),
        figures="\n".join(f"- {name}: {value}" for name, value in figures.items()),
        devices=", ".join(str(device) for device in jax.devices()),
        held_out=HELD_OUT,
        gap=GAP,
    )
    with replacing(folder / "report.md", overwrite=True) as temporary:
        temporary.write_text(report)
    print(f"Look at {folder / 'overlay.png'}; everything is in {folder.resolve()}")


REPORT = """# Segmentation of a degraded MRI template

Dice on the held-out block, for the U-Net and for a histogram of smoothed intensities.

{table}

{figures}
- Devices: {devices}

![image, prediction, truth and errors](overlay.png)

## What the data is
The T1 template ICBM 152 (symmetric, 2009a): the average of 152 heads, skull removed, 1 mm. Classes
come from its maps of grey and white matter. The network was trained on the back of the head and
tested on the {held_out} mm at the front, with {gap} mm between them. Both were degraded by the same
recipe, with different random numbers: a bias field, a gamma, Rician noise. Without that, intensity
alone would tell the classes apart.

## What the result does not show
How well anything works on a patient. There is one average head in it, no lesion, no motion, one
contrast, and labels that come from the same average. Front and back of one head are also more alike
than two heads are.
"""


if __name__ == "__main__":
    try:
        tyro = require("tyro", "demo")
        sys.exit(main(tyro.cli(Demo, prog="python -m examples.mri_segmentation")))
    except BiojaxError as error:
        print(f"mri_segmentation: {error}", file=sys.stderr)
        sys.exit(2)
