"""Attention on NVIDIA's GPUs, by cuDNN through `jax.nn`.

Lowered for CUDA in tests; compiled and run it can be on a GPU only.
"""

import jax
import jax.numpy as jnp

from biojax.errors import UnsupportedError
from biojax.kernels.attention.checks import seeing_queries, seen_keys
from biojax.kernels.attention.scores import Options
from biojax.kernels.dispatch import platform
from biojax.typing import Array

__all__ = ["attention"]


def attention(
    query, key, value, bias, mask, query_lengths, key_lengths, dropout_key, options
) -> Array:
    """The arrays of `Inputs`, then `Options`; to y (b, t, n, v).

    Heads are padded to a multiple of 8 numbers, tokens to an even number. cuDNN's log-sum-exp,
    rounded to 16 bits and without a gradient, is left out.

    Raises:
      UnsupportedError: here is no cuDNN, or it cannot do it.
    """
    _check(query, bias, mask, dropout_key, options)
    (b, s), t, v = key.shape[:2], query.shape[1], value.shape[-1]
    size = -(-max(query.shape[-1], v) // 8) * 8
    key_lengths = jnp.full(b, s) if s % 2 and key_lengths is None else key_lengths
    try:
        y = jax.nn.dot_product_attention(
            *(_padded(x, size) for x in (query, key, value)),
            query_seq_lengths=_whole(query_lengths),
            key_value_seq_lengths=_whole(key_lengths),
            scale=options.scale,
            is_causal=options.is_causal,
            implementation="cudnn",
        )
    except (NotImplementedError, RuntimeError) as error:
        raise _unsupported(f"where '{error}'", "what cuDNN can do here") from error
    y = y[:, :t, :, :v]
    seen = seen_keys("attention", None, key_lengths, (b, s))
    sees = seeing_queries(seen, query_lengths, t, options.is_causal)
    return y if sees is None else jnp.where(sees[..., None, None], y, 0)


def _padded(x: Array, size: int) -> Array:
    """With an even number of tokens, as JAX asks for where gradients are, in heads of that size."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, size - x.shape[3])))


def _whole(lengths: Array | None) -> Array | None:
    return None if lengths is None else jnp.asarray(lengths, jnp.int32)


def _check(query, bias, mask, dropout_key, options: Options) -> None:
    for refused, what, expected in (
        (platform() != "gpu", f"on {platform()}", "an NVIDIA GPU"),
        (query.dtype.itemsize != 2, f"for {query.dtype}", "bfloat16 or float16"),
        (bias is not None, "with a bias", "none, since it would be rounded to 16 bits"),
        (mask is not None, "with a mask", "lengths, or is_causal"),
        (options.soft_cap is not None, f"with soft_cap={options.soft_cap}", "none"),
        (dropout_key is not None, "with dropout", "none"),
    ):
        if refused:
            raise _unsupported(what, expected)


def _unsupported(what: str, expected: str) -> UnsupportedError:
    return UnsupportedError(
        "attention",
        f"implementation='cudnn' {what}",
        expected,
        "Name another implementation, or None to choose",
    )
