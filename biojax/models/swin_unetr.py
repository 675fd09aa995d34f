"""Swin UNETR: a pyramid of attention within windows, and the decoder of UNETR.

Sources: Hatamizadeh et al., "Swin UNETR: Swin transformers for semantic segmentation of brain
tumors in MRI images", BrainLes 2021, section 2; the second version: He et al., "SwinUNETR-V2:
stronger Swin transformers with stagewise convolutions for 3D medical image segmentation", MICCAI
2023, section 2. Layers as in MONAI's `SwinUNETR`. Three-dimensional:

| features | 1 -> 14, 48 | 4 -> 3, 48 | 1 -> 21, 48 | 1 -> 21, 96 | 1 -> 21, 192 |
| --- | --- | --- | --- | --- | --- |
| swin_unetr | 62,187,296 | 62,191,941 | 62,187,639 | 248,091,255 | 991,639,671 |
| swin_unetr_v2 | 72,762,656 | 72,767,301 | 72,762,999 | 290,392,695 | 1,160,845,431 |

Instance norms have no scale and bias. Weights trained with MONAI before 1.6 want merging="repeated"
(see `biojax.modules.PatchMerging`). MONAI's `attn_drop_rate` has no counterpart, since
`biojax.kernels.window_attention` drops no weights. Matrices and kernels begin as LeCun normal; in
MONAI uniform, as PyTorch's layers do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from biojax.errors import ConfigError
from biojax.kernels import resize_relative_table
from biojax.models.checks import check_image
from biojax.models.unetr import UNETRBlock
from biojax.modules import Conv, ConvTranspose, PatchEmbed, PatchMerging, SwinBlock, make_norm
from biojax.typing import Array, Dtype, IntOrTuple, Precision

__all__ = ["SwinUNETR", "resize_windows"]


class SwinUNETR(nn.Module):
    """Stages of attention within windows go down, residual blocks up; an image to its logits.

    Patches of 2 voxels make the first stage half as large as the image; each stage ends in a step
    down by 2 that doubles the channels. Skips are layer-normed without scale and bias.

    Args:
      out_channels: classes.
      spatial_dims: 1, 2 or 3.
      features: channels of the image's own skip and of the first stage.
      num_blocks: of attention in each stage, every second one of shifted windows.
      num_heads: of attention in each stage.
      window_size: see `biojax.modules.WindowAttention`. Parameters of one size become those of
        another by `resize_windows`.
      mlp_ratio: width of a block's hidden layer over its features.
      qkv_bias: whether queries, keys and values have a bias.
      merging: the order of `biojax.modules.PatchMerging`.
      stage_convs: begin every stage with a residual block of convolutions, as the second version.
      norm: of the convolutions: "instance" (without scale and bias), "layer", "group", "batch" or
        None; see `biojax.modules.make_norm`.
      dropout_rate: of the patches and every branch of the transformer, while training.
      drop_path_rate: of the last block, see `biojax.modules.DropPath`; rises from 0 at the first.
      precision: of all products.
      implementation: see `biojax.kernels.window_attention`.
      dtype: of the computation; the sum over blocks and the logits are float32 at least.
      param_dtype: of the parameters.
    """

    out_channels: int
    spatial_dims: int = 3
    features: int = 48
    num_blocks: Sequence[int] = (2, 2, 2, 2)
    num_heads: Sequence[int] = (3, 6, 12, 24)
    window_size: IntOrTuple = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    merging: str = "axes"
    stage_convs: bool = False
    norm: str | None = "instance"
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    precision: Precision = None
    implementation: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def stride(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, along each axis."""
        return (2 ** (len(self.num_blocks) + 1),) * self.spatial_dims

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """(b, *spatial, c) to (b, *spatial, out_channels)."""
        check_image("swin_unetr", x, self.spatial_dims, self.stride)
        kind: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kind["precision"] = self.precision

        def block(x: Array, name: str) -> Array:
            return UNETRBlock(x.shape[-1], self.norm, name=name, **kind)(x, train)

        *states, deep, y = self._encode(x, train)
        first = UNETRBlock(self.features, self.norm, name="skip0", **kind)(x, train)
        skips = [first, *(block(z, f"skip{i}") for i, z in enumerate(states, start=1)), deep]
        y = block(y, "bottleneck")
        for i in reversed(range(len(skips))):
            f = skips[i].shape[-1]
            y = ConvTranspose(f, 2, strides=2, use_bias=False, name=f"up{i}", **kind)(y)
            y = jnp.concatenate([y, skips[i]], axis=-1)
            y = UNETRBlock(f, self.norm, name=f"decoder{i}_block0", **kind)(y, train)
            self.sow("intermediates", f"decoder{i}", y)
        y = Conv(self.out_channels, 1, name="head", **kind)(y)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    def _encode(self, x: Array, train: bool) -> list[Array]:
        """The patches and what every stage makes of them, normed, the smallest last."""
        if len(self.num_heads) != len(self.num_blocks):
            raise ConfigError(
                "swin_unetr",
                f"num_blocks for {len(self.num_blocks)} stages and num_heads for "
                f"{len(self.num_heads)}",
                "one number for each stage",
                "Change num_blocks or num_heads",
            )
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        grid = [n // 2 for n in x.shape[1:-1]]
        x = PatchEmbed(self.features, 2, self.precision, name="embed", **kind)(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = x.reshape(x.shape[0], *grid, -1)
        dtype, outputs = x.dtype, []

        def keep(x: Array, name: str) -> None:
            norm = make_norm("layer", affine=False, epsilon=1e-5, layer_name=f"{name}_norm", **kind)
            y = norm(x).astype(dtype)
            self.sow("intermediates", name, y)
            outputs.append(y)

        keep(x, "patches")
        rates = iter(np.linspace(0, self.drop_path_rate, sum(self.num_blocks)).tolist())
        for i, (blocks, heads) in enumerate(zip(self.num_blocks, self.num_heads, strict=True)):
            if self.stage_convs:
                f = x.shape[-1]
                name = f"stage{i}_conv"
                x = UNETRBlock(f, self.norm, self.precision, name=name, **kind)(x, train)
            # In bfloat16 the sum over blocks would forget what is less than a few thousandths.
            x = x.astype(jnp.promote_types(dtype, jnp.float32))
            for j in range(blocks):
                x = SwinBlock(
                    heads,
                    self.window_size,
                    j % 2 == 1,
                    self.mlp_ratio,
                    self.qkv_bias,
                    next(rates),
                    self.dropout_rate,
                    precision=self.precision,
                    implementation=self.implementation,
                    name=f"stage{i}_block{j}",
                    dtype=dtype,
                    param_dtype=self.param_dtype,
                )(x, train)
            x = PatchMerging(
                self.merging,
                precision=self.precision,
                name=f"merge{i}",
                dtype=dtype,
                param_dtype=self.param_dtype,
            )(x)
            keep(x, f"stage{i}")
        return outputs


def resize_windows(
    params: Mapping[str, Any], window_size: Sequence[int], to: Sequence[int]
) -> dict[str, Any]:
    """Start a model of other windows from a trained one.

    The tables of relative positions are read between their offsets, see
    `biojax.kernels.resize_relative_table`; everything else is taken as it is.

    Args:
      params: parameters, such as those of `biojax.convert.convert_state_dict` for a model whose
        `window_size` is the one that the weights were trained with.
      window_size: of each axis, of that model.
      to: of each axis, of the model asked for.

    Returns:
      Parameters of the same model with that `window_size`.

    Raises:
      ShapeError: the tables are for other windows.

    >>> params = {"block": {"attention": {"table": jnp.array([[0.0], [3.0], [6.0]])}}}
    >>> resize_windows(params, [2], [3])["block"]["attention"]["table"][:, 0]
    Array([0. , 1.2, 3. , 4.8, 6. ], dtype=float32)
    """

    def resized(path: tuple, leaf: Array) -> Array:
        if jax.tree_util.keystr(path[-2:], simple=True, separator="/") != "attention/table":
            return leaf
        return resize_relative_table(leaf, window_size, to)

    return jax.tree_util.tree_map_with_path(resized, params)
