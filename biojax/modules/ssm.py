"""State space layers: Mamba, Mamba-2, and the visual state space block of VMamba."""

import math
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name

from biojax.errors import ConfigError, UnsupportedError, nearest, nearest_divisor
from biojax.kernels.scan.orders import cross_scan_orders
from biojax.kernels.scan.selective import selective_scan
from biojax.kernels.scan.sharded import with_tokens_before
from biojax.kernels.scan.ssd import ssd
from biojax.kernels.scan.volume import scan_volume
from biojax.modules.conv import Conv
from biojax.modules.norm import make_norm
from biojax.typing import Array, Dtype

__all__ = ["Mamba2Block", "MambaBlock", "SelectiveSSM", "VSSBlock"]

MERGES = ("mean", "sum")


class SelectiveSSM(nn.Module):
    """`biojax.kernels.selective_scan` whose delta, B and C are made from its input (S6).

    s_t, B_t, C_t = split(u_t W_x),   delta_t = softplus(s_t W_dt + bias),   A = -exp(A_log)
    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = C_t h_t + D u_t

    A starts as -1, ..., -n in every channel, D as 1, and delta between 0.001 and 0.1.

    Args:
      rank: of W_x W_dt, the matrix that delta is made by: the size of s.
      state_size: n, states of each channel.
      reverse: run from the last step to the first.
      chunk: steps whose states are in memory together; see `biojax.kernels.selective_scan`.
      axis_name: of a mesh, over which the steps are spread; inside of `jax.shard_map`.
      dtype: of the computation; states are float32 at least.
      param_dtype: of the parameters.

    Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", COLM
    2024, sections 3.2, 3.5 and 3.6.
    """

    rank: int
    state_size: int = 16
    reverse: bool = False
    chunk: int | None = None
    axis_name: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, u: Array) -> Array:
        """(b, t, c) to (b, t, c)."""
        c, n, r = u.shape[-1], self.state_size, self.rank
        matrix = nn.initializers.lecun_normal()
        w_x = self.param("w_x", matrix, (c, r + 2 * n), self.param_dtype)
        w_dt = self.param("w_dt", _uniform(r**-0.5), (r, c), self.param_dtype)
        bias = self.param("bias", _steps, (c,), self.param_dtype)
        a_log = self.param("A_log", _log_of_numbers, (c, n), self.param_dtype)
        d = self.param("D", nn.initializers.ones_init(), (c,), self.param_dtype)
        u, w_x, w_dt = promote_dtype(u, w_x, w_dt, dtype=self.dtype)
        s, B, C = jnp.split(u @ w_x, [r, r + n], axis=-1)
        wide = jnp.promote_types(u.dtype, jnp.float32)
        A = -jnp.exp(a_log.astype(wide))
        y, _ = selective_scan(
            u,
            s @ w_dt,
            A,
            B,
            C,
            d.astype(wide),
            delta_bias=bias.astype(wide),
            delta_softplus=True,
            reverse=self.reverse,
            chunk=self.chunk,
            axis_name=self.axis_name,
        )
        return y


class MambaBlock(nn.Module):
    """A state space model behind a short causal convolution, and a gate.

    x, z = split(u W_in),   y = merge over orders of ssm(silu(conv(x))),   out = (silu(z) y) W_out

    Each order has a convolution and a `SelectiveSSM` of its own, which see the voxels as a sequence
    in that order. Over sequences, orders of ("x",) are Mamba, and ("x", "-x") with the mean the
    bidirectional block of Vision Mamba. Over volumes, ("zyx", "-zyx", "yxz") with the sum are
    SegMamba's tri-orientated one: forward, backward, and from slice to slice.

    Args:
      orders: how to walk the voxels, see `biojax.kernels.traverse`; in raster order if None.
      merge: "mean" or "sum" of the orders.
      expansion_ratio: width of x and z over that of the input.
      state_size: states of each channel.
      kernel_size: of the convolutions.
      chunk: of each `SelectiveSSM`.
      axis_name: of a mesh, over which the tokens of sequences are spread, kernel_size - 1 or more
        on each device; inside of `jax.shard_map`. Orders are then "x" and "-x".
      dtype: of the computation; states are float32 at least.
      param_dtype: of the parameters.

    Raises:
      ConfigError: no such order of so many axes, or no such merge.
      ShapeError: fewer tokens on a device than the convolution reads before them.
      UnsupportedError: a volume over an axis of a mesh.

    Sources: Gu and Dao, "Mamba", COLM 2024, section 3.4; Zhu et al., "Vision Mamba", ICML 2024,
    section 3.3; Xing et al., "SegMamba", MICCAI 2024, section 2.1.
    """

    orders: Sequence[str] | None = None
    merge: str = "mean"
    expansion_ratio: float = 2.0
    state_size: int = 16
    kernel_size: int = 4
    chunk: int | None = None
    axis_name: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, u: Array) -> Array:
        """(b, *spatial, c) to (b, *spatial, c)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        c = u.shape[-1]
        if self.merge not in MERGES:
            raise ConfigError(
                "MambaBlock",
                f"merge={self.merge!r}",
                f"one of {', '.join(map(repr, MERGES))}",
                "Name one of these",
                nearest(self.merge, MERGES),
            )
        inner = int(self.expansion_ratio * c)
        orders = self.orders or ("zyx"[-(u.ndim - 2) :],)
        make_ssm = partial(SelectiveSSM, _rank(c), self.state_size, chunk=self.chunk, **kind)
        x, z = jnp.split(nn.Dense(2 * inner, use_bias=False, name="in", **kind)(u), 2, axis=-1)

        def layers(i: int, padding, **more):
            depthwise = {"feature_group_count": inner, "padding": padding, "name": f"conv{i}"}
            conv = Conv(inner, self.kernel_size, **depthwise, **kind)
            return conv, make_ssm(name=f"ssm{i}", **more)

        def whole(i: int):
            conv, ssm = layers(i, [(self.kernel_size - 1, 0)])
            return lambda tokens: ssm(nn.silu(conv(tokens)))

        def part(i: int, reverse: bool, axis_name: str):
            conv, ssm = layers(i, "VALID", reverse=reverse, axis_name=axis_name)
            axes = (1,) if reverse else ()

            def run(own: Array) -> Array:
                seen = with_tokens_before("MambaBlock", own, self.kernel_size, axis_name, reverse)
                return ssm(nn.silu(jnp.flip(conv(jnp.flip(seen, axes)), axes)))

            return run

        if self.axis_name is None:
            scans = [whole(i) for i in range(len(orders))]
            y = scan_volume(x, scans, orders, merge=self.merge)
        else:
            self._check_sequences(u, orders)
            scans = [part(i, order == "-x", self.axis_name) for i, order in enumerate(orders)]
            # In their own order, the first to the last, whichever way they are run.
            y = scan_volume(x, scans, ["x"] * len(orders), merge=self.merge)
        return nn.Dense(c, use_bias=False, name="out", **kind)(y * nn.silu(z))

    def _check_sequences(self, u: Array, orders: Sequence[str]) -> None:
        if u.ndim != 3 or not set(orders) <= {"x", "-x"}:
            raise UnsupportedError(
                "MambaBlock",
                f"axis_name={self.axis_name!r} for tokens {u.shape} in orders {tuple(orders)}",
                "sequences (b, t, c) in orders 'x' and '-x'",
                "Traverse the volume first, or spread its batch",
            )


class Mamba2Block(nn.Module):
    """Mamba-2: as Mamba, with one decay for each head, so that it computes by matrix products.

    z, v, s = split(u W_in),   x, B, C = split(silu(conv(v))),   dt_t = softplus(s_t + dt_bias)
    y = ssd(x, dt, A, B, C, D),   out = norm(silu(z) y) W_out,   A = -exp(A_log)

    The norm is that of the root mean square, over all inner channels; in the authors' code over
    those of each group. A starts between -16 and -1, D as 1, and dt between 0.001 and 0.1.

    Args:
      head_size: k; must divide the inner channels.
      state_size: s, of each channel.
      num_groups: g, heads that share B and C; must divide the number of heads.
      expansion_ratio: inner channels over those of the input.
      kernel_size: of the convolution.
      reverse: run from the last step to the first.
      dtype: of the computation; states are float32 at least.
      param_dtype: of the parameters.

    Raises:
      ConfigError: heads that do not divide the inner channels, or groups the heads.

    Source: Dao and Gu, "Transformers are SSMs", ICML 2024, section 7.1 and figure 6.
    """

    head_size: int = 64
    state_size: int = 128
    num_groups: int = 1
    expansion_ratio: float = 2.0
    kernel_size: int = 4
    reverse: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, u: Array) -> Array:
        """(b, t, c) to (b, t, c)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        inner, heads = self._sizes(u.shape[-1])
        mixed, pad = inner + 2 * self.num_groups * self.state_size, self.kernel_size - 1
        y = nn.Dense(inner + mixed + heads, use_bias=False, name="in", **kind)(u)
        z, v, s = jnp.split(y, [inner, inner + mixed], axis=-1)
        conv = Conv(
            mixed,
            self.kernel_size,
            padding=[(0, pad) if self.reverse else (pad, 0)],
            feature_group_count=mixed,
            name="conv",
            **kind,
        )
        x, B, C = jnp.split(nn.silu(conv(v)), [inner, (inner + mixed) // 2], axis=-1)
        a_log = self.param("A_log", _log_up_to_16, (heads,), self.param_dtype)
        d = self.param("D", nn.initializers.ones_init(), (heads,), self.param_dtype)
        bias = self.param("dt_bias", _steps, (heads,), self.param_dtype)
        wide = jnp.promote_types(u.dtype, jnp.float32)
        dt = nn.softplus(s.astype(wide) + bias.astype(wide))
        x = x.reshape(*u.shape[:2], heads, self.head_size)
        B, C = (v.reshape(*u.shape[:2], self.num_groups, self.state_size) for v in (B, C))
        A = -jnp.exp(a_log.astype(wide))
        y, _ = ssd(x, dt, A, B, C, d.astype(wide), reverse=self.reverse)
        y = nn.RMSNorm(1e-5, name="norm", **kind)(y.reshape(z.shape) * nn.silu(z))
        return nn.Dense(u.shape[-1], use_bias=False, name="out", **kind)(y)

    def _sizes(self, c: int) -> tuple[int, int]:
        """The inner channels, and the number of heads."""
        inner, groups = int(self.expansion_ratio * c), self.num_groups
        fits = min(self.head_size, groups) > 0 and inner % (self.head_size * groups) == 0
        if not fits:
            raise ConfigError(
                "Mamba2Block",
                f"head_size={self.head_size} and num_groups={groups} for {inner} inner channels",
                "a size of heads that divides the inner channels, and groups that divide the heads",
                "Change the features, the size of the heads or the groups",
                f"head_size={nearest_divisor(self.head_size, inner)}",
            )
        return inner, inner // self.head_size


class VSSBlock(nn.Module):
    """x + scan(norm(x)), then x + mlp(norm(x)): the visual state space block, with cross-scan.

    scan(x) = norm(sum over orders of ssm(silu(conv(x W_in)))) W_out

    The convolution is depthwise, over space. Each order has a `SelectiveSSM` of its own, which sees
    the voxels as a sequence in that order.

    Args:
      orders: how to walk the voxels, see `biojax.kernels.traverse`. If None the cross-scan: along
        each axis, forwards and backwards, which are four orders in 2-D and six in 3-D.
      expansion_ratio: width of the scans over that of the input.
      state_size: states of each channel.
      kernel_size: of the convolution, odd.
      mlp_ratio: width of the hidden layer over that of the input.
      drop_path_rate: share of images whose branch is left out, while training.
      chunk: of each `SelectiveSSM`.
      dtype: of the computation; states are float32 at least.
      param_dtype: of the parameters.

    Raises:
      ConfigError: no such order of so many axes.

    Source: Liu et al., "VMamba: visual state space model", NeurIPS 2024, section 4 and figure 3.
    The paper has the four orders in 2-D; the defaults are those of its VMamba-T.
    """

    orders: Sequence[str] | None = None
    expansion_ratio: float = 1.0
    state_size: int = 1
    kernel_size: int = 3
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    chunk: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *spatial, c)."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        c = x.shape[-1]
        inner = int(self.expansion_ratio * c)
        orders = self.orders or cross_scan_orders(x.ndim - 2)
        drop = nn.Dropout(self.drop_path_rate, range(1, x.ndim), deterministic=not train)
        y = make_norm("layer", layer_name="norm1", **kind)(x)
        y = nn.Dense(inner, use_bias=False, name="in", **kind)(y)
        conv = Conv(
            inner,
            self.kernel_size,
            padding=self.kernel_size // 2,
            feature_group_count=inner,
            use_bias=False,
            name="conv",
            **kind,
        )
        make_ssm = partial(SelectiveSSM, _rank(c), self.state_size, chunk=self.chunk, **kind)
        scans = [make_ssm(name=f"ssm{i}") for i in range(len(orders))]
        y = scan_volume(nn.silu(conv(y)), scans, orders, merge="sum")
        y = make_norm("layer", layer_name="norm_scan", **kind)(y)
        x = x + drop(nn.Dense(c, use_bias=False, name="out", **kind)(y))
        y = make_norm("layer", layer_name="norm2", **kind)(x)
        y = nn.Dense(int(self.mlp_ratio * c), name="mlp1", **kind)(y)
        y = nn.Dense(c, name="mlp2", **kind)(nn.gelu(y, approximate=False))
        return checkpoint_name(x + drop(y), "block")


def _rank(channels: int) -> int:
    return -(-channels // 16)


def _uniform(bound: float):
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _steps(key, shape, dtype) -> Array:
    """What softplus turns into steps between 0.001 and 0.1, uniform in their logarithm."""
    steps = jnp.exp(jax.random.uniform(key, shape, minval=math.log(0.001), maxval=math.log(0.1)))
    return (steps + jnp.log(-jnp.expm1(-steps))).astype(dtype)


def _log_of_numbers(key, shape, dtype) -> Array:
    """log(1), ..., log(n) in every channel (c, n)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1.0, shape[1] + 1)), shape).astype(dtype)


def _log_up_to_16(key, shape, dtype) -> Array:
    return jnp.log(jax.random.uniform(key, shape, minval=1.0, maxval=16.0)).astype(dtype)
