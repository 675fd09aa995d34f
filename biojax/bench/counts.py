"""How much work a call is: operations of the direct algorithm, and bytes in and out.

Operations are those of the definition in a kernel's docstring, a product and a sum counting two,
whatever the implementation does: an algorithm that needs fewer shows more than the direct one's
FLOP/s, and may exceed the machine's. (XLA's own `cost_analysis` counts what an implementation
happens to compute.) Taps that fall on padding count, and so do masked pairs of attention;
activations, biases and normalisation within a model do not. Bytes are inputs and outputs, once
each.

| mode | what runs | operations | bytes |
| --- | --- | --- | --- |
| forward | the outputs | 1 | inputs + outputs |
| vjp | the pullback: stored residuals and cotangents to gradients | 2 | 2 inputs + outputs |
| both | outputs and gradients in one program | 3 | 2 inputs + 2 outputs |
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from biojax.kernels import Choice, explain
from biojax.kernels.axes import per_axis
from biojax.kernels.specs import Spec
from biojax.modules import Conv, ConvTranspose

__all__ = ["MODES", "count_bytes", "count_flops", "count_model", "count_voxels"]

MODES = {"forward": 1, "vjp": 2, "both": 3}
Shapes = Sequence[tuple[int, ...]]


def count_flops(kernel: str, spec: Spec, out: tuple[int, ...]) -> int:
    """Operations of the forward pass.

    Args:
      kernel: its name in `biojax.kernels`.
      spec: the call.
      out: the shape of the first output.

    >>> count_flops("conv", Spec("", ((1, 8, 2), (3, 2, 4))), (1, 8, 4))
    384
    """
    return _FLOPS[kernel](spec.shapes, out, spec.options)


def count_bytes(mode: str, inputs: Any, outputs: Any) -> int:
    """Bytes that must be read and written at the least, see above.

    Args:
      mode: "forward", "vjp" or "both".
      inputs: arrays, or their `jax.ShapeDtypeStruct`s.
      outputs: likewise.
    """
    read, written = _size(inputs), _size(outputs)
    return {"forward": read + written, "vjp": 2 * read + written}.get(mode, 2 * (read + written))


def count_voxels(kernel: str, spec: Spec) -> int:
    """Positions in the input: batch times voxels, or batch times steps."""
    data = spec.shapes[1] if kernel == "linear_scan" else spec.shapes[0]
    if kernel in ("ssd", "mlstm", "slstm"):
        return math.prod(data[:2])
    return math.prod(data[:-2] if kernel.endswith("attention") else data[:-1])


def count_model(model: nn.Module, variables: Any, x: Any) -> tuple[list[Choice], int | None]:
    """What a model's kernels would choose, and the operations of its forward pass.

    The operations are those of convolutions and dense layers, found without computing anything;
    None for a model that has kernels of another kind, or convolutions outside of modules.
    """
    counts: list[int] = []
    convolutions = 0

    def count(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        nonlocal convolutions
        y = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and isinstance(
            module, Conv | ConvTranspose | nn.Dense
        ):
            kernel = module.variables["params"]["kernel"].shape
            # Each output of a convolution sums over the kernel; each input of a transposed one is
            # spread over it.
            points = args[0].shape if isinstance(module, ConvTranspose) else y.shape
            counts.append(2 * math.prod(points[:-1]) * math.prod(kernel))
            convolutions += not isinstance(module, nn.Dense)
        return y

    with nn.intercept_methods(count):
        choices = explain(model.apply, variables, x)
    kinds = [choice.kernel for choice in choices]
    free = {"max_pool", "avg_pool", "instance_norm", "group_norm", "layer_norm", "batch_norm"}
    known = set(kinds) <= {"conv", "conv_transpose", *free}
    inside = sum(kind.startswith("conv") for kind in kinds) == convolutions
    return choices, sum(counts) if known and inside else None


def _conv(shapes: Shapes, out: tuple[int, ...], _: Mapping[str, Any]) -> int:
    return 2 * math.prod(out[:-1]) * math.prod(shapes[1])


def _conv_transpose(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    return 2 * math.prod(shapes[0][:-1]) * math.prod(shapes[1])


def _pool(shapes: Shapes, out: tuple[int, ...], options: Mapping[str, Any]) -> int:
    window = per_axis("pool", "window", options["window"], len(shapes[0]) - 2)
    return math.prod(out) * math.prod(window)


def _resize(shapes: Shapes, out: tuple[int, ...], options: Mapping[str, Any]) -> int:
    """Every output from the corners of the box around it; the nearest pixel alone costs a copy."""
    corners = 1 if options.get("method") == "nearest" else 2 ** (len(shapes[0]) - 2)
    return 2 * corners * math.prod(out)


def _norm(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    """The mean, the squares of what is left, their mean, a product and a sum."""
    return 6 * math.prod(shapes[0])


def _linear_scan(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    return 2 * math.prod(shapes[1])


def _selective_scan(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    """Of each state: a product and its exponential, three to move it on, two to read it."""
    return 7 * math.prod(shapes[0]) * shapes[2][1]


def _cell(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    x, w_x, w_h = shapes[:3]
    return 2 * math.prod(x[:-1]) * (math.prod(w_x) + math.prod(w_h))


def _ssd(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    """Of each state: a product of what enters, two to move it on, two to read it."""
    return 5 * math.prod(shapes[0]) * shapes[3][-1]


def _rg_lru(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    """The gain and the gate of what enters, two to move the state on."""
    return 4 * math.prod(shapes[0])


def _mlstm(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    """As `_ssd`, of the matrices alone."""
    return 5 * math.prod(shapes[0]) * shapes[2][-1]


def _slstm(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    gates, w_h = shapes
    return 2 * math.prod(gates[:2]) * math.prod(w_h)


def _attention(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    query, key, value = shapes[:3]
    pairs = math.prod(query[:3]) * key[1]
    return 2 * pairs * (query[-1] + value[-1])


def _axial_attention(shapes: Shapes, _: tuple[int, ...], options: Mapping[str, Any]) -> int:
    query, key, value = shapes[:3]
    return 2 * math.prod(query[:-1]) * key[options["axis"]] * (query[-1] + value[-1])


def _linear_attention(shapes: Shapes, _: tuple[int, ...], __: Mapping[str, Any]) -> int:
    """Sums of products of keys and values, and products of queries and these."""
    query, key, value = shapes
    return 2 * (math.prod(key) + math.prod(query)) * value[-1]


def _neighborhood_attention(shapes: Shapes, _: tuple[int, ...], options: Mapping[str, Any]) -> int:
    query, _, value = shapes
    sizes = per_axis("attention", "kernel_size", options["kernel_size"], len(query) - 3)
    return 2 * math.prod(query[:-1]) * math.prod(sizes) * (query[-1] + value[-1])


def _window_attention(shapes: Shapes, _: tuple[int, ...], options: Mapping[str, Any]) -> int:
    sizes = {"kernel_size": options["window_size"]}
    return _neighborhood_attention(shapes[:3], (), sizes)


_FLOPS: Mapping[str, Callable[[Shapes, tuple[int, ...], Mapping[str, Any]], int]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _pool,
    "avg_pool": _pool,
    "resize": _resize,
    "instance_norm": _norm,
    "group_norm": _norm,
    "layer_norm": _norm,
    "batch_norm": _norm,
    "linear_scan": _linear_scan,
    "selective_scan": _selective_scan,
    "rnn": _cell,
    "lstm": _cell,
    "gru": _cell,
    "ssd": _ssd,
    "rg_lru": _rg_lru,
    "mlstm": _mlstm,
    "slstm": _slstm,
    "conv_lstm": _cell,
    "conv_gru": _cell,
    "attention": _attention,
    "axial_attention": _axial_attention,
    "linear_attention": _linear_attention,
    "neighborhood_attention": _neighborhood_attention,
    "window_attention": _window_attention,
}


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
