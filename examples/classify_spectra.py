"""Train recurrent and attention classifiers to tell tissue components by their infrared spectra.

    pip install --no-deps orange-spectroscopy==0.9.3
    python -m examples.classify_spectra --folder runs/spectra

The wheel carries collagen.csv: 731 absorption spectra (234 wavenumbers, 1801 to 903 per cm) of
collagen, glycogen, lipids and DNA, one class after the other. Spectra in neighbouring rows are more
alike than others, 21 are exact copies of another one, and half of them have a near copy (0.05
standard deviations away, root mean square), often far down the file. In a random split many of them
would have their twin on the other side: the nearest neighbour of a spectrum has its class in 99% of
cases. So a quarter of each class is held out, in consecutive rows, and whatever comes closer
than 0.06 to a held-out spectrum is left out of training. The first quarter is the hardest for
most models.

The file does not tell samples or patients apart, so a held-out spectrum may still come from a
sample that was trained on. The classes are close to linearly separable: compare the networks with
the simple rules in the table, not with chance alone. There is no third part: the options were
chosen by looking at held-out spectra too.
"""

import csv
import functools
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from biojax import metrics
from biojax.data import random_intensity, zscore
from biojax.errors import ConfigError, DataError, DependencyError, require
from biojax.io import make_folder, replacing
from biojax.io.reading import existing_file, telling
from biojax.losses import cross_entropy
from biojax.models import count_parameters, create_model
from examples.classify_planes import Result, draw_matrix, report, run, train

MARGIN = 0.5  # above chance, the aim of a run with the default options
TWIN = 0.06  # how near a spectrum to train on may not come to a held-out one


@dataclass(frozen=True)
class Spectra:
    """Train recurrent and attention classifiers on infrared spectra of tissue components."""

    folder: Path = Path("runs/spectra")
    """Where report.md and picture.png are written; earlier ones are replaced."""
    csv: Path | None = None
    """collagen.csv, where orange-spectroscopy is not installed."""
    quarter: int = 1
    """Which quarter of each class is held out, 1 to 4."""
    steps: int = 300
    """Steps of training, for each model."""
    batch: int = 32
    """Spectra in a step."""
    lr: float = 4e-3
    """Learning rate at the start, which falls to zero along a cosine."""
    seed: int = 0
    """Decides everything that is drawn."""


def create_models(num_classes: int) -> dict[str, nn.Module]:
    """What is trained. Nine wavenumbers, 35 per cm, make one step of a sequence."""
    make = functools.partial(create_model, num_classes=num_classes, patch_size=9, features=32)
    return {
        "rnn, 2 layers": make("rnn_classifier", cell="rnn", num_layers=2),
        "gru": make("rnn_classifier", cell="gru"),
        "lstm, both directions": make("rnn_classifier", cell="lstm", bidirectional=True),
        # Trained to write the class three times; the last one counts.
        "gru encoder-decoder": make("rnn_encoder_decoder", num_steps=3, bidirectional=True),
        "attention": make("attention_classifier"),
    }


def main(config: Spectra) -> list[Result]:
    """Train each model, compare with chance and with simple rules, and write the report."""
    wavenumbers, spectra, names = read_spectra(config.csv or find_csv())
    folder = make_folder(config.folder)
    found, labels = np.unique(names, return_inverse=True)
    classes: list[str] = found.tolist()
    training, held_out = split(spectra[..., 0], labels, config.quarter)
    x, y, unseen, truth = spectra[training], labels[training], spectra[held_out], labels[held_out]
    print(f"{len(x)} spectra to train on, {len(unseen)} held out")
    methods: dict[str, tuple[int, Callable]] = {
        "nearest class mean": (0, nearest_mean),
        "nearest spectrum": (0, nearest_spectrum),
        "logistic regression": (len(classes) * (len(wavenumbers) + 1), logistic_regression),
    }
    for name, model in create_models(len(classes)).items():
        parameters = count_parameters(model, spectra.shape)
        methods[name] = parameters, functools.partial(fit_and_answer, model, config)
    results, answers = [], truth
    for name, (parameters, answer) in methods.items():
        print(f"{name} ...")
        start = time.perf_counter()
        answers = answer(x, y, unseen)
        seconds = time.perf_counter() - start
        matrix = np.asarray(metrics.confusion_matrix(truth, answers, len(classes)))
        results.append(Result(name, parameters, seconds, matrix))
    draw(folder / "picture.png", results, classes, wavenumbers, unseen[..., 0], truth, answers)
    report(folder, __doc__ or "", results, classes, MARGIN)
    return results


def find_csv() -> Path:
    """collagen.csv in the installed wheel, which is not imported."""
    try:
        files = importlib.metadata.files("orange-spectroscopy") or []
        return next(Path(str(f.locate())) for f in files if f.name == "collagen.csv")
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        raise DependencyError(
            "orange-spectroscopy",
            "no such package, or one without collagen.csv",
            "the wheel that carries the spectra",
            "Install it with: pip install --no-deps orange-spectroscopy==0.9.3; or give --csv PATH",
        ) from None


def read_spectra(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavenumbers (t,), spectra (n, t, 1) and names of classes (n,) from a CSV of Orange.

    Of its three header rows the first has the wavenumbers. Each spectrum is shifted and scaled to
    mean 0 and standard deviation 1.
    """
    with telling(str(path), "CSV"):
        with existing_file(path).open(newline="") as file:
            header, _, _, *rows = csv.reader(file)
        wavenumbers, *spectra = np.array([row[1:] for row in (header, *rows)], np.float32)
        names = np.array([row[0] for row in rows])
        return wavenumbers, np.stack([zscore(x[:, None]) for x in spectra]), names


def split(spectra: np.ndarray, labels: np.ndarray, quarter: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n,) of what is trained on and what is held out, of spectra (n, t)."""
    if not 1 <= quarter <= 4:
        raise ConfigError("--quarter", f"{quarter}", "1 to 4", "Choose one of the four quarters")
    held_out = np.zeros(len(labels), bool)
    for k in np.unique(labels):
        held_out[np.array_split(np.flatnonzero(labels == k), 4)[quarter - 1]] = True
    training = ~held_out & (distances(spectra, spectra[held_out]).min(1, initial=np.inf) >= TWIN)
    found = [len(np.unique(labels[part])) for part in (training, held_out)]
    if min(found) < max(2, labels.max() + 1):
        raise DataError(
            "split",
            f"{found[0]} classes to train on and {found[1]} held out, of {labels.max() + 1}",
            "two classes or more, and each of them in both parts",
            "Give more spectra of each class, or choose another --quarter",
        )
    return training, held_out


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square differences (n, m) of spectra (n, t) and (m, t)."""
    return cdist(a, b) / np.sqrt(a.shape[1])


def nearest_mean(x: np.ndarray, y: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """The class whose mean spectrum is the nearest."""
    means = np.stack([x[y == k, :, 0].mean(0) for k in np.unique(y)])
    return distances(unseen[..., 0], means).argmin(1)


def nearest_spectrum(x: np.ndarray, y: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """The class of the nearest spectrum."""
    return y[distances(unseen[..., 0], x[..., 0]).argmin(1)]


def logistic_regression(x: np.ndarray, y: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """The class of the greatest W x + b, fitted to convergence with an L2 penalty."""
    shape = x.shape[1] + 1, y.max() + 1

    def loss(flat):
        w = flat.reshape(shape)
        return cross_entropy(x[..., 0] @ w[:-1] + w[-1], y) + 5e-5 * (w[:-1] ** 2).sum()

    found = minimize(
        jax.jit(jax.value_and_grad(loss)), np.zeros(shape).ravel(), jac=True, method="L-BFGS-B"
    )
    w = found.x.reshape(shape)
    return (unseen[..., 0] @ w[:-1] + w[-1]).argmax(1)


def fit_and_answer(
    model: nn.Module, config: Spectra, x: np.ndarray, y: np.ndarray, unseen: np.ndarray
) -> np.ndarray:
    """What a model says after training; if it writes several words, the last one."""
    vary = functools.partial(random_intensity, scale=0.1, shift=0.1, noise=0.05)
    words = getattr(model, "num_steps", None)
    labels = y if words is None else np.repeat(y[:, None], words, axis=1)
    answers = train(model, x, labels, vary, config)(unseen).argmax(-1)
    return answers if words is None else answers[:, -1]


def draw(
    path: Path,
    results: Sequence[Result],
    classes: Sequence[str],
    wavenumbers: np.ndarray,
    spectra: np.ndarray,
    truth: np.ndarray,
    answers: np.ndarray,
) -> None:
    """Confusion matrices, and the held-out spectra of each class with the last model's errors."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(15, 11), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 1))
    for axes, result in zip(top.subplots(2, len(results) // 2).flat, results, strict=True):
        draw_matrix(axes, result, classes)
    bottom.suptitle(f"held-out spectra; coloured where '{results[-1].model}' errs")
    for k, axes in enumerate(bottom.subplots(1, len(classes), sharey=True)):
        for answer in [k, *(j for j in range(len(classes)) if j != k)]:
            some = spectra[(truth == k) & (answers == answer)]
            colour, width = ("lightgrey", 0.5) if answer == k else (f"C{answer}", 1.0)
            lines = axes.plot(wavenumbers, some.T, color=colour, linewidth=width)
            if lines:
                lines[0].set_label(f"taken for {classes[answer]}: {len(some)}")
        axes.set(title=classes[k], xlabel="wavenumber (1/cm)")
        axes.invert_xaxis()
        axes.legend(fontsize="small")
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=80)


if __name__ == "__main__":
    run(main, Spectra, "classify_spectra")
