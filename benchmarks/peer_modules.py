"""Attention in windows as a layer, with what cuts the image and joins it, against MONAI's."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contest import Contender, Contest, jax_contender, jax_result
from benchmarks.plain_kernels import plainly
from biojax.bench.case import normal
from biojax.errors import require
from biojax.modules import WindowAttention
from biojax.typing import Array

__all__ = ["module_contests"]


def module_contests(edge: int = 48, c: int = 48, n: int = 3, window: int = 7) -> list[Contest]:
    """Windows side by side and shifted, forward, and with gradients of image and parameters.

    Args:
      edge: of the cubic image, which both pad with zeros until windows are whole.
      c: channels.
      n: heads.
      window: edge of the windows.
    """
    return [
        Contest(
            f"window_attention_layer/{edge}_c{c}_n{n}{name}",
            mode,
            "float32",
            functools.partial(_prepare, WindowAttention(n, window, shifted, False), edge, c, mode),
        )
        for name, shifted in (("", False), ("_shifted", True))
        for mode in ("forward", "both")
    ]


def _prepare(module: WindowAttention, edge: int, c: int, mode: str) -> dict[str, Contender]:
    x = normal(0, jax.ShapeDtypeStruct((1, edge, edge, edge, c), jnp.float32))
    weights = normal(1, jax.eval_shape(module.init, jax.random.key(0), x))
    weights = jax.tree.map(lambda w: w / math.sqrt(c), weights)
    arguments = (weights, x)
    theirs = {"torch scores": _monai(module, mode, weights, x, use_flash_attention=False)}
    if mode == "forward":  # MONAI's shortcut is for inference
        theirs["torch flash"] = _monai(module, mode, weights, x, use_flash_attention=True)
    return {
        "biojax": jax_contender(mode, module.apply, arguments),
        "xla": jax_contender(mode, plainly(module.apply), arguments),
        **theirs,
    }


def _monai(module: WindowAttention, mode: str, weights: Any, x: Array, **options) -> Contender:
    """The first half of MONAI's block without its norm; what it masks is computed beforehand."""
    torch: Any = require("torch", "peers")
    swin: Any = require("monai.networks.nets.swin_unetr", "peers")
    window = (int(module.window_size),) * 3  # pyright: ignore[reportArgumentType]
    shift = tuple(w // 2 if module.shifted else 0 for w in window)
    block = swin.SwinTransformerBlock(
        x.shape[-1], module.num_heads, window, shift, qkv_bias=False, **options
    )
    block.norm1 = torch.nn.Identity()
    whole = [-(-size // w) * w for size, w in zip(x.shape[1:-1], window, strict=True)]
    mask = swin.compute_mask(whole, window, shift, "cpu") if module.shifted else None

    def tensor(array: Array) -> Any:
        return torch.tensor(jax_result(array)[0])

    ours, attention = weights["params"], block.attn
    parts = [ours[name]["kernel"].T for name in ("query", "key", "value")]
    with torch.no_grad():
        attention.qkv.weight.copy_(tensor(jnp.concatenate(parts)))
        attention.proj.weight.copy_(tensor(ours["proj"]["kernel"].T))
        attention.proj.bias.copy_(tensor(ours["proj"]["bias"]))
        attention.relative_position_bias_table.copy_(tensor(ours["table"]))
    image, cotangent = tensor(x).requires_grad_(mode == "both"), tensor(normal(1, x))
    leaves = [
        attention.qkv.weight,
        attention.proj.weight,
        attention.proj.bias,
        attention.relative_position_bias_table,
        image,
    ]

    def run() -> list[Any]:
        if mode == "forward":
            with torch.no_grad():
                return [block.forward_part1(image, mask)]
        y = block.forward_part1(image, mask)
        return [y, *torch.autograd.grad(y, leaves, cotangent)]

    def result() -> list:
        y, *gradients = (t.detach().numpy() for t in run())
        if not gradients:
            return jax_result(y)
        qkv, proj, bias, table, image = gradients
        query, key, value = ({"kernel": part.T} for part in jnp.split(qkv, 3))
        proj = {"kernel": proj.T, "bias": bias}
        params = {"query": query, "key": key, "value": value, "proj": proj, "table": table}
        return jax_result((y, ({"params": params}, image)))

    return Contender(run, result)
