"""`biojax train`: a segmentation model from a folder of images and one of labels."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from biojax.errors import ConfigError

if TYPE_CHECKING:
    from biojax.data import Case
    from biojax.inference import Segmenter

__all__ = ["Train", "train"]

# What may change when a run goes on: where things lie and how often it is looked at.
_FREE = (
    "images",
    "labels",
    "val_images",
    "val_labels",
    "folder",
    "evaluate_every",
    "checkpoint_every",
    "quiet",
)


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a segmentation model on a folder of volumes.

    The run's folder gets config.json, log.jsonl, progress.png and checkpoints. Ctrl-C saves and
    stops; the same command again goes on.
    """

    images: Path
    """Folder of images: NIfTI or TIFF."""
    labels: Path
    """Folder of labels, of the same names: whole numbers from 0, the background."""
    folder: Path
    """Where the run is kept. If it holds one already, that one goes on."""
    num_classes: int
    """Number of classes, background included."""
    val_images: Path | None = None
    """Images to evaluate on; none if left out."""
    val_labels: Path | None = None
    """Their labels."""
    class_names: tuple[str, ...] = ()
    """Name of each class, background first."""
    axes: str | None = None
    """Axes of TIFF files that do not name their own, such as zyx."""
    model: str = "unet"
    """Name of the model; see biojax models."""
    fields: str = "{}"
    """Fields of the model in place of its defaults, as JSON: '{"features": [16, 32, 64]}'."""
    intensity: str = "zscore"
    """Normalisation: zscore, percentile, minmax, or JSON: '{"name": "clip_window", "low": -160,
    "high": 240}', or a list of such."""
    patch: tuple[int, ...] = (64, 64, 64)
    """Size of a patch along z, y and x; two numbers for 2-D."""
    batch: int = 2
    """Patches in a batch, over all devices."""
    foreground: float = 1 / 3
    """Share of patches about a voxel of the foreground."""
    augment: tuple[Literal["flip", "rot90", "intensity"], ...] = ("flip", "intensity")
    """What to vary at random, on the device."""
    steps: int = 1000
    """How many steps."""
    learning_rate: float = 1e-3
    """Peak of the learning rate, which falls to zero as a cosine."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    ignore_label: int | None = None
    """A label outside of the classes that the loss leaves out, such as 255."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    accumulate: int = 1
    """Microbatches for each step."""
    ema_decay: float | None = None
    """Decay of the moving average of the parameters; none if left out."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; parameters stay in float32."""
    remat: bool = False
    """Compute activations anew in the backward pass, to save memory."""
    strategy: Literal["single", "pmap", "data"] = "single"
    """How a step runs over devices."""
    seed: int = 0
    """Decides everything that is drawn."""
    evaluate_every: int = 500
    """Steps between evaluations."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    quiet: bool = False
    """Show no progress."""


def train(config: Train) -> None:
    """Train, or go on with the run in `config.folder`."""
    import jax
    import optax

    from biojax.data import from_config, patches, to_config
    from biojax.inference import Recipe, Segmenter
    from biojax.losses import dice_cross_entropy
    from biojax.tasks import Segmentation
    from biojax.training import TrainState, create_state, fit, keep_config, make_train_step

    if config.steps < 1 or config.num_classes < 2:
        raise ConfigError(
            "train",
            f"steps={config.steps} and num_classes={config.num_classes}",
            "at least one step, and two classes with the background",
            "Raise what is below",
        )
    normalise = from_config(_intensity(config.intensity))
    cases = _load(config, config.images, config.labels, normalise)
    held_out = []
    if config.val_images is not None:
        held_out = _load(config, config.val_images, config.val_labels, normalise)
    recipe = Recipe(
        model={
            "name": config.model,
            "out_channels": config.num_classes,
            "spatial_dims": len(config.patch),
            **_object("fields", config.fields),
        },
        channels=cases[0].image.shape[-1],
        classes=_class_names(config),
        intensity=to_config(normalise),
        patch=config.patch,
    )
    loss = functools.partial(dice_cross_entropy, ignore_label=config.ignore_label)
    task = Segmentation(recipe.create_model(), loss)
    batches = patches(
        cases,
        patch=config.patch,
        batch=config.batch,
        foreground=config.foreground,
        ignore=config.ignore_label,
        seed=config.seed,
    )
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    step = make_train_step(
        task,
        optimizer,
        strategy=config.strategy,
        accumulate=config.accumulate,
        clip_norm=config.clip_norm,
        dtype=None if config.dtype == "float32" else config.dtype,
        ema_decay=config.ema_decay,
        remat=config.remat,
        transform=_transform(config.augment),
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        segmenter = Segmenter(recipe, task.model, state.variables)
        return _evaluate(segmenter, held_out, config.ignore_label)

    example = {"image": jax.ShapeDtypeStruct((1, *config.patch, recipe.channels), "float32")}
    key = jax.random.key(config.seed)
    state = create_state(task, optimizer, key, example, ema_decay=config.ema_decay)
    options = {**dataclasses.asdict(config), "cases": [case.name for case in cases]}
    keep_config(config.folder, options, free=_FREE)
    fit(
        step,
        state,
        batches,
        steps=config.steps,
        folder=config.folder,
        evaluate=evaluate if held_out else None,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        config=recipe.to_config(),
        progress=not config.quiet,
    )


def _load(config: Train, images: Path, labels: Path | None, normalise: Any) -> "list[Case]":
    """Every case of two folders, read, checked and normalised."""
    from biojax.cli.files import read_image, read_label
    from biojax.data import Case, find_cases, load_case

    if labels is None:
        raise ConfigError(
            "train",
            f"val_images={str(images)!r} and no val_labels",
            "a folder of labels for these images",
            "Add --val-labels",
        )
    cases = []
    for case in find_cases(images, labels):
        assert isinstance(case.image, Path)
        assert isinstance(case.label, Path)
        image = read_image(case.image, config.axes)
        read = Case(case.name, image, read_label(case.label, config.axes))
        cases.append(
            load_case(
                read,
                classes=config.num_classes,
                ignore=config.ignore_label,
                intensity=normalise,
            )
        )
    return cases


def _evaluate(
    segmenter: "Segmenter", cases: "list[Case]", ignore_label: int | None
) -> dict[str, float]:
    """Dice of each class, over the voxels of all held-out cases together."""
    import numpy as np

    from biojax import metrics
    from biojax.inference import predict_volume

    classes = segmenter.recipe.classes
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    for case in cases:
        assert case.label is not None
        found = predict_volume(
            segmenter.model.apply,
            segmenter.variables,
            case.image,
            window=segmenter.recipe.patch,
            reduce="argmax",
        )
        matrix += metrics.confusion_matrix(
            case.label, found, len(classes), ignore_label=ignore_label
        )
    report = metrics.class_report(matrix, classes, include_background=False)
    return {f"dice {name}": report[name]["dice"] for name in [*classes[1:], "mean"]}


def _transform(names: tuple[str, ...]) -> Any:
    import jax

    from biojax.data import random_flip, random_intensity, random_rot90

    known = {"flip": random_flip, "rot90": random_rot90, "intensity": random_intensity}
    if not names:
        return None

    def transform(key, sample):
        for j, name in enumerate(names):
            sample = known[name](jax.random.fold_in(key, j), sample)
        return sample

    return transform


def _intensity(text: str) -> Any:
    """A step's name, or its JSON."""
    return _json("intensity", text) if text[:1] in "[{" else {"name": text}


def _object(name: str, text: str) -> dict[str, Any]:
    value = _json(name, text)
    if not isinstance(value, dict):
        raise ConfigError("train", f"{name}={text!r}", "a JSON object", "Write it in braces")
    return value


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            "train",
            f"{name}={text!r}",
            f"JSON ({error})",
            "Put names in double quotes, and the whole in single ones",
        ) from error


def _class_names(config: Train) -> tuple[str, ...]:
    names = config.class_names or ("background", *map(str, range(1, config.num_classes)))
    if len(names) != config.num_classes:
        raise ConfigError(
            "train",
            f"{len(names)} class names and num_classes={config.num_classes}",
            "one name for each class, background first",
            "Change either",
        )
    return tuple(names)
