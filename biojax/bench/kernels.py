"""The kernels at the shapes of `biojax.kernels.specs.LARGE`."""

import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp

from biojax import kernels
from biojax.bench.case import Case, Work, in_mode, normal, shapes_of
from biojax.bench.counts import MODES, count_bytes, count_flops, count_voxels
from biojax.kernels.specs import LARGE, Spec
from biojax.typing import Array

__all__ = ["call", "kernel_cases", "make_inputs"]


def kernel_cases(
    implementations: Iterable[str | None] = (None,),
    specs: Mapping[str, list[Spec]] = LARGE,
    suite: str = "kernels",
) -> list[Case]:
    """Every kernel at every shape, in every mode, with every implementation asked for."""
    return [
        Case(
            suite,
            kernel,
            spec.name,
            mode,
            spec.dtype,
            name,
            _preparation(kernel, spec, mode, name),
        )
        for kernel, several in specs.items()
        for spec in several
        for name in implementations
        for mode in MODES
    ]


def call(kernel: str, spec: Spec, implementation: str | None = None) -> Callable:
    """The kernel as a function of its arrays alone."""
    function = getattr(kernels, kernel)
    return lambda *arrays: function(*arrays, **spec.options, implementation=implementation)


def make_inputs(kernel: str, spec: Spec, seed: int = 0) -> tuple[Array, ...]:
    """Seeded arrays for a spec: normal, weights scaled so that outputs are of order one.

    Decays of linear recurrences lie between 0.9 and 1, as those of trained models do.
    """
    arrays = normal(seed, _structures(spec))
    if kernel == "linear_scan":
        arrays[0] = 1 - 0.1 * jax.nn.sigmoid(arrays[0])
    if kernel in ("selective_scan", "ssd"):  # step sizes of 0.001 to 0.1, as Mamba starts with
        arrays[1] = 0.001 + 0.1 * jax.nn.sigmoid(arrays[1])
        arrays[2] = -jnp.exp(arrays[2])
    if kernel == "rg_lru":
        arrays[3] = arrays[3] - 5
    if kernel.startswith("conv"):
        several = slice(1, 3 if kernel in ("conv_lstm", "conv_gru") else 2)
        arrays[several] = [w / math.sqrt(math.prod(w.shape[:-1])) for w in arrays[several]]
    if kernel in ("rnn", "lstm", "gru"):
        arrays[1:3] = [w / math.sqrt(w.shape[0]) for w in arrays[1:3]]
    if kernel == "slstm":
        arrays[1] = arrays[1] / math.sqrt(arrays[1].shape[1])
    return tuple(arrays)


def _preparation(kernel: str, spec: Spec, mode: str, implementation: str | None) -> Callable:
    def prepare() -> Work:
        function, structures = call(kernel, spec, implementation), _structures(spec)
        choices = kernels.explain(function, *structures)
        outputs = jax.eval_shape(function, *structures)
        arrays = make_inputs(kernel, spec)
        first = jax.tree.leaves(outputs)[0].shape
        return Work(
            *in_mode(mode, function, arrays),
            choices,
            shapes_of(structures),
            MODES[mode] * count_flops(kernel, spec, first),
            count_bytes(mode, structures, outputs),
            count_voxels(kernel, spec),
        )

    return prepare


def _structures(spec: Spec) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, jnp.dtype(spec.dtype)) for shape in spec.shapes]
