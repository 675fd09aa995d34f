"""From images to batches: intensity, augmentation, windows, cases and the loader."""

from biojax.data.augment import augment, random_flip, random_intensity, random_rot90
from biojax.data.boxes import boxes
from biojax.data.dataset import Case, case_name, check_geometry, find_cases, load_case
from biojax.data.intensity import (
    ClipWindow,
    Compose,
    MinMax,
    Percentile,
    Step,
    ZScore,
    clip_window,
    from_config,
    minmax,
    percentile,
    to_config,
    zscore,
)
from biojax.data.loader import patches, samples
from biojax.data.otsu import otsu_threshold

__all__ = [
    "Case",
    "ClipWindow",
    "Compose",
    "MinMax",
    "Percentile",
    "Step",
    "ZScore",
    "augment",
    "boxes",
    "case_name",
    "check_geometry",
    "clip_window",
    "find_cases",
    "from_config",
    "load_case",
    "minmax",
    "otsu_threshold",
    "patches",
    "percentile",
    "random_flip",
    "random_intensity",
    "random_rot90",
    "samples",
    "to_config",
    "zscore",
]
