"""What a format cannot say about a volume, carried inside it as one line of JSON.

A format's own fields stay the truth: they hold what other programs read and change. The record
adds digits, the affine, names and `meta`, and each is used only where it fits those fields.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from biojax.io.volume import Volume, derived_spacing

__all__ = ["pack", "unpack"]

_VERSION = 1


def pack(volume: Volume) -> str:
    """The record of a volume, in ASCII.

    >>> pack(Volume(np.zeros((2, 3)), "yx", spacing=(0.1, 0.2), modality="SEM"))
    '{"biojax": 1, "axes": "yx", "shape": [2, 3], "spacing": [0.1, 0.2], "modality": "SEM"}'
    """
    fields = {
        "biojax": _VERSION,
        "axes": volume.axes,
        "shape": list(volume.shape),
        "spacing": volume.spacing,
        "affine": None if volume.affine is None else volume.affine.tolist(),
        "channels": volume.channels,
        "modality": volume.modality,
        "meta": volume.meta or None,
    }
    said = {name: value for name, value in fields.items() if value is not None or name == "spacing"}
    return json.dumps(said)


def unpack(
    text: str | None, sizes: Mapping[str, int], spacing: Mapping[str, float | None]
) -> dict[str, Any] | None:
    """The fields of a record that fit what the file itself says, or None if it is none of ours.

    Args:
      text: what may be a record.
      sizes: the length of each axis in the file; an axis that is not there has length 1.
      spacing: the millimetres that the file's own fields give for each of z, y, x, if any.

    Returns:
      axes, and spacing, affine, channels, modality and meta for `Volume`; the axes are those
      written, with their axes of length 1.
    """
    try:
        record = json.loads(text or "")
        if record["biojax"] != _VERSION:
            return None
        axes, shape = str(record["axes"]), [int(n) for n in record["shape"]]
        exact = [float(value) for value in record.get("spacing") or ()]
        affine = np.array(record["affine"], np.float64) if "affine" in record else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    absent = set(sizes) - set(axes)
    if len(axes) != len(shape) or any(sizes[axis] != 1 for axis in absent):
        return None
    fields = {name: record.get(name) for name in ("channels", "modality")}
    fields |= {"axes": axes, "meta": record.get("meta") or {}}
    spatial = [axis for axis in axes if axis in "zyx"]
    stated = [spacing.get(axis) for axis in spatial]
    fields["spacing"] = None if None in stated else tuple(stated)
    if _agree(exact, stated):
        fields["spacing"] = tuple(exact)
    elif record.get("spacing") is None and all(value in (None, 1.0) for value in stated):
        fields["spacing"] = None  # NIfTI has no other way to say that it is not known
    same_grid = shape == [sizes.get(axis, 1) for axis in axes]
    if affine is not None and same_grid and affine.shape == (4, 4):
        lengths = derived_spacing(affine, axes)
        fields["affine"] = affine if _agree(lengths, stated) else None
    return fields


def _agree(exact: Any, stated: list[float | None]) -> bool:
    """Whether two spacings are equal to the digits that float32 and rational tags can hold."""
    return len(exact) == len(stated) and all(
        b is not None and math.isclose(a, b, rel_tol=1e-6)
        for a, b in zip(exact, stated, strict=True)
    )
