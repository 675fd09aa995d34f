"""From images to batches: intensity, augmentation, windows, cases and the loader."""

from biojax.data.augment import augment, random_flip, random_intensity, random_rot90
from biojax.data.boxes import boxes
from biojax.data.intensity import (
    ClipWindow,
    Compose,
    MinMax,
    Percentile,
    ZScore,
    clip_window,
    from_config,
    minmax,
    otsu_threshold,
    percentile,
    to_config,
    zscore,
)

__all__ = [
    "ClipWindow",
    "Compose",
    "MinMax",
    "Percentile",
    "ZScore",
    "augment",
    "boxes",
    "clip_window",
    "from_config",
    "minmax",
    "otsu_threshold",
    "percentile",
    "random_flip",
    "random_intensity",
    "random_rot90",
    "to_config",
    "zscore",
]
