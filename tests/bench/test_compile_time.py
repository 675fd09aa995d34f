"""No large convolution takes long to compile."""

import time

import jax
import jax.numpy as jnp
import pytest

from biojax.bench.case import in_mode
from biojax.bench.kernels import call
from biojax.kernels.specs import LARGE

CASES = [
    pytest.param(kernel, spec, mode, id=f"{kernel}-{spec.name}-{mode}")
    for kernel in ("conv", "conv_transpose")
    for spec in LARGE[kernel]
    for mode in ("forward", "both")
]


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "spec", "mode"), CASES)
def test_a_large_convolution_compiles_within_five_seconds(kernel, spec, mode):
    """Processor time of all threads, from tracing to the program.

    It does not grow when others use the cores, as the time on the clock does. On idle cores the
    clock shows less, since the compiler works on several functions at once: what passes here takes
    no longer than that for someone who waits.
    """
    arrays = tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(spec.dtype)) for shape in spec.shapes)
    function, arguments = in_mode(mode, call(kernel, spec), arrays)
    start = time.process_time()
    jax.jit(function).lower(*arguments).compile()
    assert time.process_time() - start <= 5.0
