"""What every model asks of its input."""

from collections.abc import Sequence

from biojax.errors import ShapeError
from biojax.typing import Array

__all__ = ["check_image"]


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
