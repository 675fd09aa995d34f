"""Choosing an implementation, saying why, and never falling back in silence."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from biojax import kernels
from biojax.errors import ConfigError, ShapeError, UnsupportedError
from biojax.kernels import (
    Choice,
    attention,
    conv,
    conv_transpose,
    explain,
    linear_scan,
    max_pool,
    mlstm,
    rg_lru,
    slstm,
    ssd,
)
from biojax.kernels.dispatch import accumulator, platform
from biojax.models import create_model


def shaped(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


X3, W3 = shaped(1, 4, 5, 6, 2), shaped(3, 3, 3, 2, 4)
IN_CHUNKS = "matrix products, by far the faster with gradients"
CALLS = {
    "conv": (X3, W3),
    "conv_transpose": (X3, W3),
    "max_pool": (X3, 2),
    "avg_pool": (X3, 2),
    "linear_scan": (shaped(3), shaped(2, 5, 3)),
    "rnn": (shaped(2, 5, 3), shaped(3, 4), shaped(4, 4), shaped(4)),
    "lstm": (shaped(2, 5, 3), shaped(3, 16), shaped(4, 16), shaped(16)),
    "gru": (shaped(2, 5, 3), shaped(3, 12), shaped(4, 12), shaped(12)),
    "selective_scan": (*(shaped(2, 5, 3),) * 2, shaped(3, 4), *(shaped(2, 5, 4),) * 2),
    "ssd": (shaped(2, 5, 4, 3), shaped(2, 5, 4), shaped(4), *(shaped(2, 5, 2, 6),) * 2),
    "mlstm": (*(shaped(2, 5, 3, 4),) * 3, *(shaped(2, 5, 3),) * 2),
    "slstm": (shaped(2, 5, 3, 4, 6), shaped(3, 6, 4, 6)),
    "conv_lstm": (shaped(2, 5, 9, 3), shaped(3, 3, 16), shaped(3, 4, 16), shaped(16)),
    "conv_gru": (shaped(2, 5, 9, 3), shaped(3, 3, 12), shaped(3, 4, 12), shaped(12)),
    "attention": (shaped(1, 4, 2, 8),) * 3,
}


def test_explain_says_what_and_why():
    (choice,) = explain(conv, X3, W3)
    assert choice == Choice("conv", "planes", "XLA's 2-D convolution, by blocks, on CPU")
    assert str(choice).startswith("conv: planes (XLA's 2-D convolution")


@pytest.mark.parametrize(
    ("function", "args", "options", "implementation", "reason"),
    [
        (conv, (shaped(1, 4, 5, 2), shaped(3, 3, 2, 4)), {}, "xla", "2-D and small, on CPU"),
        (
            conv,
            (X3, shaped(3, 3, 3, 1, 4)),
            {"feature_group_count": 2},
            "grouped",
            "groups merged to fill vectors, on CPU",
        ),
        (
            conv,
            (shaped(2, 4, 4, 4, 64), shaped(3, 3, 3, 64, 128)),
            {},
            "patches",
            "few pixels and many channels: one product, on CPU",
        ),
        (
            conv,
            (shaped(1, 64, 64, 64, 1), shaped(16, 16, 16, 1, 192)),
            {"strides": 16},
            "planes",
            "XLA's 2-D convolution, by blocks, on CPU",
        ),
        (
            conv,
            (shaped(1, 8, 8, 8, 64), shaped(3, 3, 3, 64, 64)),
            {},
            "winograd",
            "short kernel without stride along the first axis, on CPU",
        ),
        (
            conv,
            (shaped(1, 8, 8, 8, 640), shaped(3, 3, 3, 640, 320)),
            {},
            "planes",
            "XLA's 2-D convolution, by blocks, on CPU",
        ),
        (
            conv,
            (shaped(1, 128, 128, 64), shaped(3, 3, 64, 64)),
            {},
            "planes",
            "one plane of few channels: XLA's 2-D convolution, on CPU",
        ),
        (conv, (X3, W3), {"implementation": "xla"}, "xla", "named by the caller"),
        (
            conv_transpose,
            (X3, shaped(2, 2, 2, 2, 4)),
            {"strides": 2},
            "matmul",
            "kernel equal to strides: no two outputs overlap",
        ),
        (
            conv_transpose,
            (X3, W3),
            {"strides": 2},
            "phases",
            "no product with the zeros between, on CPU",
        ),
        (
            conv_transpose,
            (shaped(1, 128, 128, 60, 8), shaped(2, 2, 2, 8, 8)),
            {"strides": 2},
            "phases",
            "no product with the zeros between, on CPU",
        ),
        (
            linear_scan,
            (shaped(3), shaped(2, 5, 3)),
            {},
            "sequential",
            "on CPU one pass over memory is the least work",
        ),
        (ssd, CALLS["ssd"], {}, "chunked", IN_CHUNKS),
        (mlstm, CALLS["mlstm"], {"reverse": True}, "chunked", IN_CHUNKS),
        (slstm, CALLS["slstm"], {}, "sequential", "the only one"),
        (attention, (shaped(1, 256, 2, 8),) * 3, {}, "xla", "256 x 256 scores of a head, on CPU"),
        (
            attention,
            (shaped(1, 257, 2, 8), *(shaped(1, 256, 2, 8),) * 2),
            {"is_causal": True},
            "blocked",
            "257 x 256 scores of a head, on CPU",
        ),
        (
            conv,
            (X3, shaped(11, 11, 11, 2, 4)),
            {},
            "fft",
            "hundreds of taps, on CPU",
        ),
        (
            max_pool,
            (X3, 2),
            {"strides": (1, 2, 2)},
            "separable",
            "one axis at a time, on CPU",
        ),
    ],
)
def test_the_rule_of_each_kernel(function, args, options, implementation, reason):
    expected = Choice(function.__name__, implementation, reason)
    assert explain(function, *args, **options) == [expected]


@pytest.mark.parametrize(
    ("function", "args", "implementation", "reason"),
    [
        (conv, (X3, W3), "xla", "the platform's own convolution on tpu"),
        (linear_scan, (shaped(3), shaped(2, 5, 3)), "associative", "log(t) parallel steps on tpu"),
    ],
)
def test_the_rule_on_an_accelerator(function, args, implementation, reason):
    with mock.patch("jax.default_backend", return_value="tpu"):
        (choice,) = explain(function, *args)
    assert choice == Choice(function.__name__, implementation, reason)


@pytest.mark.parametrize("kernel", ["conv_lstm", "conv_gru"])
def test_a_kernel_tells_of_those_in_it(kernel):
    outer, of_inputs, of_state = explain(getattr(kernels, kernel), *CALLS[kernel])
    assert outer == Choice(kernel, "sequential", "the only one")
    assert of_inputs.kernel == of_state.kernel == "conv"


def test_a_kernel_made_of_another_one_tells_of_that():
    (choice,) = explain(rg_lru, *(shaped(2, 5, 3),) * 3, shaped(3))
    assert (choice.kernel, choice.implementation) == ("linear_scan", "sequential")


def test_explain_computes_nothing():
    terabytes = shaped(64, 1024, 1024, 1024, 64)
    assert explain(conv, terabytes, shaped(3, 3, 3, 64, 64))[0].implementation == "winograd"


def test_explain_a_model_in_the_order_traced():
    model = create_model("unet", out_channels=2, features=(2, 4))
    x = shaped(1, 4, 4, 4, 1)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    choices = explain(model.apply, variables, x, train=False)
    choices = [c for c in choices if c.kernel.startswith("conv")]
    encoder, decoder, head = 4 * ["planes"], 2 * ["planes"], ["pointwise"]
    assert [c.implementation for c in choices] == [*encoder, "matmul", *decoder, *head]
    assert [c.kernel for c in choices] == 4 * ["conv"] + ["conv_transpose"] + 3 * ["conv"]


def test_explain_a_function_that_was_jitted_and_run_before():
    @jax.jit
    def run(x, w):
        return jax.checkpoint(conv)(x, w)

    x, w = jnp.ones((1, 3, 1)), jnp.ones((3, 1, 1))
    run(x, w)
    assert explain(run, x, w) == [Choice("conv", "xla", "1-D")]
    assert explain(run, x, w) == explain(run, x, w)


def test_explain_records_nothing_outside_of_itself():
    with pytest.raises(ShapeError):
        explain(conv, X3, shaped(3, 3, 3, 5, 4))
    outer: list[Choice] = []

    def nested(x, w):
        outer.extend(explain(conv, shaped(*x.shape), shaped(*w.shape)))
        return conv(x, w, implementation="xla")

    assert [c.implementation for c in explain(nested, X3, W3)] == ["xla"]
    assert [c.implementation for c in outer] == ["planes"]


@pytest.mark.parametrize("kernel", CALLS)
def test_unknown_implementation(kernel):
    with pytest.raises(ConfigError, match=f"^{kernel}: got implementation='cuda'. Expected one"):
        explain(getattr(kernels, kernel), *CALLS[kernel], implementation="cuda")


@pytest.mark.parametrize(
    ("kernel", "wrong", "right"),
    [
        ("conv", "plane", "planes"),
        ("conv_transpose", "matmull", "matmul"),
        ("linear_scan", "associativ", "associative"),
        ("gru", "sequental", "sequential"),
        ("ssd", "chunk", "chunked"),
        ("mlstm", "paralel", "parallel"),
    ],
)
def test_the_nearest_implementation(kernel, wrong, right):
    with pytest.raises(ConfigError, match=f"Did you mean '{right}'") as caught:
        explain(getattr(kernels, kernel), *CALLS[kernel], implementation=wrong)
    assert f"'{right}'" in caught.value.expected
    assert caught.value.expected.endswith("or None to choose")


@pytest.mark.parametrize(
    ("function", "w", "options", "reason"),
    [
        (conv, (2, 3, 2, 4), {"implementation": "winograd"}, r"'winograd' for kernel \(2, 3\)"),
        (conv, (3, 3, 2, 4), {"implementation": "depthwise"}, "in 1 groups"),
        (conv, (1, 3, 2, 4), {"implementation": "pointwise"}, "one tap"),
        (
            conv,
            (3, 3, 3, 1, 4),
            {"implementation": "planes", "feature_group_count": 2},
            "'planes' for 2 groups",
        ),
        (conv_transpose, (3, 3, 3, 2, 4), {"strides": 2}, r"kernel \(3, 3, 3\), strides"),
        (conv_transpose, (2, 2, 2, 2, 4), {"strides": 2, "kernel_dilation": 2}, r"dilation \(2"),
        (conv_transpose, (2, 2, 2, 2, 4), {"strides": 2, "padding": 0}, "padding 'SAME' or"),
    ],
)
def test_a_named_implementation_never_falls_back(function, w, options, reason):
    options = {"implementation": "matmul", **options}
    x = jnp.ones((1, *[4] * (len(w) - 2), 2))
    with pytest.raises(UnsupportedError, match=reason) as caught:
        function(x, jnp.ones(w), **options)
    assert "Use implementation='xla', or None to choose" in str(caught.value)
    assert isinstance(caught.value, NotImplementedError)


def test_platform():
    assert platform() == "cpu"
    with jax.default_device(jax.devices()[1]):
        assert platform() == "cpu"
    with mock.patch("jax.default_backend", return_value="tpu"):
        assert platform() == "tpu"
        with jax.default_device("cpu"):
            assert platform() == "cpu"
    for name in ("cuda", "rocm", "gpu"):
        with mock.patch("jax.default_backend", return_value=name):
            assert platform() == "gpu"


def test_accumulator_is_at_least_float32():
    for narrow in (jnp.bfloat16, jnp.float16, jnp.float32):
        assert accumulator(narrow) == jnp.float32
    assert accumulator(jnp.complex64) == jnp.complex64
    assert accumulator(jnp.float64) == jnp.float64
