"""What models ask of their input, and of the patches that it is cut into."""

from collections.abc import Sequence

from biojax.errors import ConfigError, ShapeError
from biojax.kernels.axes import per_axis
from biojax.typing import Array, IntOrTuple

__all__ = ["check_image", "patch_grid", "patch_strides"]


def check_image(where: str, x: Array, spatial_dims: int, stride: Sequence[int]) -> None:
    """Refuse an image of another rank, or of a size that the stride does not divide.

    Raises:
      ShapeError: with the size that would fit.
    """
    if x.ndim != spatial_dims + 2:
        raise ShapeError(
            where,
            f"an image of shape {x.shape} with spatial_dims={spatial_dims}",
            f"(b, {', '.join('dhw'[-spatial_dims:])}, c)",
            "Add the batch or channel axis, or change spatial_dims",
        )
    if any(n % s for n, s in zip(x.shape[1:-1], stride, strict=True)):
        fits = tuple(-(-n // s) * s for n, s in zip(x.shape[1:-1], stride, strict=True))
        raise ShapeError(
            where,
            f"an image of {x.shape[1:-1]}",
            f"a size that the model's stride {tuple(stride)} divides",
            "Pad the image, or choose windows and patches of such a size",
            f"{fits}",
        )


def patch_grid(where: str, image_size: IntOrTuple, patch_size: Sequence[int]) -> tuple[int, ...]:
    """Patches along each axis of images of this size, for which learned positions are made.

    Raises:
      ShapeError: the patches do not divide the image, with the size that fits.
    """
    size = per_axis(where, "image_size", image_size, len(patch_size))
    if any(n % k for n, k in zip(size, patch_size, strict=True)):
        fits = tuple(-(-n // k) * k for n, k in zip(size, patch_size, strict=True))
        raise ShapeError(
            where,
            f"image_size={size} with patches of {tuple(patch_size)}",
            "a size that the patches divide",
            "Change image_size or patch_size",
            f"image_size={fits}",
        )
    return tuple(n // k for n, k in zip(size, patch_size, strict=True))


def patch_strides(where: str, patch_size: Sequence[int]) -> list[tuple[int, ...]]:
    """The strides that a decoder takes from patches to pixels, the last step first.

    Each step doubles the axes; one whose patches are shorter waits for the last steps.

    Raises:
      ConfigError: patches that are no power of two, or of a single pixel.

    >>> patch_strides("unetr", (2, 8, 8))
    [(2, 2, 2), (1, 2, 2), (1, 2, 2)]
    """
    longest = max(patch_size)
    if longest == 1 or any(k & (k - 1) for k in patch_size):
        fits = tuple(1 << (k - 1).bit_length() for k in patch_size)
        raise ConfigError(
            where,
            f"patch_size={tuple(patch_size)}",
            "powers of two, so that steps of two lead from patches back to pixels",
            "Change patch_size",
            f"patch_size={fits if longest > 1 else (2,) * len(fits)}",
        )
    steps = range(longest.bit_length() - 1)
    return [tuple(2 if k >> (i + 1) else 1 for k in patch_size) for i in steps]
