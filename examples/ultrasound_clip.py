"""The echocardiogram that pydicom carries: reading it, and cutting it into what moves.

30 frames of one beating heart, 30 in a second, stored as JPEG in a DICOM file.
"""

import importlib.metadata
import io
import itertools
import struct
from pathlib import Path

import numpy as np

from biojax.errors import DataError, DependencyError, FileError, require
from biojax.io.reading import existing_file, telling

__all__ = ["find_clip", "moving", "read_clip", "windows"]

_LARGEST = 4096  # pixels along an axis of a frame


def find_clip() -> Path:
    """The file in the installed wheel of pydicom, which is not imported."""
    try:
        files = importlib.metadata.files("pydicom") or []
        return next(Path(str(f.locate())) for f in files if f.name == "examples_ybr_color.dcm")
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        raise DependencyError(
            "pydicom",
            "no such package, or one without examples_ybr_color.dcm",
            "the wheel that carries the clip",
            "Install it with: pip install --no-deps pydicom==3.0.2; or give --clip PATH",
        ) from None


def read_clip(path: Path, least: int) -> np.ndarray:
    """Grey values (t, h, w) in [0, 1] of a DICOM file whose frames are stored as JPEG.

    The frames are the items of the pixel data (7FE0,0010), one fragment each, after a table of
    offsets. Source: DICOM PS3.5, section A.4. A frame that is the one before once more is left out.

    Args:
      path: the file.
      least: how many different frames there must be.

    Raises:
      FileError: the file is missing, damaged or something else, or too short.
    """
    image = require("PIL.Image", "train")
    with telling(str(path), "DICOM with JPEG frames"):
        data = existing_file(path).read_bytes()
        at = data.rindex(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 12
        fragments = []
        while struct.unpack_from("<HH", data, at) == (0xFFFE, 0xE000):
            (length,) = struct.unpack_from("<I", data, at + 4)
            fragments.append(data[at + 8 : at + 8 + length])
            at += 8 + length
        frames: list[np.ndarray] = []
        # The first item is the table of offsets, no frame: it is never the second of a pair.
        for before, fragment in itertools.pairwise(fragments):
            if fragment == before:
                continue
            with image.open(io.BytesIO(fragment), formats=["JPEG"]) as frame:
                shape = frame.size[::-1]
                if max(shape) > _LARGEST or (frames and shape != frames[0].shape):
                    raise FileError(
                        str(path),
                        f"a frame of {shape}",
                        f"frames of one size, at most {_LARGEST} along each axis",
                        "Give another clip",
                    )
                frames.append(np.asarray(frame.convert("L")))
        if len(frames) < least:
            raise FileError(
                str(path), f"{len(frames)} frames", f"{least} or more", "Give a longer clip"
            )
    return np.stack(frames).astype(np.float32) / 255


def moving(clip: np.ndarray, least: int, multiple: int) -> tuple[slice, ...]:
    """The box of a clip (t, h, w) that changes from frame to frame.

    Args:
      clip: grey values in [0, 1].
      least: how many pixels it must have along each axis.
      multiple: what its size is a multiple of.

    Raises:
      DataError: less than that changes.
    """
    changes = clip.std(0) > 0.02
    box = [slice(None)]
    for axis, n in enumerate(changes.shape):
        places = np.flatnonzero(changes.mean(1 - axis) > 0.1)
        if not places.size or places[-1] + 1 - places[0] < least:
            raise DataError(
                "moving",
                f"a clip of {clip.shape[1:]} in which {places.size} lines along axis {axis} change",
                f"{least} lines or more",
                "Give a clip of something that moves",
            )
        lines = -(-(places[-1] + 1 - places[0]) // multiple) * multiple
        size = min(lines, n // multiple * multiple)
        start = min(places[0], n - size)
        box.append(slice(int(start), int(start + size)))
    return tuple(box)


def windows(clip: np.ndarray, shown: int) -> tuple[np.ndarray, np.ndarray]:
    """For each frame that has enough before it those, (n, shown, h, w), and itself, (n, h, w)."""
    before = np.lib.stride_tricks.sliding_window_view(clip[:-1], shown, axis=0)
    return np.moveaxis(before, -1, 1), clip[shown:]
