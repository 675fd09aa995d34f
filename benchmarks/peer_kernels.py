"""Each kernel against the plain way in JAX and against PyTorch."""

import functools
import math
from collections.abc import Callable

import jax

from benchmarks.contest import Contender, Contest, jax_contender
from benchmarks.plain_kernels import ASSOCIATIVE, PLAIN
from benchmarks.torch_kernels import holds_masks, torch_kernels
from biojax.bench.kernels import call, make_inputs
from biojax.kernels.specs import LARGE, Spec

__all__ = ["kernel_contests"]

# A rival that holds the scores of all heads takes part with fewer bytes of them.
_MOST_BYTES = 2**33


def kernel_contests() -> list[Contest]:
    """Every large shape, forward, and forward with the gradients of all arrays."""
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
    ours, plain = call(kernel, spec), functools.partial(PLAIN[kernel], **spec.options)
    if kernel == "batch_norm":  # PyTorch keeps its statistics to itself, and no gradient flows back
        ours, plain = _first_of(ours), _first_of(plain)
    found = {"biojax": jax_contender(mode, ours, arrays)}
    # For gradients it holds them about four times.
    fits = _scores(kernel, spec) * (1 if mode == "forward" else 4) < _MOST_BYTES
    if fits:
        found["xla"] = jax_contender(mode, plain, arrays)
    if kernel in ASSOCIATIVE:
        found["xla associative"] = jax_contender(mode, ASSOCIATIVE[kernel], arrays)
    # PyTorch's own attention holds none, but for the gradients of neighbourhoods all masks.
    may_hold = kernel == "neighborhood_attention" and holds_masks(spec.shapes[0])
    if fits or may_hold or kernel == "attention" or mode == "forward":
        outputs = jax.eval_shape(ours, *arrays)
        found |= torch_kernels(kernel, spec, mode, arrays, outputs)
    return found


def _scores(kernel: str, spec: Spec) -> int:
    """Bytes of the scores of every query and key, in float32, where the plain way holds them."""
    by_pairs = kernel in ("attention", "neighborhood_attention")
    if not by_pairs and not (kernel == "linear_attention" and spec.options.get("is_causal")):
        return 0
    (b, *queries, n, _), (_, *keys, _, _) = spec.shapes[:2]
    return 4 * b * n * math.prod(queries) * math.prod(keys)


def _first_of(function: Callable) -> Callable:
    return lambda *arrays: function(*arrays)[0]
