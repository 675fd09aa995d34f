"""Every kernel as plain Flax and JAX have it, under the names and with the arguments of ours.

Convolutions, pools and normalisation are those of `flax.linen`, resampling that of `jax.image`,
attention that of `jax.nn`, and recurrences a step function in `jax.lax.scan`. `plainly` puts them
in the place of ours in a whole model.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from biojax import kernels
from biojax.kernels.conv.geometry import per_axis, transpose_pads

__all__ = ["PLAIN", "associative_scan", "plainly"]


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


def associative_scan(a, b, h0):
    """`linear_scan` by `jax.lax.associative_scan`."""

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
    "attention": jax.nn.dot_product_attention,
}
