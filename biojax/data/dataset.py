"""Cases: an image with its label, found in folders, read and checked."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from biojax.errors import DataError, FileError, ShapeError, nearest
from biojax.io import Volume, read_volume
from biojax.metrics import check_labels

__all__ = ["Case", "case_name", "check_geometry", "find_cases", "load_case"]

_ENDING = re.compile(r"\.(nii(\.gz)?|(ome\.)?tiff?|btf)$", re.IGNORECASE)
_Part = TypeVar("_Part", bound=Path | Volume | np.ndarray)


@dataclass(frozen=True, eq=False)
class Case(Generic[_Part]):
    """One image and, where there is one, its label.

    Args:
      name: what errors call it.
      image: a path, a `Volume`, or an array (*spatial, c).
      label: a path, a `Volume`, or an array (*spatial) of integers; None if there is none.
    """

    name: str
    image: _Part
    label: _Part | None = None


def find_cases(images: str | Path, labels: str | Path | None = None) -> list[Case[Path]]:
    """Pair the images of one folder with the labels of another by name, in order of name.

    The name is the file's up to its ending (.nii, .nii.gz, .tif, .tiff, .ome.tif, .btf), so
    image/a.nii.gz goes with label/a.tif. Other files, and hidden ones, are passed over.

    Raises:
      FileError: a folder is missing or holds no images.
      DataError: a name that is in one folder alone, or twice in one.
    """
    image_files = _by_name(Path(images))
    if labels is None:
        return [Case(name, path) for name, path in image_files.items()]
    label_files = _by_name(Path(labels))
    lonely = sorted(image_files.keys() ^ label_files.keys())
    if lonely:
        raise DataError(
            f"{images} and {labels}",
            f"{len(lonely)} names in one folder alone: {_some(lonely)}",
            "one label for each image, of the same name",
            "Rename or move the files",
            nearest(lonely[0], label_files if lonely[0] in image_files else image_files),
        )
    return [Case(name, path, label_files[name]) for name, path in image_files.items()]


def load_case(
    case: Case,
    *,
    classes: int | None = None,
    ignore: int | None = None,
    intensity: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Case[np.ndarray]:
    """Read a case into arrays, as the loader takes them, and check that its parts fit.

    Args:
      case: paths are read; volumes and arrays are taken as they are.
      classes: number of classes, to check the label's values; None to leave them unchecked.
      ignore: a label value outside the classes that the loss leaves out.
      intensity: normalisation of the whole image, such as `biojax.data.ZScore()`.

    Returns:
      A case with image (*spatial, c), of the file's dtype or of what `intensity` returns, and
      label (*spatial) of an integer dtype, or None.

    Raises:
      FileError: a file cannot be read.
      ShapeError: axes, shape, spacing or orientation of image and label differ.
      DataError: labels that are not whole or not among the classes; images that are not finite.
    """
    image, label = (
        read_volume(part) if isinstance(part, str | Path) else part
        for part in (case.image, case.label)
    )
    if isinstance(image, Volume) and isinstance(label, Volume):
        check_geometry(case.name, image, label)
    image = np.asarray(image.model_array() if isinstance(image, Volume) else image)
    if label is not None:
        label = np.asarray(label.data if isinstance(label, Volume) else label)
        if label.shape != image.shape[:-1]:
            raise ShapeError(
                f"case {case.name}",
                f"an image (*spatial, c) of shape {image.shape} and a label of {label.shape}",
                f"a label of shape {image.shape[:-1]}",
                "Check that they belong together, and that the image has a channel axis",
            )
        check_labels(label, classes, where=f"case {case.name}", ignore_label=ignore)
        label = label if label.dtype.kind in "iu" else label.astype(np.int32)
    return Case(case.name, intensity(image) if intensity else image, label)


def case_name(path: str | Path) -> str:
    """The name of a file up to its ending: what pairs an image with its label.

    >>> case_name("images/head_01.nii.gz")
    'head_01'
    """
    return _ENDING.sub("", Path(path).name)


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileError(
            str(folder), "no such folder", "a folder of images", "Correct the path or create it"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not _ENDING.search(path.name):
            continue
        name = case_name(path)
        if name in found:
            raise DataError(
                str(folder),
                f"both {found[name].name} and {path.name}",
                "one file for each name",
                "Move one of them elsewhere",
            )
        found[name] = path
    if not found:
        raise FileError(
            str(folder),
            "a folder without images",
            "files that end in .nii.gz, .tif or the like",
            "Correct the path, or convert the images",
        )
    return dict(sorted(found.items()))


def check_geometry(name: str, image: Volume, label: Volume) -> None:
    """Check that a label lies on its image: axes, shape, and spacing and orientation where known.

    Args:
      name: of the case, for the error.
      image: with or without channels.
      label: on the same grid.

    Raises:
      ShapeError: they differ; the text says in what.
    """

    def fail(got: str, expected: str):
        raise ShapeError(
            f"case {name}", got, expected, "Check that they belong together, or resample the label"
        )

    if "t" in image.axes or label.axes != image.spatial_axes:
        fail(
            f"an image with axes {image.axes} and a label with axes {label.axes}",
            "spatial axes, the same for both, and channels in the image alone",
        )
    if label.spatial_shape != image.spatial_shape:
        fail(
            f"an image of {image.spatial_shape} voxels and a label of {label.spatial_shape}",
            "the same shape",
        )
    if image.spacing and label.spacing and not np.allclose(image.spacing, label.spacing, rtol=1e-3):
        fail(
            f"spacing {image.spacing} mm and, in the label, {label.spacing} mm", "the same spacing"
        )
    if image.affine is not None and label.affine is not None:
        sizes = dict(zip(image.spatial_axes, image.spatial_shape, strict=True))
        ends = [(0, sizes.get(axis, 1) - 1) for axis in "zyx"]
        corners = np.array([(*corner, 1) for corner in itertools.product(*ends)]).T
        apart = np.abs((image.affine - label.affine) @ corners).max()
        if apart > 0.5 * min(image.spacing or (1.0,)):
            fail(
                f"an image and a label whose corners lie {apart:.3g} mm apart",
                "corners within half a voxel of each other",
            )


def _some(values: list) -> str:
    text = ", ".join(str(value) for value in values[:5])
    return text + ", ..." if len(values) > 5 else text
