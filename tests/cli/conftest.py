"""A folder of small volumes, and a run trained on them, shared by the tests of the verbs."""

from pathlib import Path

import numpy as np
import pytest

from biojax.cli import main
from biojax.io import Volume, write_volume

_LISTS = ("--patch", "--inputs", "--class-names")
FIELDS = '{"features": [4, 8], "num_convs": 1, "norm": "layer"}'


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball in noise, and where it is."""
    rng = np.random.default_rng(seed)
    grid = np.indices((12, 14, 16)) - rng.uniform(5, 8, (3, 1, 1, 1))
    label = ((grid**2).sum(0) < 16).astype(np.uint8)
    image = (1000.0 * label + rng.normal(300, 100, label.shape)).clip(0).astype(np.uint16)
    return image, label


@pytest.fixture(scope="session")
def volumes(tmp_path_factory) -> Path:
    """images/ and labels/ with a NIfTI and two TIFF cases."""
    folder = tmp_path_factory.mktemp("volumes")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    for i, ending in enumerate(("nii.gz", "ome.tif", "ome.tif")):
        image, label = blobs(i)
        header = {"affine": affine, "modality": "MRI"}
        write_volume(folder / "images" / f"case{i}.{ending}", Volume(image, "zyx", **header))
        write_volume(folder / "labels" / f"case{i}.{ending}", Volume(label, "zyx", **header))
    return folder


@pytest.fixture
def train_options(volumes, tmp_path) -> dict[str, str]:
    """Options of a tiny run into a new folder."""
    return {
        "--images": str(volumes / "images"),
        "--labels": str(volumes / "labels"),
        "--folder": str(tmp_path / "run"),
        "--num-classes": "2",
        "--fields": FIELDS,
        "--patch": "8 8 8",
        "--steps": "4",
        "--checkpoint-every": "2",
    }


def words(verb: str, options: dict[str, str]) -> list[str]:
    """The command line of a verb."""
    line = [verb]
    for name, value in options.items():
        split = value.split() if name in _LISTS else [value] if value else []
        line += [name, *split]
    return line


@pytest.fixture(scope="session")
def run_line(volumes, tmp_path_factory) -> list[str]:
    """The line that trains `run`."""
    options = {
        "--images": str(volumes / "images"),
        "--labels": str(volumes / "labels"),
        "--val-images": str(volumes / "images"),
        "--val-labels": str(volumes / "labels"),
        "--class-names": "background ball",
        "--folder": str(tmp_path_factory.mktemp("runs") / "run"),
        "--num-classes": "2",
        "--fields": FIELDS,
        "--patch": "8 8 8",
        "--batch": "4",
        "--steps": "60",
        "--learning-rate": "0.01",
        "--checkpoint-every": "30",
    }
    return words("train", options)


@pytest.fixture(scope="session")
def run(run_line) -> Path:
    """A trained run with two checkpoints."""
    assert main(run_line) == 0
    return Path(run_line[run_line.index("--folder") + 1])
