"""Each kernel against plain XLA and PyTorch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.contest import Contender, Contest, jax_contender
from biojax.bench.case import normal
from biojax.bench.kernels import call, make_inputs
from biojax.errors import require
from biojax.kernels.specs import LARGE, Spec

__all__ = ["kernel_contests"]


def kernel_contests() -> list[Contest]:
    """Every large shape, forward, and forward with the gradients of all arrays.

    The plain way is that of `flax.linen` for convolutions, pools and normalisation, that of
    `jax.image` for resampling, a step function in `jax.lax.scan` for recurrences, and
    `jax.nn.dot_product_attention`. PyTorch runs contiguous and, where there are images, channels
    last. It sits out in bfloat16, and for `linear_scan`, resampling and normalisation.
    """
    return [
        Contest(
            f"{kernel}/{spec.name}",
            mode,
            spec.dtype,
            functools.partial(_prepare, kernel, spec, mode),
        )
        for kernel, specs in LARGE.items()
        for spec in specs
        for mode in ("forward", "both")
    ]


def _prepare(kernel: str, spec: Spec, mode: str) -> dict[str, Contender]:
    arrays = make_inputs(kernel, spec)
    contenders = {
        "biojax": jax_contender(mode, call(kernel, spec), arrays),
        "xla": jax_contender(mode, functools.partial(_PLAIN[kernel], spec.options), arrays),
    }
    if kernel in _PEERS and spec.dtype == "float32":
        layouts = ["contiguous"]
        if _PEERS[kernel].inputs[0] == "image" and len(spec.shapes[0]) > 3:
            layouts.append("channels_last")
        outputs = normal(1, jax.eval_shape(call(kernel, spec), *arrays))
        for layout in layouts:
            contenders[f"torch {layout}"] = _torch_contender(
                kernel, spec, mode, layout, arrays, jax.tree.leaves(outputs)
            )
    return contenders


# The plain way in JAX.


def _conv(options, x, w):
    module = nn.Conv(
        w.shape[-1],
        w.shape[:-2],
        strides=options.get("strides", 1),
        padding=options.get("padding", "SAME"),
        feature_group_count=options.get("feature_group_count", 1),
        use_bias=False,
    )
    return module.apply({"params": {"kernel": w}}, x)


def _conv_transpose(options, x, w):
    strides = (options["strides"],) * (x.ndim - 2)
    module = nn.ConvTranspose(w.shape[-1], w.shape[:-2], strides=strides, use_bias=False)
    return module.apply({"params": {"kernel": w}}, x)


def _pool(function, options, x):
    rank = x.ndim - 2
    window = (options["window"],) * rank
    strides = (options.get("strides", options["window"]),) * rank
    padding = options.get("padding", "VALID")
    pads = padding if isinstance(padding, str) else [(padding, padding)] * rank
    return function(x, window, strides, pads)


def _resize(options, x):
    shape = (x.shape[0], *[options["size"]] * (x.ndim - 2), x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=False)


def _norm(module, options, x, scale, bias):
    params = {"params": {"scale": scale, "bias": bias}}
    return module(**options).apply(params, x)


def _batch_norm(options, x, scale, bias):
    c = x.shape[-1]
    stats = {"mean": jnp.zeros(c), "var": jnp.zeros(c)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
    module = nn.BatchNorm(use_running_average=False, momentum=0.0)
    y, updated = module.apply(variables, x, mutable=["batch_stats"])
    return y, updated["batch_stats"]["mean"], updated["batch_stats"]["var"]


def _linear_scan(options, a, b, h0):
    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    h_last, h = lax.scan(step, h0, (a.swapaxes(0, 1), b.swapaxes(0, 1)))
    return h.swapaxes(0, 1), h_last


def _rnn(options, x, w_x, w_h, bias, h0):
    def step(h, x_t):
        h = jnp.tanh(x_t @ w_x + h @ w_h + bias)
        return h, h

    h_last, h = lax.scan(step, h0, x.swapaxes(0, 1))
    return h.swapaxes(0, 1), h_last


def _lstm(options, x, w_x, w_h, bias, h0, c0):
    def step(state, x_t):
        h, c = state
        i, f, g, o = jnp.split(x_t @ w_x + h @ w_h + bias, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    last, h = lax.scan(step, (h0, c0), x.swapaxes(0, 1))
    return h.swapaxes(0, 1), last


def _gru(options, x, w_x, w_h, bias, h0):
    def step(h, x_t):
        r_x, z_x, n_x = jnp.split(x_t @ w_x + bias, 3, axis=-1)
        r_h, z_h, n_h = jnp.split(h @ w_h, 3, axis=-1)
        z = jax.nn.sigmoid(z_x + z_h)
        h = (1 - z) * jnp.tanh(n_x + jax.nn.sigmoid(r_x + r_h) * n_h) + z * h
        return h, h

    h_last, h = lax.scan(step, h0, x.swapaxes(0, 1))
    return h.swapaxes(0, 1), h_last


def _attention(options, query, key, value):
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=options.get("is_causal", False)
    )


_PLAIN: dict[str, Callable] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": functools.partial(_pool, nn.max_pool),
    "avg_pool": functools.partial(_pool, functools.partial(nn.avg_pool, count_include_pad=False)),
    "resize": _resize,
    "instance_norm": functools.partial(_norm, functools.partial(nn.InstanceNorm, epsilon=1e-5)),
    "group_norm": functools.partial(_norm, functools.partial(nn.GroupNorm, epsilon=1e-5)),
    "layer_norm": functools.partial(_norm, nn.LayerNorm),
    "batch_norm": _batch_norm,
    "linear_scan": _linear_scan,
    "rnn": _rnn,
    "lstm": _lstm,
    "gru": _gru,
    "attention": _attention,
}


# PyTorch. Each builder gets tensors in PyTorch's layout, and gives the function to be timed and the
# tensors to differentiate by.


def _torch_conv(torch, options, x, w):
    function = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")
    padding = options.get("padding", tuple(k // 2 for k in w.shape[2:]))
    groups = options.get("feature_group_count", 1)
    run = functools.partial(
        function, x, w, stride=options.get("strides", 1), padding=padding, groups=groups
    )
    return run, [x, w]


def _torch_conv_transpose(torch, options, x, w):
    function = getattr(torch.nn.functional, f"conv_transpose{x.ndim - 2}d")
    return functools.partial(function, x, w, stride=options["strides"]), [x, w]


def _torch_pool(name, more, torch, options, x):
    function = getattr(torch.nn.functional, f"{name}{x.ndim - 2}d")
    window = options["window"]
    where = {"stride": options.get("strides", window), "padding": options.get("padding", 0)}
    return functools.partial(function, x, window, **where, **more), [x]


def _torch_cell(name, torch, options, x, w_x, w_h, bias, *states):
    cell = getattr(torch.nn, name)(x.shape[-1], w_h.shape[1], batch_first=True)
    cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0 = map(
        torch.nn.Parameter, (w_x, w_h, bias)
    )
    torch.nn.init.zeros_(cell.bias_hh_l0)

    def run():
        h, last = cell(x, states if name == "LSTM" else states[0])
        return (h, *last) if isinstance(last, tuple) else (h, last)

    return run, [x, cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, *states]


def _torch_attention(torch, options, query, key, value):
    run = functools.partial(
        torch.nn.functional.scaled_dot_product_attention,
        query,
        key,
        value,
        is_causal=options.get("is_causal", False),
    )
    return run, [query, key, value]


class _Peer(NamedTuple):
    """How to build it, and the layouts of its inputs and outputs."""

    build: Callable
    inputs: Sequence[str]
    outputs: Sequence[str]


_CELL = ("same", "matrix", "matrix", "same", "state")
_PEERS: dict[str, _Peer] = {
    "conv": _Peer(_torch_conv, ("image", "kernel"), ("image",)),
    "conv_transpose": _Peer(_torch_conv_transpose, ("image", "flipped"), ("image",)),
    "max_pool": _Peer(functools.partial(_torch_pool, "max_pool", {}), ("image",), ("image",)),
    "avg_pool": _Peer(
        functools.partial(_torch_pool, "avg_pool", {"count_include_pad": False}),
        ("image",),
        ("image",),
    ),
    "rnn": _Peer(functools.partial(_torch_cell, "RNN"), _CELL, ("same", "state")),
    "lstm": _Peer(
        functools.partial(_torch_cell, "LSTM"), (*_CELL, "state"), ("same", "state", "state")
    ),
    "gru": _Peer(functools.partial(_torch_cell, "GRU"), _CELL, ("same", "state")),
    "attention": _Peer(_torch_attention, ("heads",) * 3, ("heads",)),
}


def _flip(a: np.ndarray) -> np.ndarray:
    return np.flip(a, tuple(range(2, a.ndim)))


# From our layouts to PyTorch's, and back.
_TO = {
    "same": lambda a: a,
    "image": lambda a: np.moveaxis(a, -1, 1),
    "kernel": lambda a: np.moveaxis(a, (-1, -2), (0, 1)),
    "flipped": lambda a: _flip(np.moveaxis(a, (-2, -1), (0, 1))),
    "heads": lambda a: a.swapaxes(1, 2),
    "matrix": lambda a: a.T,
    "state": lambda a: a[None],
}
_FROM = {
    "same": lambda a: a,
    "image": lambda a: np.moveaxis(a, 1, -1),
    "kernel": lambda a: np.moveaxis(a, (0, 1), (-1, -2)),
    "flipped": lambda a: np.moveaxis(_flip(a), (0, 1), (-2, -1)),
    "heads": lambda a: a.swapaxes(1, 2),
    "matrix": lambda a: a.T,
    "state": lambda a: a[0],
}


def _torch_contender(
    kernel: str, spec: Spec, mode: str, layout: str, arrays: Sequence[Any], cotangents: list[Any]
) -> Contender:
    torch: Any = require("torch", "peers")
    peer = _PEERS[kernel]

    def tensor(kind: str, array: Any) -> Any:
        t = torch.from_numpy(np.array(_TO[kind](np.asarray(array)), order="C"))
        if layout == "channels_last" and kind in ("image", "kernel", "flipped"):
            name = "channels_last" if t.ndim == 4 else "channels_last_3d"
            t = t.contiguous(memory_format=getattr(torch, name))
        return t

    inputs = [tensor(*each) for each in zip(peer.inputs, arrays, strict=True)]
    for t in inputs:
        t.requires_grad_(mode == "both")
    given = [tensor(*each) for each in zip(peer.outputs, cotangents, strict=True)]
    function, leaves = peer.build(torch, spec.options, *inputs)

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
