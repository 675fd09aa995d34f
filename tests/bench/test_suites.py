"""Choosing cases, measuring them, and what becomes of those that cannot be done."""

import dataclasses
import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax import kernels
from biojax.bench import SUITES, measure, run, select_cases, time_calls, volumes
from biojax.bench.case import Case, in_mode, normal
from biojax.bench.kernels import call, kernel_cases, make_inputs
from biojax.bench.models import _with_two_classes, model_cases
from biojax.bench.suites import _chosen
from biojax.errors import ConfigError, UnsupportedError
from biojax.kernels import Choice
from biojax.kernels.specs import LARGE, SPECS, Spec
from biojax.models import list_models

TINY = {"conv": [Spec("tiny", ((1, 4, 4, 4, 2), (3, 3, 3, 2, 3)))]}


def names(*options, **more) -> list[str]:
    return [case.name for case in select_cases(*options, **more)]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("conv_transpose*both", ["conv_transpose/3d_32_c128_to_64/both"]),
        ("lstm/t256_c128", [f"lstm/t256_c128/{mode}" for mode in ("forward", "vjp", "both")]),
        ("pool/2d*vjp", ["max_pool/2d_256_c64/vjp", "avg_pool/2d_256_c64/vjp"]),
        ("conv/2d_256_c6?/forward", ["conv/2d_256_c64/forward"]),
    ],
)
def test_filters(pattern, found):
    assert names("kernels", pattern) == found


def test_every_shape_in_every_mode():
    assert len(set(names("kernels"))) == 3 * sum(map(len, LARGE.values()))
    twice = select_cases("kernels", "rnn/t256_c128", ("sequential", "xla"))
    assert [case.requested for case in twice] == ["sequential"] * 3 + ["xla"] * 3


def test_every_model():
    assert names("models") == [
        f"{m}/small/{mode}" for m in list_models() for mode in ("forward", "both")
    ]
    assert {model.spatial_dims for model in map(_with_two_classes, list_models())} == {1, 2, 3}
    assert names("volumes", "patch") == ["unet/patch_64/forward", "unet/patch_64/train"]


@pytest.mark.parametrize(
    ("suite", "pattern", "implementations", "said"),
    [
        ("kernel", "*", (), "Did you mean 'kernels'"),
        ("kernels", "convv", (), "fits no case of 'kernels'.*Did you mean 'conv'"),
        ("models", "unett", (), "Did you mean 'unet'"),
        ("models", "*", ("xla",), "chooses its kernels' implementations itself"),
    ],
)
def test_choices_that_do_not_exist(suite, pattern, implementations, said):
    with pytest.raises(ConfigError, match=said):
        select_cases(suite, pattern, implementations)


@pytest.mark.usefixtures("quick_ceilings")
def test_a_record_says_what_ran():
    forward, vjp, both = [measure(case, budget=0.0) for case in kernel_cases(("xla",), TINY)]
    assert (forward.name, forward.requested, forward.implementation) == (
        "conv/tiny/forward",
        "xla",
        "xla",
    )
    assert forward.reason == "conv: xla (named by the caller)"
    assert forward.shapes == "1x4x4x4x2 3x3x3x2x3"
    operations = 2 * 64 * 27 * 2 * 3
    assert [r.flop_count for r in (forward, vjp, both)] == [
        operations,
        2 * operations,
        3 * operations,
    ]
    read, written = 4 * (64 * 2 + 27 * 6), 4 * 64 * 3
    assert forward.byte_count == read + written
    assert forward.peak_bytes is not None
    assert forward.peak_bytes >= read + written
    assert forward.voxel_count == 64
    assert len(forward.samples) == 5
    assert forward.copy_ceiling == 1e9
    assert f"jax {jax.__version__}" in forward.versions
    assert datetime.datetime.fromisoformat(forward.date).tzinfo is not None


@pytest.mark.usefixtures("quick_ceilings")
def test_the_library_chooses_and_says_why():
    (case, *_) = kernel_cases(specs=TINY)
    record = measure(case, budget=0.0)
    (choice,) = kernels.explain(
        call("conv", TINY["conv"][0]), *make_inputs("conv", TINY["conv"][0])
    )
    assert record.requested is None
    assert record.implementation == choice.implementation
    assert record.reason == str(choice)


@pytest.mark.usefixtures("quick_ceilings")
def test_what_cannot_be_done_is_named_once():
    matmul = Spec("fits", ((1, 4, 2), (2, 2, 3)), {"strides": 2})
    overlap = matmul._replace(name="overlaps", shapes=((1, 4, 2), (3, 2, 3)))
    cases = kernel_cases(("matmul",), {"conv_transpose": [overlap, matmul]})
    progress = []
    with pytest.warns(UserWarning, match="left out 3 of 6 cases, the first .*/overlaps/forward"):
        records = list(run(cases, budget=0.0, progress=lambda *done: progress.append(done)))
    assert [record.spec for record in records] == ["fits"] * 3
    assert progress == [(i, 6) for i in range(7)]


def test_nothing_that_can_be_done_raises():
    spec = Spec("overlaps", ((1, 4, 2), (3, 2, 3)), {"strides": 2})
    with pytest.raises(UnsupportedError, match="matmul"):
        list(run(kernel_cases(("matmul",), {"conv_transpose": [spec]})))
    with pytest.raises(ConfigError, match=r"implementation='matmull'.*Did you mean 'matmul'"):
        list(run(kernel_cases(("matmull",), {"conv_transpose": [spec]})))


def test_the_modes_of_a_function():
    def function(x, y, held):
        return {"product": x * y * held, "sum": x + y}

    x, y, held = (jnp.asarray(np.random.default_rng(i).normal(size=3)) for i in range(3))
    cotangents = normal(1, jax.eval_shape(function, x, y, held))
    outputs, pullback = jax.vjp(lambda x, y: function(x, y, held), x, y)
    want = {
        "forward": outputs,
        "vjp": pullback(cotangents),
        "both": (outputs, pullback(cotangents)),
    }
    for mode, expected in want.items():
        timed, arguments = in_mode(mode, function, (x, y), (held,))
        got = jax.jit(timed)(*arguments)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("kernel", SPECS)
def test_inputs_are_seeded_and_of_order_one(kernel, quickly):
    spec = SPECS[kernel][0]
    first, again, other = (make_inputs(kernel, spec, seed) for seed in (0, 0, 1))
    for a, b, c, shape in zip(first, again, other, spec.shapes, strict=True):
        assert a.shape == shape
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    outputs = jax.tree.leaves(jax.jit(call(kernel, spec), compiler_options=quickly)(*first))
    assert all(np.abs(np.asarray(y)).max() < 20 for y in outputs)
    half = make_inputs(kernel, spec._replace(dtype="bfloat16"))
    assert {a.dtype.name for a in half} == {"bfloat16"}


def test_decays_decay():
    a, *_ = make_inputs("linear_scan", LARGE["linear_scan"][0])
    assert 0.9 <= float(a.min()) < float(a.max()) <= 1.0


def test_kernels_are_told_apart_where_there_are_several():
    conv, pool = Choice("conv", "planes", "3-D"), Choice("max_pool", "xla", "the only one")
    assert _chosen([conv, conv]) == ["planes", "planes"]
    assert _chosen([conv, pool]) == ["conv: planes", "max_pool: xla"]


@pytest.mark.parametrize("mode", ["forward", "both"])
def test_a_model(mode):
    """Gradients are those of the parameters alone."""
    (case,) = [c for c in model_cases() if c.name == f"attention_classifier/small/{mode}"]
    work = case.prepare()
    assert (work.shapes, work.voxel_count, work.flop_count) == ("4x512x8", 4 * 512, None)
    found = jax.eval_shape(work.function, *work.arguments)
    outputs, *gradients = found if mode == "both" else (found,)
    assert outputs.shape == (4, 2)
    if mode == "both":
        ((params,), _, _) = work.arguments
        shapes = jax.tree.map(lambda leaf: leaf.shape, ((params,),))
        assert jax.tree.map(lambda leaf: leaf.shape, tuple(gradients)) == shapes


def test_a_forward_pass_of_a_patch():
    work = volumes._forward(4, (2, 3))
    assert (work.shapes, work.voxel_count) == ("1x4x4x4x1", 64)
    assert jax.eval_shape(work.function, *work.arguments).shape == (1, 4, 4, 4, 2)


def test_a_training_step_can_be_run_again_and_again():
    work = volumes._train(4, (2,))
    step = jax.jit(work.function)  # as the harness does: nothing is donated inside of it
    (first, metrics), (again, _) = step(*work.arguments), step(*work.arguments)
    assert np.isfinite(metrics["loss"])
    for before, a, b in zip(
        *(jax.tree.leaves(tree.params) for tree in (work.arguments[0], first, again)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
        assert a.shape == before.shape
    assert work.flop_count == 3 * 2 * 64 * (27 * 2 + 27 * 4 + 2 * 2)


def test_a_prediction_is_timed_on_the_host():
    work = volumes._predict(6, 4, (2,))
    assert work.time is time_calls
    assert work.voxel_count == 6**3
    labels = work.function(*work.arguments)
    assert labels.shape == (6, 6, 6)
    assert labels.max() <= 1


def test_suites_are_listed_without_work():
    """Nothing is prepared, so that a list costs no time and no memory."""
    cases = [case for suite in SUITES.values() for case in suite()]
    assert all(isinstance(case, Case) and case.suite in SUITES for case in cases)
    assert {f.name for f in dataclasses.fields(Case)} >= {"prepare", "requested"}


@pytest.mark.slow
@pytest.mark.parametrize("spec", LARGE["conv"], ids=lambda spec: spec.name)
def test_the_choice_at_large_shapes_agrees_with_xla(spec):
    arrays = make_inputs("conv", spec)
    got, want = (
        np.asarray(jax.jit(call("conv", spec, name))(*arrays), np.float32) for name in (None, "xla")
    )
    tolerance = 4 * float(jnp.finfo(spec.dtype).eps) * np.sqrt(np.prod(spec.shapes[1][:-1]))
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())
