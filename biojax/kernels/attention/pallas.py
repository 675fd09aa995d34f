"""Attention on TPU, by the splash kernel that JAX maintains.

It takes whole blocks of tokens, heads first, and knows of hidden keys by segments: queries see
keys of their own segment only. Here tokens are padded to blocks, what is padded or hidden is made
a segment of its own, and what queries get that see nothing is made right.

Source: Dao et al., "FlashAttention", NeurIPS 2022, section 3.1; the kernel is that of
`jax.experimental.pallas.ops.tpu.splash_attention`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from biojax.errors import UnsupportedError
from biojax.kernels.attention.checks import seeing_queries, seen_keys
from biojax.kernels.attention.scores import Options
from biojax.kernels.dispatch import platform
from biojax.typing import Array

__all__ = ["attention"]

# Tokens of a block, largest first: of queries and of keys, forward and back. Untimed.
BLOCKS = 512, 384, 256, 128


def attention(
    query, key, value, bias, mask, query_lengths, key_lengths, dropout_key, options
) -> Array:
    """The arrays of `Inputs`, then `Options`; to y (b, t, n, v).

    The scale is multiplied into the queries. The kernel's log-sum-exp, which has no gradient, is
    left out. Compilers do not split the kernel over devices: call it inside of
    `jax.shard_map(..., check_vma=False)`.

    Raises:
      UnsupportedError: here is no TPU, or the kernel cannot do it.
    """
    _check(query, bias, mask, dropout_key, options)
    t = query.shape[1]
    if options.is_causal:  # no query sees the keys after the last one
        key, value = key[:, :t], value[:, :t]
        mask = mask if mask is None or mask.ndim == 0 else mask[..., :t]
    seen = seen_keys("attention", mask, key_lengths, key.shape[:2])
    rows, columns = _padding(t), _padding(key.shape[1])
    scaled = (options.scale * query.astype(jnp.float32)).astype(query.dtype)
    arrays = _blocks(scaled, rows), _blocks(key, columns), _blocks(value, columns)
    y = _splash(*arrays, _segments(seen, key, columns), options).swapaxes(1, 2)[:, :t]
    sees = seeing_queries(seen, query_lengths, t, options.is_causal)
    return y if sees is None else jnp.where(sees[..., None, None], y, 0)


def _padding(tokens: int) -> int:
    """The fewest tokens that make blocks whole."""
    return min(-tokens % block for block in BLOCKS)


def _blocks(x: Array, padding: int) -> Array:
    """(b, t, n, k) to (b, n, t + padding, k)."""
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)


def _segments(seen: Array | None, key: Array, padding: int) -> Array | None:
    """1 for keys that queries see and 0 for others, (b, s + padding); None if all are seen."""
    if seen is None and not padding:
        return None
    seen = jnp.ones(key.shape[:2], bool) if seen is None else seen
    return jnp.pad(seen, ((0, 0), (0, padding))).astype(jnp.int32)


def _splash(q: Array, k: Array, v: Array, segments: Array | None, options: Options) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import

    run = _kernel(q.shape[1], q.shape[2], k.shape[2], options.is_causal, options.soft_cap)
    if segments is None:
        return jax.vmap(run)(q, k, v)
    ones = jnp.ones(q.shape[2], jnp.int32)
    return jax.vmap(lambda q, k, v, ids: run(q, k, v, splash.SegmentIds(ones, ids)))(
        q, k, v, segments
    )


@functools.lru_cache(maxsize=64)  # a new kernel would be compiled anew
def _kernel(n: int, t: int, s: int, is_causal: bool, soft_cap: float | None) -> Any:
    """For whole blocks of t queries and of s keys, in n heads."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    rows, columns = (next(block for block in BLOCKS if x % block == 0) for x in (t, s))
    mask = (splash.CausalMask if is_causal else splash.FullMask)((t, s))
    with jax.ensure_compile_time_eval():  # its tables belong to no trace
        return splash.make_splash_mha_single_device(
            splash.MultiHeadMask([mask] * n),
            block_sizes=splash.BlockSizes(
                block_q=rows,
                block_kv=columns,
                block_q_dkv=rows,
                block_kv_dkv=columns,
                block_q_dq=rows,
                block_kv_dq=columns,
            ),
            attn_logits_soft_cap=soft_cap,
        )


def _check(query, bias, mask, dropout_key, options: Options) -> None:
    shape = () if mask is None else mask.shape
    varies = any(n > 1 for n in shape[-3:-1])
    precision = options.precision
    for refused, what, expected in (
        (platform() != "tpu", f"on {platform()}", "a TPU"),
        (query.dtype not in (jnp.float32, jnp.bfloat16), f"for {query.dtype}", "float32, bfloat16"),
        (bias is not None, "with a bias", "none"),
        (varies, f"with a mask of shape {shape}", "one of keys, (b, 1, 1, s)"),
        (dropout_key is not None, "with dropout", "none"),
        (precision is not None, f"at precision={precision!r}", "the kernel's own, None"),
    ):
        if refused:
            raise UnsupportedError(
                "attention",
                f"implementation='pallas' {what}",
                expected,
                "Name another implementation, or None to choose",
            )
