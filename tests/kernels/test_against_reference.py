"""Every implementation of every kernel against its reference, forward and VJP, over the specs.

The reference runs in float64. The public function is called with the reference put in the place
of the implementation, so that both see the same arguments; in that of `attention`'s, where
`axial_attention` calls it for its lines. `rg_lru` has no implementations of its own, and is held
against its reference beside its other tests.
"""

import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.errors import UnsupportedError
from biojax.kernels.attention import blocked, window_blocked
from biojax.kernels.attention import reference as attention_reference
from biojax.kernels.attention import reference_linear as linear_attention_reference
from biojax.kernels.attention import reference_neighborhood as neighborhood_reference
from biojax.kernels.attention import reference_window as window_reference
from biojax.kernels.conv import reference as conv_reference
from biojax.kernels.norm import reference as norm_reference
from biojax.kernels.pool import reference as pool_reference
from biojax.kernels.resize import reference as resize_reference
from biojax.kernels.scan import reference as scan_reference
from biojax.kernels.scan import reference_convolutional as convolutional_reference
from biojax.kernels.scan import reference_selective as selective_reference
from biojax.kernels.scan import reference_ssd as ssd_reference
from biojax.kernels.scan import reference_xlstm as xlstm_reference
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
    "ssd": ssd_reference,
    "mlstm": xlstm_reference,
    "slstm": xlstm_reference,
    "conv_lstm": convolutional_reference,
    "conv_gru": convolutional_reference,
    "attention": attention_reference,
    "axial_attention": attention_reference,
    "linear_attention": linear_attention_reference,
    "window_attention": window_reference,
    "neighborhood_attention": neighborhood_reference,
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
    "linear_scan": ["sequential", "associative", "chunked"],
    "selective_scan": ["sequential", "associative"],
    "rnn": ["sequential"],
    "lstm": ["sequential"],
    "gru": ["sequential"],
    "ssd": ["chunked", "sequential"],
    "mlstm": ["chunked", "parallel", "sequential"],
    "slstm": ["sequential"],
    "conv_lstm": ["sequential"],
    "conv_gru": ["sequential"],
    "attention": ["xla", "blocked"],
    "axial_attention": ["xla", "blocked"],
    "linear_attention": ["chunked"],
    "window_attention": ["xla", "blocked"],
    "neighborhood_attention": ["xla", "blocked"],
}
# States to begin with that are named arguments. They are shaped as those that come last.
STATES = {"selective_scan": "h0", "ssd": "h0", "mlstm": "state0", "slstm": "state0"}
CASES = [
    pytest.param(kernel, name, spec, dtype, id=f"{kernel}-{name}-{spec.name}-{dtype}")
    for kernel, names in IMPLEMENTATIONS.items()
    for name in names
    for i, spec in enumerate(SPECS[kernel])
    for dtype in ("float32", "bfloat16")
    if dtype == "float32" or i % 3 == 0 or "pointwise" in spec.name or "attention" in kernel
]


def arrays(spec: Spec, kernel: str) -> list[np.ndarray]:
    """The positional arrays, and the parts of the named state."""
    rng = np.random.default_rng(len(spec.name))
    shapes = list(spec.shapes)
    if kernel in STATES:
        given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        function = functools.partial(getattr(kernels, kernel), **spec.options)
        _, last = jax.eval_shape(function, *given)
        shapes += [part.shape for part in jax.tree.leaves(last)]
    values = [rng.standard_normal(shape) for shape in shapes]
    if kernel == "linear_scan":
        values[0] = rng.uniform(0.1, 1.0, spec.shapes[0])
    if kernel in ("selective_scan", "ssd"):  # step sizes, and rates
        values[1], values[2] = np.abs(values[1]), -np.abs(values[2])
    if kernel == "slstm":  # what was taken in
        values[-2] = 1 + np.abs(values[-2])
    if kernel in ("rnn", "lstm", "gru", "conv_lstm", "conv_gru"):
        values[1:4] = [v / 2 for v in values[1:4]]
    # Rounded to bfloat16, so that every dtype starts from the same numbers.
    return [np.asarray(jnp.asarray(v, jnp.bfloat16), np.float64) for v in values]


def run(kernel: str, spec: Spec, values, implementation: str | None, compiler_options=None):
    """Outputs and gradients for a fixed random cotangent."""

    def scalar(values):
        options = dict(spec.options)
        given = [options.pop(name) for name in ("window", "size") if name in options]
        positional, state = values[: len(spec.shapes)], values[len(spec.shapes) :]
        if state:
            options[STATES[kernel]] = state[0] if len(state) == 1 else tuple(state)
        function = functools.partial(getattr(kernels, kernel), implementation=implementation)
        out = function(*positional, *given, **options)
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
        called = "attention" if kernel == "axial_attention" else kernel
        name = "normalise" if kernel.endswith("_norm") else called
        reference = getattr(REFERENCES[kernel], name)
        module = getattr(kernels, called).__module__
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
def test_matches_reference(kernel, name, spec, dtype, quickly, monkeypatch):
    """The references, long and unrolled, are compiled quickly in any case.

    Blocks of attention are so small that there are several, and the last ones not full.
    """
    monkeypatch.setattr(blocked, "QUERIES", 4)
    monkeypatch.setattr(blocked, "KEYS", 3)
    monkeypatch.setattr(window_blocked, "SCORE_BYTES", 1)
    values = [jnp.asarray(v, dtype) for v in arrays(spec, kernel)]
    if refuses(kernel, name, spec):
        with pytest.raises(UnsupportedError, match=f"implementation='{name}'"):
            run(kernel, spec, values, name)
        return
    results = run(kernel, spec, values, name)
    tolerance = 4 * float(jnp.finfo(dtype).eps) * math.sqrt(reduction_length(spec))
    # Statistics, and last states.
    has_wide = kernel in STATES or kernel == "batch_norm"
    wide = range(1, len(results) - len(values)) if has_wide else ()
    for i, (got, want) in enumerate(zip(results, expected(kernel, spec, quickly), strict=True)):
        assert got.dtype == ("float32" if i in wide else dtype)
        assert got.shape == want.shape
        scale = max(1.0, float(np.abs(want).max()))
        error = float(np.abs(np.asarray(got, np.float64) - want).max()) / scale
        assert error <= tolerance, f"{kernel} {name} {spec}: {error:.2e} > {tolerance:.2e}"
