"""A picture of a segmentation: image, labels, and errors where the truth is known."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from biojax.errors import ShapeError, require
from biojax.io import Volume, replacing

__all__ = ["draw_overlay"]

_PLANES = {"z": "axial (z)", "y": "coronal (y)", "x": "sagittal (x)"}
# Okabe and Ito's colours, which can be told apart in colour blindness.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_ERROR = "red"


def draw_overlay(
    path: str | os.PathLike,
    image: Volume,
    prediction: Volume,
    truth: Volume | None = None,
    *,
    classes: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Write a PNG of slices through the middle of the foreground, one row for each plane.

    Columns are the image, the prediction over it and, where the truth is known, the truth and the
    voxels that differ. Background (class 0) is left clear. Axes are to scale where the spacing is
    known. A volume with an affine is shown as in an atlas: superior and anterior up.

    Args:
      path: the PNG, which is replaced.
      image: its first channel is shown.
      prediction: labels on the image's grid.
      truth: labels on the same grid.
      classes: the name of each class, for the legend.
      title: above the picture.

    Raises:
      ShapeError: the grids differ, or they have no two axes to show.
      DependencyError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "train")
    colors, patches = require("matplotlib.colors", "train"), require("matplotlib.patches", "train")
    pixels = np.asarray(image.model_array())[..., 0]
    labels = [np.asarray(v.data) for v in (prediction, truth) if v is not None]
    if pixels.ndim not in (2, 3) or any(label.shape != pixels.shape for label in labels):
        raise ShapeError(
            "draw_overlay",
            f"an image of {pixels.shape} and labels of {[label.shape for label in labels]}",
            "one 2-D or 3-D grid",
            "Give the labels of this very image",
        )
    count = max(int(label.max()) for label in labels) + 1
    names = [*(classes or ()), *(f"class {i}" for i in range(len(classes or ()), count))]
    palette = ["none", *(_COLOURS[i % len(_COLOURS)] for i in range(len(names) - 1))]
    labels_shown = {"cmap": colors.ListedColormap(palette), "vmin": -0.5, "vmax": len(names) - 0.5}
    errors_shown = {"cmap": colors.ListedColormap([_ERROR])}
    low, high = np.percentile(pixels, (0.5, 99.5))

    columns = ["image", "prediction", "truth", "errors"][: 2 * len(labels)]
    views = _views(image, labels)
    heights = [view.height for view in views]
    size = (3 * len(columns), 3 * sum(heights) + 0.8)
    figure = figure_module.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(views), len(columns), squeeze=False, height_ratios=heights)
    for panel, column in zip(panels[0], columns, strict=True):
        panel.set_title(column)
    origin = "lower" if image.affine is not None else "upper"
    for row, view in zip(panels, views, strict=True):
        place = {"origin": origin, "aspect": view.aspect, "interpolation": "nearest"}
        slices = [label[view.at] for label in labels]
        for panel in row:
            panel.imshow(pixels[view.at], cmap="gray", vmin=low, vmax=high, **place)
            panel.set(xticks=[], yticks=[])
        for panel, label in zip(row[1:], slices, strict=False):
            panel.imshow(label, alpha=0.6, **labels_shown, **place)
        if len(slices) == 2:
            wrong = np.ma.masked_equal(slices[0] != slices[1], False)
            row[-1].imshow(wrong, **errors_shown, **place)
        row[0].set_ylabel(view.name)

    legend = dict(zip(names[1:], palette[1:], strict=True))
    legend |= {"differs from the truth": _ERROR} if truth is not None else {}
    handles = [patches.Patch(color=color, label=name) for name, color in legend.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize="small")
    figure.suptitle(title)
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


class _View(NamedTuple):
    """A slice to show."""

    name: str
    at: tuple[int | slice, ...]
    aspect: float  # a pixel's height over its width
    height: float  # of the panel, over its width


def _views(image: Volume, labels: list[np.ndarray]) -> list[_View]:
    spatial = image.spatial_axes
    spacing = image.spacing or (1.0,) * len(spatial)
    if len(spatial) == 2:
        return [_view("", (), image.spatial_shape, spacing)]
    views = []
    for axis, name in enumerate(spatial):
        others = [i for i in range(3) if i != axis]
        foreground = np.cumsum((labels[-1] > 0).sum(axis=tuple(others)))
        middle = int(np.searchsorted(foreground, foreground[-1] / 2))
        index = tuple(middle if i == axis else slice(None) for i in range(3))
        shape = [image.spatial_shape[i] for i in others]
        views.append(_view(f"{_PLANES[name]} {middle}", index, shape, [spacing[i] for i in others]))
    return views


def _view(name: str, at: tuple, shape: Sequence[int], spacing: Sequence[float]) -> _View:
    aspect = spacing[0] / spacing[1]
    return _View(name, at, aspect, float(np.clip(aspect * shape[0] / shape[1], 0.3, 1.3)))
