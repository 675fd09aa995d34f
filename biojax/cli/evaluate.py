"""`biojax evaluate`: predicted labels against true ones."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from biojax.errors import ConfigError, FileError

__all__ = ["Evaluate", "evaluate"]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Compare predicted labels with true ones: overlap, and distances of surfaces.

    Distances are in millimetres, or in voxels where the spacing is unknown. A class that is missing
    on both sides gives nan, on one side infinite distances; means leave both out.
    """

    predictions: Path
    """Folder of predicted labels."""
    truth: Path
    """Folder of true labels, of the same names."""
    num_classes: int
    """Number of classes, background included."""
    class_names: tuple[str, ...] = ()
    """Name of each class, background first."""
    axes: str | None = None
    """Axes of TIFF files that do not name their own, such as zyx."""
    tolerance: float = 1.0
    """Of the surface Dice, in millimetres (voxels where the spacing is unknown)."""
    out: Path | None = None
    """A JSON file for the figures."""


def evaluate(config: Evaluate) -> None:
    """Print a row for each case and class, and the means; write them where asked.

    Raises:
      ConfigError: fewer than two classes.
      DataError: files that do not pair up, or labels out of range.
      ShapeError: a prediction that does not lie on its truth.
      FileError: there is nowhere to write.
    """
    from biojax.data import find_cases

    if config.num_classes < 2:
        raise ConfigError(
            "evaluate", f"num_classes={config.num_classes}", "2 or more", "Count the background too"
        )
    if config.out is not None and not config.out.parent.is_dir():
        raise FileError(
            str(config.out), "a folder that does not exist", "a folder to write in", "Create it"
        )
    cases = find_cases(config.predictions, config.truth)
    names = config.class_names or tuple(map(str, range(config.num_classes)))
    rows = [row for case in cases for row in _measure(config, case, names)]
    _print(rows, names)
    if config.out is not None:
        _write(config.out, rows)


def _measure(config: Evaluate, case: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row for each class of a case but the background."""
    import numpy as np

    from biojax import metrics
    from biojax.cli.files import read_label
    from biojax.data import check_geometry

    found = read_label(case.image, config.axes)
    truth = read_label(case.label, config.axes)
    check_geometry(case.name, truth, found)
    for volume, path in ((found, case.image), (truth, case.label)):
        metrics.check_labels(np.asarray(volume.data), config.num_classes, where=str(path))
    # Whole numbers by now, though some files hold them as floats.
    a, b = (np.asarray(volume.data).astype(np.int32) for volume in (found, truth))
    report = metrics.class_report(metrics.confusion_matrix(b, a, config.num_classes), names)
    spacing = truth.spacing or found.spacing or (1.0,) * a.ndim
    rows = []
    for i, name in enumerate(names[1:], start=1):
        distances = {
            "hd95": metrics.hd95(a == i, b == i, spacing=spacing),
            "assd": metrics.assd(a == i, b == i, spacing=spacing),
            "surface_dice": metrics.surface_dice(
                a == i, b == i, spacing=spacing, tolerance=config.tolerance
            ),
        }
        overlap = {k: report[name][k] for k in ("dice", "iou", "precision", "recall")}
        rows.append({"case": case.name, "class": name, **overlap, **distances})
    return rows


def _print(rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    import numpy as np

    columns = [name for name in rows[0] if name not in ("case", "class")]
    width = max(len("mean/cases"), *(len(str(row["case"])) for row in rows)) + 2
    wide = max(len("class"), *(len(name) for name in names)) + 2
    print(f"{'case':{width}}{'class':{wide}}" + "".join(f"{c:>14}" for c in columns))
    for row in rows:
        values = "".join(f"{row[c]:14.4f}" for c in columns)
        print(f"{row['case']:{width}}{row['class']:{wide}}{values}")
    for name in names[1:]:
        table = np.array([[row[c] for c in columns] for row in rows if row["class"] == name])
        finite = np.isfinite(table)
        sums = np.where(finite, table, 0).sum(0)
        means = np.divide(
            sums, finite.sum(0), out=np.full(len(columns), np.nan), where=finite.any(0)
        )
        values = "".join(
            f"{mean:10.4f}/{n:<3}" for mean, n in zip(means, finite.sum(0), strict=True)
        )
        print(f"{'mean/cases':{width}}{name:{wide}}{values}")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    from biojax.io import replacing

    plain = [
        {
            k: v if isinstance(v, str) or (v == v and abs(v) != float("inf")) else None
            for k, v in r.items()
        }
        for r in rows
    ]
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(plain, indent=1))
