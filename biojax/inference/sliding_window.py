"""Sliding-window prediction in bounded memory.

Windows are a grid, and their weights are products over the axes. So are the sums of the weights,
which means that each weight can be divided by its sum beforehand, axis by axis: the weights of all
windows over a voxel then add up to one, and blending is nothing but addition.

The grid is walked along the first spatial axis (z). What is added up is one slab as deep as a
window; once the windows of a row are in, the planes that no later window touches are reduced,
handed out, and the slab moves on. Memory on the device is one slab of logits however deep the
volume is.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from biojax.data import boxes
from biojax.errors import ConfigError, ShapeError, nearest
from biojax.io import Volume, write_planes
from biojax.typing import Array, ArrayLike, IntOrTuple

__all__ = ["predict_volume"]

_BLENDS = ("gaussian", "constant")
_REDUCTIONS = ("logits", "probabilities", "argmax")


def predict_volume(
    apply: Callable[[Any, Array], Any],
    params: Any,
    volume: Volume | ArrayLike,
    *,
    window: IntOrTuple,
    overlap: float = 0.5,
    blend: str = "gaussian",
    batch: int = 1,
    reduce: str = "logits",
    out: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Any:
    """Apply a model to overlapping windows of a volume and blend what it says.

    y[v] = sum over windows i of  w_i[v] * apply(params, x_i)[v],    sum over i of w_i[v] = 1

    with w_i proportional to a Gaussian about the window's centre, whose standard deviation is an
    eighth of the window (blend="gaussian"), or to 1 (blend="constant").

    Args:
      apply: maps params and images (b, *window, c) to (b, *window, k). It is compiled once per
        function: pass the same object again and again, not a new lambda each time.
      params: whatever `apply` takes first, such as a model's variables.
      volume: an array (*spatial, c), or a `Volume` with or without a channel axis, which may be
        lazy (`biojax.io.open_volume`): slabs are then read as they are needed.
      window: size along each spatial axis, or one for all; a multiple of the model's stride.
        Volumes that are smaller are padded at the far end by repeating the edge.
      overlap: the least share of a window that neighbours have in common, in [0, 1).
      blend: "gaussian" or "constant".
      batch: windows at a time.
      reduce: "logits" as they are, "probabilities" (softmax; sigmoid for k = 1), or "argmax"
        (uint8; more than 256 classes uint16; for k = 1, whether the logit is above 0).
      out: a file to stream to, plane by plane, so that the result is never whole in memory; 3-D
        only. The format follows the extension, as in `biojax.io.write_volume`.
      overwrite: whether `out` may be replaced.
      progress: called with the number of windows done and of all windows.

    Returns:
      The same kind as `volume`, (*spatial, k), float32, or (*spatial) for "argmax"; the path, if
      `out` is given.

    Raises:
      ShapeError: the window does not fit the volume's axes, or apply changes the spatial size.
      ConfigError: an unknown blend or reduction, a batch below 1, or an overlap outside [0, 1).
      FileError: `out` is in the way or cannot be written; nothing is left there.

    Source of the Gaussian: Isensee et al., "nnU-Net", Nature Methods 18, 2021, supplement,
    "Inference".

    >>> x = np.arange(30, dtype=np.float32).reshape(5, 6, 1)
    >>> y = predict_volume(lambda params, image: image + params, 1.0, x, window=(4, 4))
    >>> bool(np.allclose(y, x + 1))
    True
    """
    _one_of("blend", blend, _BLENDS)
    _one_of("reduce", reduce, _REDUCTIONS)
    if batch < 1:
        raise ConfigError("predict_volume", f"batch={batch}", "1 or more", "Use batch=1")
    source, window = _source(volume, window)
    classes = _classes(apply, params, source.example(batch, window))
    spread = _Windows(source.spatial, window, overlap, blend, batch)
    chunks = _chunks(apply, params, source, spread, classes, reduce, progress)
    shape = source.spatial if reduce == "argmax" else (*source.spatial, classes)
    if out is not None:
        return _stream(Path(out), chunks, volume, shape, _dtype(reduce, classes), overwrite)
    result = np.empty(shape, _dtype(reduce, classes))
    done = 0
    for chunk in chunks:
        result[done : done + len(chunk)] = chunk
        done += len(chunk)
    return _like(volume, result) if isinstance(volume, Volume) else result


class _Source:
    """The image, of which slabs along the first spatial axis are taken."""

    def __init__(self, data: Any, spatial: tuple[int, ...], channels: int | None):
        self.data, self.spatial = data, spatial
        self.has_axis, self.channels = channels is not None, channels or 1
        floating = jnp.issubdtype(data.dtype, jnp.floating)
        self.dtype = jax.dtypes.canonicalize_dtype(data.dtype if floating else jnp.float32)

    def example(self, batch: int, window: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        """What `apply` will be called with."""
        return jax.ShapeDtypeStruct((batch, *window, self.channels), self.dtype)

    def slab(self, start: int, window: tuple[int, ...]) -> Array:
        """(window[0], *rest, c) from `start`, padded to hold a window along each axis."""
        piece = self.data[start : start + window[0]]
        piece = piece if self.has_axis else piece[..., None]
        short = [(0, max(w - n, 0)) for w, n in zip(window, piece.shape, strict=False)]
        if any(after for _, after in short):
            piece = np.pad(np.asarray(piece), [*short, (0, 0)], mode="edge")
        return jnp.asarray(piece.astype(self.dtype))


class _Windows:
    """The grid of windows: their starts and their normalised weights along each axis."""

    def __init__(self, spatial, window: tuple[int, ...], overlap: float, blend: str, batch: int):
        self.window, self.batch = window, batch
        grid = [np.unique(starts) for starts in boxes(spatial, window, overlap).T]
        self.counts = [len(starts) for starts in grid]
        self.padded = [max(n, w) for n, w in zip(spatial, window, strict=True)]
        tables = [
            _normalised(starts, n, w, blend)
            for starts, n, w in zip(grid, self.padded, window, strict=True)
        ]
        # One more window of no weight, at the start, fills up the last batch of a row.
        self.starts = [np.append(starts, 0) for starts in grid]
        self.weights = tuple(np.vstack([table, 0 * table[:1]]) for table in tables)

    def row(self, i: int) -> Iterator[tuple[np.ndarray, int]]:
        """Batches of windows in row i of the first axis: indices (b, axes), and how many count."""
        inner = list(itertools.product(*map(range, self.counts[1:])))
        for at in range(0, len(inner), self.batch):
            group = [(i, *index) for index in inner[at : at + self.batch]]
            filler = (self.counts[0], *[0] * (len(self.counts) - 1))
            yield np.array(group + [filler] * (self.batch - len(group))), len(group)

    def corners(self, index: np.ndarray) -> np.ndarray:
        """Where these windows start within their slab, (b, axes)."""
        inner = [starts[i] for starts, i in zip(self.starts[1:], index.T[1:], strict=True)]
        return np.stack([np.zeros(len(index), int), *inner], axis=1)


def _normalised(starts: np.ndarray, length: int, window: int, blend: str) -> np.ndarray:
    """Weights (windows, window) along one axis; over each voxel they add up to one."""
    table = np.ones((len(starts), window))
    if blend == "gaussian":
        z = (np.arange(window) - (window - 1) / 2) / (window / 8)
        table *= np.exp(-(z**2) / 2)
    covered = starts[:, None] + np.arange(window)
    total = np.zeros(length)
    np.add.at(total, covered, table)
    return (table / total[covered]).astype(np.float32)


def _chunks(
    apply, params, source: _Source, windows: _Windows, classes: int, reduce: str, progress
) -> Iterator[np.ndarray]:
    """Finished planes, from the first to the last."""
    starts, crop = windows.starts[0][:-1], tuple(slice(n) for n in source.spatial[1:])
    slab = jnp.zeros((windows.window[0], *windows.padded[1:], classes), jnp.float32)
    done, total = 0, int(np.prod(windows.counts))
    for i, start in enumerate(starts):
        image = source.slab(int(start), windows.window)
        for index, count in windows.row(i):
            corners = windows.corners(index)
            weights = tuple(table[j] for table, j in zip(windows.weights, index.T, strict=True))
            slab = _add(apply, windows.window, params, slab, image, corners, weights)
            done += count
            if progress is not None:
                progress(done, total)
        end = starts[i + 1] if i + 1 < len(starts) else source.spatial[0]
        planes, slab = _finish(slab, int(end - start), reduce)
        yield np.asarray(planes)[:, *crop]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _add(apply, window: tuple[int, ...], params, slab: Array, image: Array, corners, weights):
    """Add one batch of windows to the slab. corners (b, axes); weights, per axis, (b, window)."""
    corner = [(*row, 0) for row in corners]
    cuts = [lax.dynamic_slice(image, c, (*window, image.shape[-1])) for c in corner]
    logits = apply(params, jnp.stack(cuts)).astype(jnp.float32)
    for axis, weight in enumerate(weights):
        shape = [1] * logits.ndim
        shape[0], shape[axis + 1] = weight.shape
        logits *= weight.reshape(shape)
    # A filler must not leave a trace where its logits are infinite: 0 * inf is NaN.
    logits = jnp.where(weights[0].any(axis=1).reshape(-1, *[1] * (logits.ndim - 1)), logits, 0)
    for c, piece in zip(corner, logits, strict=True):
        there = lax.dynamic_slice(slab, c, piece.shape)
        slab = lax.dynamic_update_slice(slab, there + piece, c)
    return slab


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=0)
def _finish(slab: Array, count: int, reduce: str) -> tuple[Array, Array]:
    """The first `count` planes, reduced, and the slab moved on by as many."""
    planes, rest = slab[:count], slab[count:]
    moved = jnp.concatenate([rest, jnp.zeros_like(planes)])
    classes = slab.shape[-1]
    if reduce == "probabilities":
        planes = jax.nn.sigmoid(planes) if classes == 1 else jax.nn.softmax(planes)
    if reduce == "argmax":
        found = planes[..., 0] > 0 if classes == 1 else planes.argmax(-1)
        planes = found.astype(_dtype(reduce, classes))
    return planes, moved


def _source(volume: Any, window: IntOrTuple) -> tuple[_Source, tuple[int, ...]]:
    if isinstance(volume, Volume):
        if "t" in volume.axes:
            raise ShapeError(
                "predict_volume",
                f"a volume with axes {volume.axes!r}",
                "one point in time",
                "Take one: volume.replace(data=volume.data[0], axes=volume.axes[1:])",
            )
        channels = volume.shape[-1] if "c" in volume.axes else None
        source = _Source(volume.data, volume.spatial_shape, channels)
    else:
        source = _Source(volume, tuple(volume.shape[:-1]), volume.shape[-1])
    rank = len(source.spatial)
    window = (window,) * rank if isinstance(window, int) else tuple(int(w) for w in window)
    if rank != len(window) or min(window, default=0) < 1:
        raise ShapeError(
            "predict_volume",
            f"window {window} for an image of {source.spatial} with {source.channels} channels",
            "one size of at least 1 for each spatial axis",
            "Change the window, or add the channel axis that an array must have",
        )
    return source, window


def _classes(apply: Callable, params: Any, example: jax.ShapeDtypeStruct) -> int:
    """How many channels come out, once the rest is known to stay the same."""
    result = jax.eval_shape(apply, params, example)
    if result.shape[:-1] != example.shape[:-1]:
        raise ShapeError(
            "predict_volume",
            f"an output of shape {result.shape} for windows of shape {example.shape}",
            "the same batch and spatial size",
            "Use a model for dense prediction",
        )
    return result.shape[-1]


def _stream(path: Path, chunks, volume: Any, shape, dtype, overwrite: bool) -> Path:
    if len(shape) - (dtype == np.float32) != 3:
        raise ShapeError(
            "predict_volume",
            f"out={str(path)!r} for a result of shape {shape}",
            "a 3-D volume, written plane by plane",
            "Leave out= away and write the result with biojax.io.write_volume",
        )
    header: dict[str, Any] = _header(volume) if isinstance(volume, Volume) else {}
    axes = "zyxc"[: len(shape)]
    planes = itertools.chain.from_iterable(chunks)
    write_planes(path, planes, shape=shape, dtype=dtype, axes=axes, overwrite=overwrite, **header)
    return path


def _like(volume: Volume, data: np.ndarray) -> Volume:
    spatial = volume.spatial_axes
    axes = spatial if data.ndim == len(spatial) else f"{spatial}c"
    return Volume(data, axes, **_header(volume))


def _header(volume: Volume) -> dict[str, Any]:
    """Where the volume lies, which its prediction shares."""
    return {"spacing": volume.spacing, "affine": volume.affine, "modality": volume.modality}


def _dtype(reduce: str, classes: int) -> np.dtype:
    if reduce != "argmax":
        return np.dtype(np.float32)
    return np.dtype(np.uint8 if classes <= 256 else np.uint16)


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(
            "predict_volume",
            f"{name}={value!r}",
            f"one of {', '.join(map(repr, choices))}",
            "Name one of these",
            nearest(str(value), choices),
        )
