"""Every implementation of every kernel against its reference, forward and VJP, over the specs.

The reference runs in float64. The public function is called with the reference put in the place
of the implementation, so that both see the same arguments.
"""

import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import UnsupportedError
from biojax.kernels.attention import reference as attention_reference
from biojax.kernels.conv import reference as conv_reference
from biojax.kernels.norm import reference as norm_reference
from biojax.kernels.pool import reference as pool_reference
from biojax.kernels.resize import reference as resize_reference
from biojax.kernels.scan import reference as scan_reference
from biojax.kernels.scan import reference_selective as selective_reference
from biojax.kernels.specs import SPECS, Spec

REFERENCES = {
    "conv": conv_reference,
    "conv_transpose": conv_reference,
    "max_pool": pool_reference,
    "avg_pool": pool_reference,
    "resize": resize_reference,
    "instance_norm": norm_reference,
    "group_norm": norm_reference,
    "layer_norm": norm_reference,
    "batch_norm": norm_reference,
    "linear_scan": scan_reference,
    "selective_scan": selective_reference,
    "rnn": scan_reference,
    "lstm": scan_reference,
    "gru": scan_reference,
    "attention": attention_reference,
}
IMPLEMENTATIONS = {
    "conv": ["xla", "planes", "winograd", "patches", "depthwise", "grouped", "pointwise", "fft"],
    "conv_transpose": ["xla", "phases", "matmul"],
    "max_pool": ["xla", "tiles", "separable"],
    "avg_pool": ["xla", "tiles", "separable"],
    "resize": ["gather", "matmul"],
    "instance_norm": ["fused"],
    "group_norm": ["fused"],
    "layer_norm": ["fused"],
    "batch_norm": ["fused"],
    "linear_scan": ["sequential", "associative"],
    "selective_scan": ["sequential", "associative"],
    "rnn": ["sequential"],
    "lstm": ["sequential"],
    "gru": ["sequential"],
    "attention": ["xla"],
}
CASES = [
    pytest.param(kernel, name, spec, dtype, id=f"{kernel}-{name}-{spec.name}-{dtype}")
    for kernel, names in IMPLEMENTATIONS.items()
    for name in names
    for i, spec in enumerate(SPECS[kernel])
    for dtype in ("float32", "bfloat16")
    if dtype == "float32" or i % 3 == 0 or "pointwise" in spec.name
]


def arrays(spec: Spec, kernel: str) -> list[np.ndarray]:
    rng = np.random.default_rng(len(spec.name))
    values = [rng.standard_normal(shape) for shape in spec.shapes]
    if kernel == "linear_scan":
        values[0] = rng.uniform(0.1, 1.0, spec.shapes[0])
    if kernel == "selective_scan":  # step sizes, and rates
        values[1], values[2] = np.abs(values[1]), -np.abs(values[2])
    if kernel in ("rnn", "lstm", "gru"):
        values[1:4] = [v / 2 for v in values[1:4]]
    # Rounded to bfloat16, so that every dtype starts from the same numbers.
    return [np.asarray(jnp.asarray(v, jnp.bfloat16), np.float64) for v in values]


def run(kernel: str, spec: Spec, values, implementation: str | None, compiler_options=None):
    """Outputs and gradients for a fixed random cotangent."""

    def scalar(values):
        options = dict(spec.options)
        given = [options.pop(name) for name in ("window", "size") if name in options]
        out = getattr(kernels, kernel)(*values, *given, **options, implementation=implementation)
        leaves = jax.tree.leaves(out)
        rng = np.random.default_rng(0)
        total = sum(
            jnp.sum(
                leaf.astype(values[0].dtype) * rng.standard_normal(leaf.shape).astype(leaf.dtype)
            )
            for leaf in leaves
        )
        return total, leaves

    step = jax.jit(jax.value_and_grad(scalar, has_aux=True), compiler_options=compiler_options)
    (_, outputs), gradients = step(values)
    return [*outputs, *gradients]


_expected: dict[tuple[str, str], list[np.ndarray]] = {}


def expected(kernel: str, spec: Spec, compiler_options: dict) -> list[np.ndarray]:
    """The float64 reference, computed once for each spec."""
    if (kernel, spec.name) not in _expected:
        name = "normalise" if kernel.endswith("_norm") else kernel
        reference = getattr(REFERENCES[kernel], name)
        module = getattr(kernels, kernel).__module__
        with jax.enable_x64(), mock.patch(f"{module}.select", return_value=reference):
            values = [jnp.asarray(v, jnp.float64) for v in arrays(spec, kernel)]
            out = run(kernel, spec, values, None, compiler_options)
            _expected[kernel, spec.name] = [np.asarray(v) for v in out]
    return _expected[kernel, spec.name]


def reduction_length(spec: Spec) -> int:
    """No sum here is longer than this, forward or backward."""
    return max(math.prod(shape) for shape in spec.shapes)


def refuses(kernel: str, name: str, spec: Spec) -> bool:
    """What an implementation says it cannot do; everything else it must."""
    first, *others = spec.shapes
    taps = list(others[0][:-2]) if others else []
    groups = spec.options.get("feature_group_count", 1)
    depthwise = groups == first[-1]
    if name == "tiles":
        return spec.name not in ("1d", "3d_tiles")
    if (kernel, name) == ("conv_transpose", "matmul"):
        return "kernel_is_stride" not in spec.name and spec.name != "3d_flat"
    return {
        "planes": groups > 1,
        "patches": groups > 1,
        "winograd": groups > 1
        or taps[:1] not in ([3], [5], [7])
        or np.ravel(spec.options.get("strides", 1))[0] > 1
        or np.ravel(spec.options.get("kernel_dilation", 1))[0] > 1,
        "depthwise": not (groups > 1 and depthwise),
        "pointwise": groups > 1 or max(taps, default=0) > 1,
    }.get(name, False)


@pytest.mark.parametrize(("kernel", "name", "spec", "dtype"), CASES)
def test_matches_reference(kernel, name, spec, dtype, quickly):
    """Nearly all of the time is compilation.

    Our float32 programs are compiled as anyone would; the references, long and unrolled, XLA's own
    kernels, and the bfloat16 programs, which check our dtypes and sums and not the compiler,
    quickly.
    """
    values = [jnp.asarray(v, dtype) for v in arrays(spec, kernel)]
    if refuses(kernel, name, spec):
        with pytest.raises(UnsupportedError, match=f"implementation='{name}'"):
            run(kernel, spec, values, name)
        return
    ours = dtype == "float32" and name != "xla"
    results = run(kernel, spec, values, name, None if ours else quickly)
    tolerance = 4 * float(jnp.finfo(dtype).eps) * math.sqrt(reduction_length(spec))
    for i, (got, want) in enumerate(zip(results, expected(kernel, spec, quickly), strict=True)):
        is_wide = i in {"batch_norm": (1, 2), "selective_scan": (1,)}.get(kernel, ())
        assert got.dtype == ("float32" if is_wide else dtype)
        assert got.shape == want.shape
        scale = max(1.0, float(np.abs(want).max()))
        error = float(np.abs(np.asarray(got, np.float64) - want).max()) / scale
        assert error <= tolerance, f"{kernel} {name} {spec}: {error:.2e} > {tolerance:.2e}"
