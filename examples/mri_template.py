"""A real MRI volume with four classes, and a recipe that degrades it as scanners do.

The volume is the T1 template of the Montreal Neurological Institute (ICBM 152, symmetric, 2009a),
which nilearn carries in its package: the average of 152 heads, skull removed, 197 x 233 x 189
voxels of 1 mm, with maps of the probability of grey and white matter.
Source: Fonov et al., "Unbiased nonlinear average age-appropriate brain templates from birth to
adulthood", NeuroImage 47, 2009.
"""

import importlib.util
from pathlib import Path

import numpy as np
from scipy import ndimage

from biojax.errors import DependencyError
from biojax.io import Volume, read_volume

__all__ = ["CLASSES", "GAP", "HELD_OUT", "crop", "degrade", "load_template", "split"]

CLASSES = ("background", "other", "grey", "white")
HELD_OUT = 66  # mm at the front of the head
GAP = 8  # mm between the two parts

_MARGIN = 4  # voxels about the head


def load_template() -> tuple[Volume, Volume]:
    """The T1 volume, cropped to the head, with intensities in [0, 1], and its classes.

    A voxel is grey or white where that map holds at least half of the probability and no less
    than the other one; background where the skull-stripped image is zero; and "other" elsewhere:
    cerebrospinal fluid, and voxels that several tissues share.
    """
    t1, grey, white = (read_volume(_path(name)) for name in ("t1", "gm", "wm"))
    image = np.asarray(t1.data, np.float32) / np.float32(255)
    p_grey, p_white = np.asarray(grey.data), np.asarray(white.data)
    label = np.where(image > 0, 1, 0).astype(np.uint8)
    label[(p_grey >= 128) & (p_grey >= p_white)] = 2
    label[(p_white >= 128) & (p_white > p_grey)] = 3
    (head,) = ndimage.find_objects((label > 0).astype(np.uint8))
    box = tuple(slice(max(s.start - _MARGIN, 0), s.stop + _MARGIN) for s in head)
    volume = t1.replace(data=image, modality="MRI", channels=None)
    return crop(volume, box), crop(volume.replace(data=label), box)


def split(volume: Volume) -> tuple[Volume, Volume]:
    """The part to train on and the part held out, with a gap between them.

    The template is symmetric, so left and right halves would be one brain twice. The cut is from
    ear to ear instead: the front of the head is held out.
    """
    y = volume.shape[1]
    everything = slice(None)
    train = crop(volume, (everything, slice(0, y - HELD_OUT - GAP), everything))
    return train, crop(volume, (everything, slice(y - HELD_OUT, y), everything))


def crop(volume: Volume, box: tuple[slice, ...]) -> Volume:
    """A part of a volume that keeps its place in the world."""
    affine = np.array(volume.affine)
    affine[:3, 3] += affine[:3, :3] @ [side.start or 0 for side in box]
    return volume.replace(data=np.ascontiguousarray(volume.data[box]), affine=affine)


def degrade(image: np.ndarray, rng: np.random.Generator, noise: float = 0.12) -> np.ndarray:
    """One more scan of the same head by a worse scanner.

    y = sqrt((b x^g + n1)^2 + n2^2)

    with a gamma g = exp(u), u uniform within +-0.3; a bias field b = exp(0.15 f), f a Gaussian
    random field of standard deviation 1, smoothed over 20 mm, so that b lies within +-30% for 95%
    of the voxels; and Rician noise, n1 and n2 normal with standard deviation `noise`.

    Args:
      image: intensities in [0, 1], (d, h, w), 1 mm.
      rng: the only source of chance.
      noise: standard deviation, as a share of the range.

    Returns:
      float32, the shape of `image`.
    """
    gamma = np.exp(rng.uniform(-0.3, 0.3))
    bias = np.exp(0.15 * _smooth_field(image.shape, rng))
    real = bias * image**gamma + noise * rng.standard_normal(image.shape, np.float32)
    imaginary = noise * rng.standard_normal(image.shape, np.float32)
    return np.hypot(real, imaginary).astype(np.float32)


def _smooth_field(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise smoothed over 20 voxels, of standard deviation 1; made on an 8-voxel grid."""
    edge = 5  # of the coarse grid, where smoothing lacks neighbours
    coarse = rng.standard_normal([-(-n // 8) + 2 * edge for n in shape]).astype(np.float32)
    field = np.asarray(ndimage.zoom(ndimage.gaussian_filter(coarse, 20 / 8), 8, order=1))
    field = field[tuple(slice(8 * edge, 8 * edge + n) for n in shape)]
    return (field - field.mean()) / field.std()


def _path(name: str) -> Path:
    found = importlib.util.find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        raise DependencyError(
            "nilearn",
            "no such package",
            "nilearn, which carries the template",
            'Install it with: pip install "biojax[demo]"',
        )
    folder = Path(found.submodule_search_locations[0], "datasets", "data")
    return folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
