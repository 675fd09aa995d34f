"""Reading what was named on the command line."""

from pathlib import Path

from biojax.errors import ShapeError
from biojax.io import Volume, read_volume

__all__ = ["read_image", "read_label"]


def read_image(path: Path, axes: str | None) -> Volume:
    """Read an image; `axes` count only where the file does not name its own."""
    try:
        return read_volume(path)
    except ShapeError:
        if axes is None:
            raise
        return read_volume(path, axes=axes)


def read_label(path: Path, axes: str | None) -> Volume:
    """The same for labels, which have no channels."""
    return read_image(path, axes and axes.replace("c", ""))
