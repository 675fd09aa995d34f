"""`biojax predict`: label volumes and pictures from a trained run."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from biojax.cli.files import read_image, read_label
from biojax.data import check_geometry
from biojax.errors import BiojaxError, FileError

if TYPE_CHECKING:
    from biojax.inference import Segmenter
    from biojax.io import Volume

__all__ = ["Predict", "predict"]


@dataclasses.dataclass(frozen=True)
class Predict:
    """Segment images with a trained model.

    Writes a label volume and a picture for each. What is done already is skipped, and an image
    that fails does not stop the others.
    """

    run: Path
    """Folder of a run that biojax trained."""
    inputs: tuple[Path, ...]
    """Images, or folders of images."""
    out: Path
    """Folder for the results: a label volume and a picture for each image."""
    truth: Path | None = None
    """Folder of true labels, of the same names; pictures then show the errors."""
    axes: str | None = None
    """Axes of TIFF files that do not name their own, such as zyx."""
    window: tuple[int, ...] | None = None
    """Size of the sliding window; the training patch if left out."""
    overlap: float = 0.5
    """Share of a window that neighbours have in common."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """How windows are weighted."""
    batch: int = 1
    """Windows at a time."""
    format: Literal["same", "ome.tif", "nii.gz"] = "same"
    """Format of the labels; as the image if same."""
    overwrite: bool = False
    """Predict again what is there already."""
    quiet: bool = False
    """Show no progress."""


def predict(config: Predict) -> None:
    """Segment every image.

    Raises:
      FileError: some failed; what went wrong is printed as it happens.
    """
    from biojax.inference import load_segmenter
    from biojax.io import make_folder

    images = _images(config.inputs)
    _keep_apart(config, images)
    truths = _truths(config.truth, images)
    segmenter = load_segmenter(config.run)
    make_folder(config.out)
    failed = []
    for name, path in images.items():
        labels = config.out / f"{name}.{_ending(path, config.format)}"
        picture = config.out / f"{name}.png"
        try:
            if labels.exists() and not config.overwrite:
                if not picture.exists():
                    found = read_label(labels, None)
                    _draw(segmenter, config, path, picture, found, truths.get(name))
                print(f"{name}: done already")
            else:
                _predict_one(segmenter, config, path, labels, picture, truths.get(name))
        except BiojaxError as error:
            if len(images) == 1:
                raise
            failed.append(name)
            print(f"biojax: {error}", file=sys.stderr)
    if failed:
        raise FileError(
            "predict",
            f"{len(failed)} of {len(images)} images that failed: {', '.join(failed)}",
            "every image to be read and segmented",
            "See the messages above; the others are done",
        )


def _predict_one(
    segmenter: "Segmenter",
    config: Predict,
    path: Path,
    labels: Path,
    picture: Path,
    truth: Path | None,
) -> None:
    from biojax.cli.progress import bar
    from biojax.io import write_volume

    image = read_image(path, config.axes)
    if truth is not None:  # before the work, not after it
        check_geometry(path.name, image, read_label(truth, config.axes))
    start = time.perf_counter()
    with bar(path.name, enabled=not config.quiet) as progress:
        found = segmenter(
            image,
            overlap=config.overlap,
            blend=config.blend,
            batch=config.batch,
            progress=progress,
            window=config.window or segmenter.recipe.patch,
        )
    seconds = time.perf_counter() - start
    compression = "zlib" if labels.suffix == ".tif" else None
    write_volume(labels, found, compression=compression, overwrite=config.overwrite)
    _draw(segmenter, config, path, picture, found, truth)
    voxels = found.data.size
    print(
        f"{path.name}: {voxels:,} voxels in {seconds:.1f} s, {voxels / seconds:,.0f} voxels/s"
        f" -> {labels}"
    )


def _draw(
    segmenter: "Segmenter",
    config: Predict,
    path: Path,
    picture: Path,
    found: "Volume",
    truth: Path | None,
) -> None:
    from biojax.inference import draw_overlay

    image = read_image(path, config.axes)
    known = None if truth is None else read_label(truth, config.axes)
    draw_overlay(picture, image, found, known, classes=segmenter.recipe.classes, title=path.name)


def _keep_apart(config: Predict, images: dict[str, Path]) -> None:
    """Refuse to write among what is read: labels have the names of their images."""
    sources = {path.resolve().parent: path for path in images.values()}
    sources |= {folder.resolve(): folder for folder in (config.truth, config.run) if folder}
    if config.out.resolve() in sources:
        raise FileError(
            "predict",
            f"out={str(config.out)!r}, the folder of {sources[config.out.resolve()]}",
            "a folder that nothing is read from",
            "Choose another one for --out",
        )


def _images(inputs: tuple[Path, ...]) -> dict[str, Path]:
    """Every image by name; folders are searched, not entered further."""
    from biojax.data import case_name, find_cases

    found: dict[str, Path] = {}
    for path in inputs:
        if path.is_dir():
            new = {case.name: case.image for case in find_cases(path)}
        else:
            new = {case_name(path): path}
        for name, image in new.items():
            if name in found and found[name] != image:
                raise FileError(
                    "predict",
                    f"two images named {name}: {found[name]} and {image}",
                    "one image for each name",
                    "Predict them into two folders",
                )
            found[name] = Path(image)
    return found


def _truths(folder: Path | None, images: dict[str, Path]) -> dict[str, Path]:
    """True labels by name. Images without one are predicted all the same, and said."""
    from biojax.data import find_cases

    if folder is None:
        return {}
    found = {case.name: Path(case.image) for case in find_cases(folder)}
    lonely = sorted(images.keys() - found.keys())
    if lonely:
        print(f"no truth for {', '.join(lonely)}", file=sys.stderr)
    return found


def _ending(path: Path, format: str) -> str:
    nifti = path.name.lower().endswith((".nii", ".nii.gz"))
    return ("nii.gz" if nifti else "ome.tif") if format == "same" else format
