"""Train a convolutional LSTM to predict the next frame of an echocardiogram.

    pip install --no-deps pydicom==3.0.2
    python -m examples.next_frame --folder runs/next_frame

The wheel carries examples_ybr_color.dcm: 30 frames of one beating heart, 30 in a second. The
package is not imported, only the file is read, in shades of grey, cut to the part of the picture
that moves; two frames that repeat the one before are left out. Four frames are shown, and the next
one is to be predicted. The network, and the filters that it is compared with, learn from the first
18 frames. The last 10, a third of a second, are held out: none of them is predicted in training.
While predicting one of them, those before it are shown.

Frames are alike, and noisy. So the last frame once more is hard to beat by much, and whoever
smooths it already comes nearer: compare the network with the filters, not with the repetition
alone. Least squares make blurred predictions, which win by squared error; the structural similarity
(SSIM) tells what that costs in texture. There is one clip of one heart in this, about one beat
long: the table says nothing about other hearts, and the options were chosen by looking at it.
"""

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import ndimage

from biojax.data import samples
from biojax.errors import require
from biojax.io import make_folder, replacing
from biojax.models import ConvLSTMForecaster, count_parameters
from biojax.tasks import apply_model, init_variables
from biojax.training import create_state, fit, make_train_step
from examples.classify_planes import run
from examples.ultrasound_clip import find_clip, moving, read_clip, windows

HELD_OUT = 10  # frames at the end of the clip
SHOWN = 4  # frames that a prediction is made from
PATCH = 2  # pixels along each axis of a frame that are one pixel of the states
CROP = 64  # pixels along each axis of what is trained on
REACH = 2  # pixels on each side that the linear filter sees


@dataclass(frozen=True)
class NextFrame:
    """Train a convolutional LSTM to predict the next frame of an echocardiogram."""

    folder: Path = Path("runs/next_frame")
    """Where report.md and picture.png are written; earlier ones are replaced."""
    clip: Path | None = None
    """A DICOM file of JPEG frames, where pydicom is not installed."""
    steps: int = 300
    """Steps of training."""
    batch: int = 8
    """Crops of the clip in a step."""
    features: tuple[int, ...] = (16,)
    """Channels of the network's layers."""
    lr: float = 3e-3
    """Learning rate at the start, which falls to zero along a cosine."""
    seed: int = 0
    """Decides everything that is drawn."""


class Result(NamedTuple):
    """What a method made of the held-out frames; errors are means over frames."""

    method: str
    mse: float
    psnr: float
    ssim: float
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """The task: `image` (b, t, h, w, 1) shows frames, `label` (b, 1, h, w, 1) is the next one."""

    model: nn.Module

    def init(self, key: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Variables to start from."""
        return init_variables(self.model, key, batch["image"])

    def __call__(
        self, variables: Mapping[str, Any], batch: Mapping[str, Any], *, key: Any, train: bool
    ) -> tuple[Any, tuple[dict[str, Any], dict[str, Any]]]:
        """The mean squared error."""
        found, stats = apply_model(self.model, variables, batch["image"], key=key, train=train)
        return jnp.mean((found - batch["label"]) ** 2), ({}, stats)

    def predict(self, variables: Mapping[str, Any], image: Any) -> Any:
        """The next frame."""
        return self.model.apply(variables, image, train=False)


def main(config: NextFrame) -> list[Result]:
    """Train, compare with repeating and filtering what was shown, and write the report."""
    clip = read_clip(config.clip or find_clip(), 2 * HELD_OUT)
    clip = clip[moving(clip[:-HELD_OUT], CROP, PATCH)]
    folder = make_folder(config.folder)
    (seen, unseen), (known, truth) = (np.split(x, [-HELD_OUT]) for x in windows(clip, SHOWN))
    _, h, w = truth.shape
    print(f"{len(known)} frames of {h} x {w} pixels to learn from, {HELD_OUT} held out")
    model = ConvLSTMForecaster(patch_size=PATCH, features=config.features, kernel_size=3)
    methods: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
        "last frame": (0, lambda: unseen[:, -1]),
        "last frame, smoothed": (1, lambda: smoothed(seen, known, unseen)),
        "linear filter": (
            SHOWN * (2 * REACH + 1) ** 2 + 1,
            lambda: filtered(seen, known, unseen),
        ),
        "convlstm_forecaster": (
            count_parameters(model, (1, SHOWN, CROP, CROP, 1)),
            lambda: train(model, seen, known, config)(unseen),
        ),
    }
    results, frames = [], {}
    for name, (parameters, predict) in methods.items():
        print(f"{name} ...")
        start = time.perf_counter()
        frames[name] = np.clip(predict(), 0, 1)
        seconds = time.perf_counter() - start
        results.append(Result(name, *score(frames[name], truth), parameters, seconds))
    draw(folder / "picture.png", frames, truth)
    header = ["method", "MSE x 1000", "PSNR (dB)", "SSIM", "parameters", "seconds"]
    rows = [
        (
            r.method,
            f"{1000 * r.mse:.3f}",
            f"{r.psnr:.2f}",
            f"{r.ssim:.3f}",
            f"{r.parameters:,}",
            f"{r.seconds:.1f}",
        )
        for r in results
    ]
    report(folder, __doc__ or "", header, rows)
    return results


def smoothed(seen: np.ndarray, known: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """The last frame under the Gaussian that is best for the frames to learn from."""

    def predict(shown: np.ndarray, sigma: float) -> np.ndarray:
        return ndimage.gaussian_filter(shown[:, -1], (0, sigma, sigma))

    errors = {s: ((predict(seen, s) - known) ** 2).mean() for s in np.arange(0, 3.1, 0.25)}
    return predict(unseen, min(errors, key=lambda sigma: errors[sigma]))


def filtered(seen: np.ndarray, known: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Each pixel as a linear function of those near it in all frames shown, by least squares."""

    def columns(shown: np.ndarray) -> np.ndarray:
        """(t, h, w) to (h, w, t * (2 REACH + 1)^2 + 1)."""
        edges, width = ((0, 0), (REACH, REACH), (REACH, REACH)), 2 * REACH + 1
        near = np.lib.stride_tricks.sliding_window_view(
            np.pad(shown, edges, mode="edge"), (width, width), axis=(1, 2)
        )
        near = np.moveaxis(near, 0, 2).reshape(*shown.shape[1:], -1)
        return np.concatenate([near, np.ones_like(near[..., :1])], axis=-1, dtype=np.float64)

    gram, product = 0.0, 0.0
    for shown, following in zip(seen, known, strict=True):
        x = columns(shown).reshape(following.size, -1)
        gram, product = gram + x.T @ x, product + x.T @ following.ravel()
    weights = np.linalg.lstsq(gram, product)[0]
    return np.stack([columns(shown) @ weights for shown in unseen])


def train(
    model: nn.Module, seen: np.ndarray, known: np.ndarray, config: NextFrame
) -> Callable[[np.ndarray], np.ndarray]:
    """Train on crops of the frames; gives the function from frames shown to the next ones."""
    task = Forecast(model)
    optimizer = optax.adamw(optax.cosine_decay_schedule(config.lr, max(config.steps, 1)))
    example = {"image": jax.ShapeDtypeStruct((1, SHOWN, CROP, CROP, 1), np.float32)}
    images, labels = seen[..., None], known[:, None, ..., None]
    result = fit(
        make_train_step(task, optimizer, clip_norm=1.0),
        create_state(task, optimizer, jax.random.key(config.seed), example),
        samples(images, labels, batch=config.batch, seed=config.seed, transform=crop, threads=0),
        steps=config.steps,
    )
    if result.interrupted:
        sys.exit(130)
    predict = jax.jit(functools.partial(task.predict, result.state.variables))
    return lambda shown: np.stack([predict(x[None, ..., None])[0, 0, ..., 0] for x in shown])


def crop(sample: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The same random part of all frames, left and right exchanged in half of the cases."""
    y, x = (rng.integers(n - CROP, endpoint=True) for n in sample["image"].shape[1:3])
    step = rng.choice([-1, 1])
    return {k: v[:, y : y + CROP, x : x + CROP][:, :, ::step] for k, v in sample.items()}


def score(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Mean squared error, peak signal to noise ratio (dB) and SSIM of frames (n, h, w)."""
    mse = ((found - truth) ** 2).mean((1, 2))
    similarity = [ssim(*pair) for pair in zip(found, truth, strict=True)]
    return float(mse.mean()), float((-10 * np.log10(mse)).mean()), float(np.mean(similarity))


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Structural similarity of two images (h, w) in [0, 1], the mean over pixels.

    Source: Wang et al., "Image quality assessment: from error visibility to structural
    similarity", IEEE Transactions on Image Processing 13, 2004, section III.
    """
    blur = functools.partial(ndimage.gaussian_filter, sigma=1.5, truncate=3.5)
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    spread = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    shared = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return float((luminance * (2 * shared + 0.03**2) / (spread + 0.03**2)).mean())


def report(folder: Path, about: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the table, and write it to report.md below what one has to know about it."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    table = "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
    print(table)
    title, _, rest = about.partition("\n")
    with replacing(folder / "report.md", overwrite=True) as temporary:
        temporary.write_text(f"# {title}\n{rest}\n{table}\n\n![picture](picture.png)\n")
    print(f"report.md and picture.png are in {folder.resolve()}")


def draw(path: Path, frames: Mapping[str, np.ndarray], truth: np.ndarray) -> None:
    """The held-out frame that changed most, as every method has it, and the errors of all."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(11, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(5, 2))
    errors = {name: 1000 * ((found - truth) ** 2).mean((1, 2)) for name, found in frames.items()}
    most = int(errors["last frame"].argmax())
    above, below = top.subplots(2, len(frames) + 1)
    grey = {"cmap": "gray", "vmin": 0, "vmax": float(np.quantile(truth, 0.998))}
    above[0].imshow(truth[most], **grey)
    above[0].set_title("the frame itself")
    for (name, found), over, under in zip(frames.items(), above[1:], below[1:], strict=True):
        over.imshow(found[most], **grey)
        over.set_title(f"{name}\nMSE x 1000: {errors[name][most]:.2f}", fontsize="medium")
        under.imshow(found[most] - truth[most], cmap="RdBu_r", vmin=-0.4, vmax=0.4)
    scale = top.colorbar(below[1].images[0], ax=below[0], fraction=0.5)
    scale.set_label("prediction - frame")
    for axes in (*above, *below):
        axes.axis("off")
    top.suptitle(
        f"Held-out frame {most + 1} of {len(truth)}, the one that changed most, as predicted from "
        f"the {SHOWN} before it; one grey scale for all"
    )
    axes = bottom.subplots()
    for name, values in errors.items():
        axes.plot(range(1, len(truth) + 1), values, marker="o", label=name)
    axes.axvline(most + 1, color="grey", linestyle=":", label="shown above")
    axes.set(xlabel="held-out frame", ylabel="MSE x 1000", ylim=(0, None))
    axes.set_xticks(range(1, len(truth) + 1))
    axes.legend(ncols=3, loc="lower right")
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=80)


if __name__ == "__main__":
    run(main, NextFrame, "next_frame")
