"""An image in a file, read piece by piece."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from biojax.errors import FileError, ShapeError
from biojax.io.reading import telling
from biojax.io.volume import Volume

__all__ = ["MAX_BYTES", "Box", "LazyArray", "LazyVolume", "lengths", "rearranged"]

MAX_BYTES = 16 * 2**30

Box = tuple[slice, ...]  # per axis: 0 <= start < stop <= length and step > 0


class LazyArray:
    """An array in a file. Slicing it reads what the slice needs and returns a numpy array.

    Args:
      path: the file, for messages.
      shape: the length of each axis.
      dtype: the dtype that is read.
      fetch: reads a box (one slice with a positive step per axis) as an array of that many axes.
      close: closes the file.

    >>> counting = LazyArray("a", (4, 3), "int64", lambda box: np.arange(12).reshape(4, 3)[box])
    >>> counting[-1, ::-1]
    array([11, 10,  9])
    """

    def __init__(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: Any,
        fetch: Callable[[Box], np.ndarray],
        close: Callable[[], None] = lambda: None,
    ):
        self.path, self.shape, self.dtype = path, tuple(shape), np.dtype(dtype)
        self._fetch: Callable[[Box], np.ndarray] | None = fetch
        self._close = close

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the whole array in memory; a Python integer, which cannot overflow."""
        size = self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if self._fetch is None:
            raise FileError(self.path, "a closed file", "an open one", "Read inside the with block")
        chosen = _chosen(index, self.shape)
        box = tuple(_forward(pick) for pick in chosen)
        if any(side.start == side.stop for side in box):
            data = np.empty(lengths(box), self.dtype)
        else:
            with telling(self.path):
                data = self._fetch(box)
        data = data[tuple(0 if isinstance(pick, int) else _turn(pick) for pick in chosen)]
        return np.require(data, requirements=["C", "W"])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)

    def read(self, max_bytes: int = MAX_BYTES) -> np.ndarray:
        """The whole array, if it takes no more than `max_bytes`."""
        if self.nbytes > max_bytes:
            raise FileError(
                self.path,
                f"an image of {self.shape} {self.dtype}, {self.nbytes / 2**30:.4g} GiB",
                f"at most {max_bytes / 2**30:.4g} GiB",
                "Read parts of it with open_volume, or raise max_bytes",
            )
        return self[...]

    def close(self) -> None:
        """Close the file. Reading afterwards is an error."""
        if self._fetch is not None:
            self._fetch = None  # lets go of memory maps
            self._close()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LazyVolume(Volume):
    """A `Volume` whose pixels stay in the file until a part is sliced out.

    Everything but the pixels is known at once. `volume[z0:z1, ...]` takes integers, slices and one
    ellipsis, and reads only the pages, tiles, strips or byte ranges that it needs (a `.nii.gz` must
    be unpacked up to the end of the slice). Use it as a context manager, which closes the file.
    """

    data: LazyArray  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.data[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.data)

    def read(self, *, max_bytes: int = MAX_BYTES) -> Volume:
        """The whole volume in memory.

        Raises:
          FileError: it takes more than `max_bytes`, or the file is damaged.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Volume)}
        return Volume(**{**fields, "data": self.data.read(max_bytes)})

    def model_array(self) -> np.ndarray:
        """Read the pixels as `([t,] *spatial, c)`."""
        data = self.data.read()
        return data if "c" in self.axes else data[..., None]

    def close(self) -> None:
        """Close the file."""
        self.data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lengths(box: Box) -> list[int]:
    """The number of positions on each side of a box."""
    return [len(range(side.start, side.stop, side.step)) for side in box]


def rearranged(
    read: Callable[[Box], np.ndarray], stored: str, axes: str
) -> Callable[[Box], np.ndarray]:
    """Turn a reader of boxes in the file's order of axes into one in the order of `axes`.

    Args:
      read: reads a box with one side per letter of `stored`.
      stored: the axes of the file, each letter once. Those not in `axes` must have length 1.
      axes: the axes wanted. Those not in `stored` get length 1.
    """
    kept = [stored.index(axis) for axis in axes if axis in stored]
    order = kept + [i for i in range(len(stored)) if i not in kept]

    def fetch(box: Box) -> np.ndarray:
        sides = dict(zip(axes, box, strict=True))
        data = read(tuple(sides.get(axis, slice(0, 1, 1)) for axis in stored))
        return data.transpose(order).reshape(lengths(box))

    return fetch


def _chosen(index: Any, shape: tuple[int, ...]) -> list[int | range]:
    """The positions that the index names along each axis."""
    given = list(index) if isinstance(index, tuple) else [index]
    gaps = [i for i, pick in enumerate(given) if pick is Ellipsis]
    at = gaps[0] if gaps else len(given)
    rest = [slice(None)] * (len(shape) - len(given) + len(gaps))
    try:
        if len(gaps) > 1 or any(isinstance(pick, bool) for pick in given):
            raise IndexError
        picks = given[:at] + rest + given[at + 1 :]
        return [range(n)[pick] for n, pick in zip(shape, picks, strict=True)]
    except (IndexError, TypeError, ValueError):
        raise ShapeError(
            "LazyVolume",
            f"the index {index!r} into shape {shape}",
            "integers within the shape, slices and at most one ellipsis",
            "Slice first, or call .read() and index its .data",
        ) from None


def _forward(chosen: int | range) -> slice:
    """The slice of positive step that covers the same positions."""
    if isinstance(chosen, int):
        return slice(chosen, chosen + 1, 1)
    if not chosen:
        return slice(0, 0, 1)
    low, high = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1])
    return slice(low, high + 1, abs(chosen.step))


def _turn(chosen: range) -> slice:
    return slice(None, None, 1 if chosen.step > 0 else -1)
