"""Kernels in PyTorch, in its own layouts, its weights ours.

Each builder gets tensors as PyTorch lays them out, and gives the function to be timed and the
tensors to differentiate by.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.contest import Contender
from biojax.bench.case import normal
from biojax.errors import require
from biojax.kernels.specs import Spec

__all__ = ["holds_masks", "torch_kernels"]

# What masks of neighbourhoods that are held from call to call may take.
MASK_BYTES = 2**30


def torch_kernels(
    kernel: str, spec: Spec, mode: str, arrays: Sequence[Any], outputs: Any
) -> dict[str, Contender]:
    """A contender for each layout: contiguous and, where there are images, channels last.

    None in bfloat16, and none for recurrences that PyTorch would have to walk step by step, but for
    those of which such a loop is published or usual.

    Args:
      kernel, spec, mode: what is to be done.
      arrays: the inputs, as in biojax.
      outputs: their shapes and dtypes.
    """
    if kernel not in _PEERS or spec.dtype != "float32":
        return {}
    layouts = ["contiguous"]
    rank = len(spec.shapes[0]) - {"image": 2, "clip": 3}.get(_PEERS[kernel].inputs[0], 0)
    if _PEERS[kernel].inputs[0] in ("image", "clip") and rank > 1:
        layouts.append("channels_last")
    cotangents = jax.tree.leaves(normal(1, outputs))
    return {
        f"torch {layout}": _contender(kernel, spec, mode, layout, arrays, cotangents)
        for layout in layouts
    }


def _conv(torch, options, x, w):
    function = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")
    padding = options.get("padding", tuple(k // 2 for k in w.shape[2:]))
    groups = options.get("feature_group_count", 1)
    run = functools.partial(
        function, x, w, stride=options.get("strides", 1), padding=padding, groups=groups
    )
    return run, [x, w]


def _conv_transpose(torch, options, x, w):
    function = getattr(torch.nn.functional, f"conv_transpose{x.ndim - 2}d")
    return functools.partial(function, x, w, stride=options["strides"]), [x, w]


def _pool(name, more, torch, options, x):
    function = getattr(torch.nn.functional, f"{name}{x.ndim - 2}d")
    window = options["window"]
    where = {"stride": options.get("strides", window), "padding": options.get("padding", 0)}
    return functools.partial(function, x, window, **where, **more), [x]


def _resize(torch, options, x):
    mode = ("linear", "bilinear", "trilinear")[x.ndim - 3]
    if options.get("method") == "nearest":
        mode = "nearest-exact"
    function = torch.nn.functional.interpolate  # with align_corners=False
    return functools.partial(function, x, options["size"], mode=mode), [x]


def _norm(name, more, torch, options, x, scale, bias):
    function = getattr(torch.nn.functional, name)
    run = functools.partial(function, x, weight=scale, bias=bias, **more, **options)
    return run, [x, scale, bias]


def _layer_norm(torch, options, x, scale, bias):
    # The epsilon is ours, and the channels are last, as PyTorch wants them here.
    more = {"normalized_shape": scale.shape, "eps": 1e-6}
    return _norm("layer_norm", more, torch, options, x, scale, bias)


def _cell(name, torch, options, x, w_x, w_h, bias, *states):
    cell = getattr(torch.nn, name)(x.shape[-1], w_h.shape[1], batch_first=True)
    cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0 = map(
        torch.nn.Parameter, (w_x, w_h, bias)
    )
    torch.nn.init.zeros_(cell.bias_hh_l0)

    def run():
        h, last = cell(x, states if name == "LSTM" else states[0])
        return (h, *last) if isinstance(last, tuple) else (h, last)

    return run, [x, cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, *states]


def _selective_scan(torch, options, u, delta, A, B, C):
    """The loop of Mamba's published reference: all decays at once, then step by step.

    Steps are taken apart together, as in `_ssd`.
    """

    def run():
        decay = torch.exp(torch.einsum("btc,cn->btcn", delta, A))
        taken = torch.einsum("btc,btn,btc->btcn", delta, B, u)
        h, outputs = u.new_zeros((u.shape[0], *A.shape)), []
        steps = zip(*(v.unbind(1) for v in (decay, taken, C)), strict=True)
        for decay_t, taken_t, C_t in steps:
            h = decay_t * h + taken_t
            outputs.append(torch.einsum("bcn,bn->bc", h, C_t))
        return torch.stack(outputs, dim=1), h

    return run, [u, delta, A, B, C]


def _ssd(torch, options, x, dt, A, B, C):
    """Decays and inputs of all steps at once, then step by step.

    Steps are taken apart together: the gradient of an index would be as large as all of them.
    """

    def run():
        decay = torch.exp(dt * A)[..., None, None]
        inputs = (dt[..., None] * x)[..., None]
        entering, read = (v.repeat_interleave(x.shape[2] // v.shape[2], 2) for v in (B, C))
        h, outputs = x.new_zeros((x.shape[0], *x.shape[2:], B.shape[-1])), []
        by_step = (v.unbind(dim=1) for v in (decay, inputs, entering[..., None, :], read))
        for a, u, enter, leave in zip(*by_step, strict=True):
            h = a * h + u * enter
            outputs.append(torch.einsum("bnks,bns->bnk", h, leave))
        return torch.stack(outputs, dim=1), h

    return run, [x, dt, A, B, C]


def _conv_lstm(torch, options, x, w_x, w_h, bias, h0, c0):
    """Image and state in one convolution, step by step, as such cells are usually written."""
    conv = functools.partial(
        getattr(torch.nn.functional, f"conv{x.ndim - 3}d"), bias=bias, padding="same"
    )

    def run():
        w, h, c, states = torch.cat([w_x, w_h], dim=1), h0, c0, []
        for x_t in x.unbind(dim=1):
            i, f, g, o = conv(torch.cat([x_t, h], dim=1), w).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, dim=1), h, c

    return run, [x, w_x, w_h, bias, h0, c0]


def _attention(torch, options, query, key, value):
    run = functools.partial(
        torch.nn.functional.scaled_dot_product_attention,
        query,
        key,
        value,
        is_causal=options.get("is_causal", False),
    )
    return run, [query, key, value]


def _axial_attention(torch, options, query, key, value):
    """Lines as a batch."""
    axis = options["axis"]

    def run():
        # (b, *spatial, n, k) to (b, *others, n, t, k), and all before the heads to one axis.
        lines = [x.movedim(axis, -2) for x in (query, key, value)]
        y = torch.nn.functional.scaled_dot_product_attention(*(x.flatten(0, -4) for x in lines))
        return y.unflatten(0, lines[0].shape[:-3]).movedim(-2, axis)

    return run, [query, key, value]


def _linear_attention(torch, options, query, key, value):
    """Sums of all keys; if causal, the weights of all pairs."""

    def run():
        q, k = (torch.nn.functional.elu(x) + 1 for x in (query, key))
        if options.get("is_causal"):
            weights = torch.tril(q @ k.mT)
            return weights @ value / weights.sum(-1, keepdim=True)
        return q @ (k.mT @ value) / (q @ k.sum(2)[..., None])

    return run, [query, key, value]


def holds_masks(shape: Sequence[int]) -> bool:
    """Whether there is room for masks of all voxels of an image (b, *spatial, n, k) with all."""
    return 4 * math.prod(shape[1:-2]) ** 2 <= MASK_BYTES


def _neighborhood_attention(torch, options, query, key, value):
    """Every voxel with every voxel, and a mask, plane after plane of queries.

    Masks are numbers to be added, which PyTorch takes in two thirds of the time of booleans, and
    are made beforehand where there is room for all. For 48 x 48 x 48 voxels they would take 49 GB:
    there each plane's is the sum of two parts, written where that of the plane before was, which is
    5 % of its time (33 of 695 ms, on two cores). Gradients would need all of them at once.
    """
    size, sizes = options["kernel_size"], query.shape[1:-2]

    def seen(edge: int) -> Any:
        at = torch.arange(edge)
        after = at - (at - size // 2).clamp(0, edge - size)[:, None]
        return (after >= 0) & (after < size)

    first, *others = map(seen, sizes)
    rows, plane = (
        torch.zeros(part.shape).masked_fill(~part, -torch.inf)
        for part in (first, functools.reduce(torch.kron, others))
    )

    def masks(out: Any = None) -> Any:
        return (torch.add(plane[:, None], row[:, None], out=out).flatten(1) for row in rows)

    is_held = holds_masks(query.shape)
    held = list(masks()) if is_held else None
    room = None if is_held else torch.empty(len(plane), len(rows), len(plane))

    def run():
        # Heads first, and all voxels in one row: (b, n, voxels, k).
        k, v = (x.flatten(1, -3).transpose(1, 2) for x in (key, value))
        planes = [
            torch.nn.functional.scaled_dot_product_attention(
                q.flatten(1, -3).transpose(1, 2), k, v, attn_mask=mask
            )
            for q, mask in zip(query.unbind(1), held or masks(room), strict=True)
        ]
        return torch.cat(planes, dim=2).transpose(1, 2).reshape(value.shape)

    return run, [query, key, value]


def _window_attention(torch, options, query, key, value, bias):
    """As MONAI's SwinUNETR has it: its partition, and its attention between two dense layers."""
    swin: Any = require("monai.networks.nets.swin_unetr", "peers")
    shift, sizes = options.get("shift", 0), query.shape[1:-2]
    window = (options["window_size"],) * len(sizes)
    shifts, axes = (shift,) * len(sizes), tuple(range(1, len(sizes) + 1))
    mask = swin.compute_mask(sizes, window, shifts, query.device) if shift else None

    def windows(x: Any) -> Any:
        """(b, *spatial, n, k) to (b * windows, n, voxels of a window, k)."""
        x = torch.roll(x.flatten(-2), [-s for s in shifts], axes) if shift else x.flatten(-2)
        return (
            swin.window_partition(x.contiguous(), window)
            .unflatten(2, query.shape[-2:])
            .transpose(1, 2)
        )

    def run():
        q, k, v = map(windows, (query, key, value))
        scores = q * q.shape[-1] ** -0.5 @ k.mT + bias
        if mask is not None:
            by_image = scores.unflatten(0, (-1, len(mask))) + mask[:, None]
            scores = by_image.flatten(0, 1)
        y = scores.softmax(dim=-1) @ v
        y = y.transpose(1, 2).reshape(-1, *window, value.shape[-2] * value.shape[-1])
        y = swin.window_reverse(y, window, (len(query), *sizes))
        y = torch.roll(y, shifts, axes) if shift else y
        return y.unflatten(-1, value.shape[-2:])

    return run, [query, key, value, bias]


class _Peer(NamedTuple):
    """How to build it, and the layouts of its inputs and outputs."""

    build: Callable
    inputs: Sequence[str]
    outputs: Sequence[str]


_NORM = (("image", "same", "same"), ("image",))
_CELL = ("same", "matrix", "matrix", "same", "state")
_CONV_CELL = ("clip", "kernel", "kernel", "same", "image", "image")
_PEERS: dict[str, _Peer] = {
    "conv": _Peer(_conv, ("image", "kernel"), ("image",)),
    "conv_transpose": _Peer(_conv_transpose, ("image", "flipped"), ("image",)),
    "max_pool": _Peer(functools.partial(_pool, "max_pool", {}), ("image",), ("image",)),
    "avg_pool": _Peer(
        functools.partial(_pool, "avg_pool", {"count_include_pad": False}),
        ("image",),
        ("image",),
    ),
    "resize": _Peer(_resize, ("image",), ("image",)),
    "instance_norm": _Peer(functools.partial(_norm, "instance_norm", {}), *_NORM),
    "group_norm": _Peer(functools.partial(_norm, "group_norm", {}), *_NORM),
    "layer_norm": _Peer(_layer_norm, ("same",) * 3, ("same",)),
    "batch_norm": _Peer(
        functools.partial(
            _norm, "batch_norm", {"running_mean": None, "running_var": None, "training": True}
        ),
        *_NORM,
    ),
    "rnn": _Peer(functools.partial(_cell, "RNN"), _CELL, ("same", "state")),
    "lstm": _Peer(functools.partial(_cell, "LSTM"), (*_CELL, "state"), ("same", "state", "state")),
    "gru": _Peer(functools.partial(_cell, "GRU"), _CELL, ("same", "state")),
    "selective_scan": _Peer(_selective_scan, ("same",) * 5, ("same", "same")),
    "ssd": _Peer(_ssd, ("same",) * 5, ("same", "same")),
    "conv_lstm": _Peer(_conv_lstm, _CONV_CELL, ("clip", "image", "image")),
    "attention": _Peer(_attention, ("heads",) * 3, ("heads",)),
    "axial_attention": _Peer(_axial_attention, ("same",) * 3, ("same",)),
    "linear_attention": _Peer(_linear_attention, ("heads",) * 3, ("heads",)),
    "neighborhood_attention": _Peer(_neighborhood_attention, ("same",) * 3, ("same",)),
    "window_attention": _Peer(_window_attention, ("same",) * 4, ("same",)),
}


def _flip(a: np.ndarray) -> np.ndarray:
    return np.flip(a, tuple(range(2, a.ndim)))


# From our layouts to PyTorch's, and back.
_TO = {
    "same": lambda a: a,
    "image": lambda a: np.moveaxis(a, -1, 1),
    "clip": lambda a: np.moveaxis(a, -1, 2),
    "kernel": lambda a: np.moveaxis(a, (-1, -2), (0, 1)),
    "flipped": lambda a: _flip(np.moveaxis(a, (-2, -1), (0, 1))),
    "heads": lambda a: a.swapaxes(1, 2),
    "matrix": lambda a: a.T,
    "state": lambda a: a[None],
}
_FROM = {
    "same": lambda a: a,
    "image": lambda a: np.moveaxis(a, 1, -1),
    "clip": lambda a: np.moveaxis(a, 2, -1),
    "kernel": lambda a: np.moveaxis(a, (0, 1), (-1, -2)),
    "flipped": lambda a: np.moveaxis(_flip(a), (0, 1), (-2, -1)),
    "heads": lambda a: a.swapaxes(1, 2),
    "matrix": lambda a: a.T,
    "state": lambda a: a[0],
}


def _contender(
    kernel: str, spec: Spec, mode: str, layout: str, arrays: Sequence[Any], cotangents: list[Any]
) -> Contender:
    torch: Any = require("torch", "peers")
    peer = _PEERS[kernel]

    def tensor(kind: str, array: Any) -> Any:
        t = torch.from_numpy(np.array(_TO[kind](np.asarray(array)), order="C"))
        if layout == "channels_last" and kind in ("image", "kernel", "flipped"):
            name = "channels_last" if t.ndim == 4 else "channels_last_3d"
            t = t.contiguous(memory_format=getattr(torch, name))
        if layout == "channels_last" and kind == "clip":  # each image of it
            t = t.movedim(2, -1).contiguous().movedim(-1, 2)
        return t

    inputs = [tensor(*each) for each in zip(peer.inputs, arrays, strict=True)]
    for t in inputs:
        t.requires_grad_(mode == "both")
    function, leaves = peer.build(torch, spec.options, *inputs)
    # Each in the layout of its output: that of `instance_norm` is contiguous whatever x is, and
    # PyTorch 2.13 gets the gradients of a single image wrong if they come channels last.
    with torch.no_grad():
        given = [
            torch.empty_like(output).copy_(tensor(kind, cotangent))
            for output, kind, cotangent in zip(
                _several(function()), peer.outputs, cotangents, strict=True
            )
        ]

    def run() -> list[Any]:
        if mode == "forward":
            with torch.no_grad():
                return _several(function())
        outputs = _several(function())
        return [*outputs, *torch.autograd.grad(outputs, leaves, given)]

    def result() -> list[np.ndarray]:
        kinds = [*peer.outputs, *peer.inputs]
        return [
            _FROM[kind](t.detach().numpy()) for kind, t in zip(kinds, run(), strict=mode == "both")
        ]

    return Contender(run, result)


def _several(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, tuple) else [outputs]
