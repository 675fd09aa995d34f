"""Every kernel as plain Flax and JAX have it, under the names and with the arguments of ours.

Convolutions, pools and normalisation are those of `flax.linen`, resampling that of `jax.image`,
attention that of `jax.nn`, and recurrences a step function in `jax.lax.scan`, but for Flax's
convolutional LSTM. `plainly` puts them in the place of ours in a whole model.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from biojax import kernels
from biojax.kernels.axes import per_axis
from biojax.kernels.conv.geometry import transpose_pads

__all__ = ["ASSOCIATIVE", "PLAIN", "plainly"]


def plainly(function: Callable) -> Callable:
    """`function`, whose models and modules call plain kernels: what a user of Flax would have.

    All else is the same, so that parameters serve both. Afterwards `biojax.kernels.explain` finds
    no kernel of ours in it.
    """

    def run(*args, **kwargs):
        with contextlib.ExitStack() as stack:
            for path, module in list(sys.modules.items()):
                if path.startswith(("biojax.modules.", "biojax.models.")):
                    for name, plain in PLAIN.items():
                        if getattr(module, name, None) is getattr(kernels, name):
                            stack.enter_context(mock.patch.object(module, name, plain))
            return function(*args, **kwargs)

    return run


def _apply(kind: Callable[..., nn.Module], params: dict[str, Any], x: jax.Array, **fields) -> Any:
    # Without a parent: these layers are called in the midst of other modules.
    return kind(**fields, parent=None).apply({"params": params}, x)


def _conv(x, w, **options):
    fields = {"features": w.shape[-1], "kernel_size": w.shape[:-2], "use_bias": False}
    return _apply(nn.Conv, {"kernel": w}, x, **fields, **options)


def _conv_transpose(x, w, *, strides=1, padding="SAME", feature_group_count=1, precision=None):
    strides = per_axis("conv_transpose", "strides", strides, x.ndim - 2)
    if feature_group_count == 1:
        fields = {"features": w.shape[-1], "kernel_size": w.shape[:-2], "use_bias": False}
        fields |= {"strides": strides, "padding": padding, "precision": precision}
        return _apply(nn.ConvTranspose, {"kernel": w}, x, **fields)
    axes = "DHW"[-len(strides) :]
    return lax.conv_general_dilated(  # Flax has no groups here
        x,
        w,
        (1,) * len(strides),
        transpose_pads("conv_transpose", padding, w.shape[:-2], strides),
        lhs_dilation=strides,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=feature_group_count,
        precision=precision,
    )


def _max_pool(x, window, **options):
    return nn.max_pool(x, *_windows(x, window, **options))


def _avg_pool(x, window, **options):
    return nn.avg_pool(x, *_windows(x, window, **options), count_include_pad=False)


def _windows(x, window, *, strides=None, padding="VALID"):
    rank = x.ndim - 2
    window = per_axis("pool", "window", window, rank)
    strides = window if strides is None else per_axis("pool", "strides", strides, rank)
    return window, strides, [(padding, padding)] * rank if isinstance(padding, int) else padding


def _resize(x, size, *, method="linear"):
    shape = (x.shape[0], *per_axis("resize", "size", size, x.ndim - 2), x.shape[-1])
    return jax.image.resize(x, shape, method, antialias=False)


def _instance_norm(x, scale=None, bias=None, **options):
    return _norm(nn.InstanceNorm, x, scale, bias, **{"epsilon": 1e-5, **options})


def _group_norm(x, scale=None, bias=None, **options):
    return _norm(nn.GroupNorm, x, scale, bias, **{"epsilon": 1e-5, **options})


def _layer_norm(x, scale=None, bias=None, **options):
    return _norm(nn.LayerNorm, x, scale, bias, **options)


def _norm(kind, x, scale, bias, **fields):
    params = {k: v for k, v in (("scale", scale), ("bias", bias)) if v is not None}
    used = {"use_scale": scale is not None, "use_bias": bias is not None}
    return _apply(kind, params, x, **used, **fields)


def _batch_norm(x, scale, bias, *, epsilon=1e-5):
    c = x.shape[-1]
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": jnp.zeros(c), "var": jnp.zeros(c)},
    }
    fields = {"use_running_average": False, "momentum": 0.0, "epsilon": epsilon}
    y, new = nn.BatchNorm(**fields, parent=None).apply(variables, x, mutable=["batch_stats"])
    return y, new["batch_stats"]["mean"], new["batch_stats"]["var"]


def _linear_scan(a, b, h0):
    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    h_last, h = lax.scan(step, h0, (a.swapaxes(0, 1), b.swapaxes(0, 1)))
    return h.swapaxes(0, 1), h_last


def _associative_scan(a, b, h0):

    def combine(one, two):
        return one[0] * two[0], two[0] * one[1] + two[1]

    h = lax.associative_scan(combine, (a, b.at[:, 0].add(a[:, 0] * h0)), axis=1)[1]
    return h, h[:, -1]


def _selective_scan(u, delta, A, B, C):
    def step(h, given):
        u, delta, B, C = given
        h = jnp.exp(delta[..., None] * A) * h + (delta * u)[..., None] * B[:, None]
        return h, jnp.einsum("bcn,bn->bc", h, C)

    by_step = [v.swapaxes(0, 1) for v in (u, delta, B, C)]
    h_last, y = lax.scan(step, jnp.zeros((u.shape[0], *A.shape)), by_step)
    return y.swapaxes(0, 1), h_last


def _rnn(x, w_x, w_h, bias, h0):
    def step(h, x_t):
        h = jnp.tanh(x_t @ w_x + h @ w_h + bias)
        return h, h

    h_last, h = lax.scan(step, h0, x.swapaxes(0, 1))
    return h.swapaxes(0, 1), h_last


def _lstm(x, w_x, w_h, bias, h0, c0):
    def step(state, x_t):
        h, c = state
        i, f, g, o = jnp.split(x_t @ w_x + h @ w_h + bias, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    last, h = lax.scan(step, (h0, c0), x.swapaxes(0, 1))
    return h.swapaxes(0, 1), last


def _gru(x, w_x, w_h, bias, h0):
    def step(h, x_t):
        r_x, z_x, n_x = jnp.split(x_t @ w_x + bias, 3, axis=-1)
        r_h, z_h, n_h = jnp.split(h @ w_h, 3, axis=-1)
        z = jax.nn.sigmoid(z_x + z_h)
        h = (1 - z) * jnp.tanh(n_x + jax.nn.sigmoid(r_x + r_h) * n_h) + z * h
        return h, h

    h_last, h = lax.scan(step, h0, x.swapaxes(0, 1))
    return h.swapaxes(0, 1), h_last


def _rg_lru(scan, x, r, i, a_param):
    log_a = -8 * jax.nn.sigmoid(r) * jax.nn.softplus(a_param)
    inputs = jnp.sqrt(-jnp.expm1(2 * log_a)) * jax.nn.sigmoid(i) * x
    return scan(jnp.exp(log_a), inputs, jnp.zeros(x.shape[::2]))


def _ssd(x, dt, A, B, C):
    def step(h, given):
        x, dt, B, C = given
        B, C = (jnp.repeat(v, x.shape[1] // v.shape[1], axis=1) for v in (B, C))
        taken = (dt[..., None] * x)[..., None] * B[:, :, None]
        h = jnp.exp(dt * A)[..., None, None] * h + taken
        return h, jnp.einsum("bnks,bns->bnk", h, C)

    b, _, n, k = x.shape
    by_step = [v.swapaxes(0, 1) for v in (x, dt, B, C)]
    h_last, y = lax.scan(step, jnp.zeros((b, n, k, B.shape[-1])), by_step)
    return y.swapaxes(0, 1), h_last


def _mlstm(query, key, value, i, f):
    def step(state, given):
        C, n, m = state
        q, k, v, i, f = given
        log_f, before = jax.nn.log_sigmoid(f), m
        m = lax.stop_gradient(jnp.maximum(log_f + m, i))  # as ours: h does not depend on it
        forget, enter = jnp.exp(log_f + before - m)[..., None], jnp.exp(i - m)[..., None]
        k = enter * k / jnp.sqrt(k.shape[-1])
        C = forget[..., None] * C + k[..., None] * v[..., None, :]
        n = forget * n + k
        size = jnp.maximum(jnp.abs(jnp.einsum("bnk,bnk->bn", n, q)), jnp.exp(-m))
        return (C, n, m), jnp.einsum("bnkv,bnk->bnv", C, q) / size[..., None]

    b, _, heads, k = query.shape
    first = jnp.zeros((b, heads, k, value.shape[-1])), jnp.zeros((b, heads, k))
    by_step = [x.swapaxes(0, 1) for x in (query, key, value, i, f)]
    last, h = lax.scan(step, (*first, jnp.zeros((b, heads))), by_step)
    return h.swapaxes(0, 1), last


def _slstm(gates, w_h):
    def step(state, gates):
        h, c, n, m = state
        i, f, z, o = jnp.moveaxis(gates + jnp.einsum("bnk,nkgj->bngj", h, w_h), 2, 0)
        log_f, before = jax.nn.log_sigmoid(f), m
        m = lax.stop_gradient(jnp.maximum(log_f + m, i))
        forget, enter = jnp.exp(log_f + before - m), jnp.exp(i - m)
        c = forget * c + enter * jnp.tanh(z)
        n = forget * n + enter
        h = jax.nn.sigmoid(o) * c / n
        return (h, c, n, m), h

    zeros = jnp.zeros(gates[:, 0, :, 0].shape)
    first = zeros, zeros, zeros, jnp.full_like(zeros, -jnp.inf)
    last, h = lax.scan(step, first, gates.swapaxes(0, 1))
    return h.swapaxes(0, 1), last


def _conv_lstm(x, w_x, w_h, bias, h0, c0):
    def in_order(w):  # Flax's gates are i, g, f, o, and it adds 1 to f
        i, f, g, o = jnp.split(w, 4, axis=-1)
        return jnp.concatenate([i, g, f, o], axis=-1)

    features = h0.shape[-1]
    bias = in_order(bias).at[2 * features : 3 * features].add(-1)
    params = {
        "ih": {"kernel": in_order(w_x), "bias": bias},
        "hh": {"kernel": in_order(w_h), "bias": jnp.zeros_like(bias)},
    }
    cell = nn.ConvLSTMCell(features, w_x.shape[:-2], parent=None)
    (c_last, h_last), h = nn.RNN(cell, return_carry=True, parent=None).apply(
        {"params": {"cell": params}}, x, initial_carry=(c0, h0)
    )
    return h, (h_last, c_last)


def _conv_gru(x, w_x, w_h, bias, h0):
    def step(h, x_t):
        r_x, z_x, n_x = jnp.split(_conv(x_t, w_x) + bias, 3, axis=-1)
        r_h, z_h, n_h = jnp.split(_conv(h, w_h), 3, axis=-1)
        z = jax.nn.sigmoid(z_x + z_h)
        h = (1 - z) * jnp.tanh(n_x + jax.nn.sigmoid(r_x + r_h) * n_h) + z * h
        return h, h

    h_last, h = lax.scan(step, h0, x.swapaxes(0, 1))
    return h.swapaxes(0, 1), h_last


def _axial_attention(query, key, value, *, axis):
    """Lines as a batch."""
    query, key, value = (jnp.moveaxis(x, axis, -3) for x in (query, key, value))
    lines = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    y = jax.nn.dot_product_attention(*lines)
    return jnp.moveaxis(y.reshape(*query.shape[:-1], -1), -3, axis)


def _linear_attention(query, key, value, *, is_causal=False):
    query, key = (jax.nn.elu(x) + 1 for x in (query, key))
    if is_causal:  # by the weights of all pairs
        weights = jnp.tril(jnp.einsum("btnk,bsnk->bnts", query, key))
        sums = jnp.moveaxis(weights.sum(-1), 1, -1)
        return jnp.einsum("bnts,bsnv->btnv", weights, value) / sums[..., None]
    sums = jnp.einsum("btnk,bnk->btn", query, key.sum(1))
    states = jnp.einsum("bsnk,bsnv->bnkv", key, value)
    return jnp.einsum("btnk,bnkv->btnv", query, states) / sums[..., None]


def _neighborhood_attention(query, key, value, *, kernel_size):
    """Every voxel with every voxel, and a mask."""
    b, *sizes, n, _ = query.shape
    mask = jnp.ones((1, 1), jnp.int8)
    for size in sizes:
        first = jnp.clip(jnp.arange(size) - kernel_size // 2, 0, size - kernel_size)
        after = jnp.arange(size) - first[:, None]
        mask = jnp.kron(mask, ((after >= 0) & (after < kernel_size)).astype(jnp.int8))
    flat = (x.reshape(b, -1, n, x.shape[-1]) for x in (query, key, value))
    y = jax.nn.dot_product_attention(*flat, mask=mask[None, None] > 0)
    return y.reshape(value.shape)


def _window_attention(query, key, value, bias, *, window_size, shift=0, **_):
    """Windows as a batch; of a rolled image the voxels of each border are told from the others."""
    sizes, rank = query.shape[1:-2], query.ndim - 3
    window = per_axis("window_attention", "window_size", window_size, rank)
    shifts = (shift,) * rank if isinstance(shift, int) else shift
    grid = [size // w for size, w in zip(sizes, window, strict=True)]
    axes, odd, last = range(1, rank + 1), range(2, 2 * rank + 1, 2), range(rank + 1, 2 * rank + 1)

    def cut(x):  # (b, *spatial, ...) to (b * windows, voxels of a window, ...)
        x = jnp.roll(x, [-s for s in shifts], axes)
        pairs = [n for pair in zip(grid, window, strict=True) for n in pair]
        x = jnp.moveaxis(x.reshape(-1, *pairs, *x.shape[rank + 1 :]), odd, last)
        return x.reshape(-1, math.prod(window), *x.shape[2 * rank + 1 :])

    def join(x):
        x = jnp.moveaxis(x.reshape(-1, *grid, *window, *x.shape[2:]), last, odd)
        return jnp.roll(x.reshape(-1, *sizes, *x.shape[2 * rank + 1 :]), shifts, axes)

    mask = None
    if any(shifts):
        borders = (jnp.arange(n) < s for n, s in zip(sizes, shifts, strict=True))
        border = functools.reduce(lambda a, b: 2 * a[..., None] + b, borders, jnp.zeros((1,), int))
        border = cut(border)
        mask = border[:, None, :, None] == border[:, None, None, :]
        mask = jnp.tile(mask, (len(query), 1, 1, 1))
    return join(jax.nn.dot_product_attention(cut(query), cut(key), cut(value), bias[None], mask))


# The linear recurrences by `jax.lax.associative_scan`.
ASSOCIATIVE: dict[str, Callable] = {
    "linear_scan": _associative_scan,
    "rg_lru": functools.partial(_rg_lru, _associative_scan),
}
PLAIN: dict[str, Callable] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "resize": _resize,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "linear_scan": _linear_scan,
    "selective_scan": _selective_scan,
    "rnn": _rnn,
    "lstm": _lstm,
    "gru": _gru,
    "ssd": _ssd,
    "rg_lru": functools.partial(_rg_lru, _linear_scan),
    "mlstm": _mlstm,
    "slstm": _slstm,
    "conv_lstm": _conv_lstm,
    "conv_gru": _conv_gru,
    "attention": jax.nn.dot_product_attention,
    "axial_attention": _axial_attention,
    "linear_attention": _linear_attention,
    "neighborhood_attention": _neighborhood_attention,
    "window_attention": _window_attention,
}
