"""Each kernel against the plain way in JAX and against PyTorch."""

import functools
from collections.abc import Callable

import jax

from benchmarks.contest import Contender, Contest, jax_contender
from benchmarks.plain_kernels import ASSOCIATIVE, PLAIN
from benchmarks.torch_kernels import torch_kernels
from biojax.bench.kernels import call, make_inputs
from biojax.kernels.specs import LARGE, Spec

__all__ = ["kernel_contests"]


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
    more = {}
    if kernel in ASSOCIATIVE:
        more["xla associative"] = jax_contender(mode, ASSOCIATIVE[kernel], arrays)
    return {
        "biojax": jax_contender(mode, ours, arrays),
        "xla": jax_contender(mode, plain, arrays),
        **more,
        **torch_kernels(kernel, spec, mode, arrays, jax.eval_shape(ours, *arrays)),
    }


def _first_of(function: Callable) -> Callable:
    return lambda *arrays: function(*arrays)[0]
