"""Convolutional cells: identities, gradients, what is kept of them, what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from biojax.errors import ShapeError
from biojax.kernels import gru, lstm
from biojax.kernels.scan.convolutional import conv_gru, conv_lstm

CELLS = {"conv_lstm": (conv_lstm, 4), "conv_gru": (conv_gru, 3)}
both = pytest.mark.parametrize("name", CELLS)


@pytest.fixture(scope="module")
def run(quickly):
    """Each cell as one program, by name."""
    options = {"static_argnames": ["reverse"], "compiler_options": quickly}
    return {name: jax.jit(cell, **options) for name, (cell, _) in CELLS.items()}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def arrays(name: str, shape: tuple[int, ...], f: int, k_x: int = 3, k_h: int = 3) -> list:
    """x, w_x, w_h, bias, h0 and, for the LSTM, c0."""
    gates, rank = CELLS[name][1] * f, len(shape) - 3
    state = (shape[0], *shape[2:-1], f)
    states = [normal(4, *state), normal(5, *state)] if name == "conv_lstm" else [normal(4, *state)]
    w_x, w_h = normal(1, *[k_x] * rank, shape[-1], gates), normal(2, *[k_h] * rank, f, gates)
    return [normal(0, *shape), w_x / k_x**rank, w_h / k_h**rank, normal(3, gates) / 2, *states]


def outputs_and_gradients(cell, values, compiler_options) -> list[np.ndarray]:
    """Every output, and the gradients of a fixed random weighting of them all."""

    def scalar(values):
        out = jax.tree.leaves(cell(*values))
        rng = np.random.default_rng(0)
        weights = [rng.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in out]
        return sum(jnp.sum(o * w) for o, w in zip(out, weights, strict=True)), out

    program = jax.jit(jax.value_and_grad(scalar, has_aux=True), compiler_options=compiler_options)
    (_, out), gradients = program(values)
    return [np.asarray(v) for v in [*out, *gradients]]


@pytest.mark.parametrize("reverse", [False, True])
def test_one_pixel_is_the_cell_without_space(reverse, run, quickly):
    for name, plain in (("conv_lstm", lstm), ("conv_gru", gru)):
        x, w_x, w_h, bias, *states = arrays(name, (2, 4, 1, 1, 3), 2, 1, 1)
        got = run[name](x, w_x, w_h, bias, *states, reverse=reverse)
        flat = [np.squeeze(v, axis=axis) for v, axis in ((x, (2, 3)), (w_x, (0, 1)), (w_h, (0, 1)))]
        states = [np.squeeze(s, axis=(1, 2)) for s in states]
        plain = jax.jit(partial(plain, reverse=reverse), compiler_options=quickly)
        want = plain(*flat, bias, *states)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g.reshape(w.shape), w, rtol=1e-5, atol=1e-5)


@both
def test_reverse_is_the_flipped_clip(name, run):
    x, *others = arrays(name, (2, 4, 5, 2), 3)
    h, last = run[name](x, *others, reverse=True)
    flipped, flipped_last = run[name](x[:, ::-1], *others)
    np.testing.assert_allclose(h, flipped[:, ::-1], rtol=1e-5, atol=1e-6)
    for g, w in zip(jax.tree.leaves(last), jax.tree.leaves(flipped_last), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


@both
def test_two_halves_make_the_whole(name, run):
    x, w_x, w_h, bias, *states = arrays(name, (2, 4, 5, 2), 3)
    whole, last = run[name](x, w_x, w_h, bias, *states)
    first, carried = run[name](x[:, :2], w_x, w_h, bias, *states)
    second, second_last = run[name](x[:, 2:], w_x, w_h, bias, *jax.tree.leaves(carried))
    halves = jnp.concatenate([first, second], axis=1)
    np.testing.assert_allclose(whole, halves, rtol=1e-5, atol=1e-6)
    for g, w in zip(jax.tree.leaves(second_last), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(whole[:, -1], jax.tree.leaves(last)[0])


@both
def test_without_channels_it_goes_on_by_itself(name, quickly):
    cell = CELLS[name][0]
    x, w_x, *others = arrays(name, (2, 3, 5, 2), 3)
    silent = outputs_and_gradients(cell, [x[..., :0], w_x[:, :0], *others], quickly)
    zeros = outputs_and_gradients(cell, [0 * x, w_x, *others], quickly)
    outputs = len(silent) - len(others) - 2
    for i, (g, e) in enumerate(zip(silent, zeros, strict=True)):
        if i in (outputs, outputs + 1):
            assert g.size == 0
        else:
            np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)


@both
def test_initial_states_are_zeros(name, run):
    x, w_x, w_h, bias, *states = arrays(name, (2, 4, 5, 2), 3)
    got = run[name](x, w_x, w_h, bias)
    want = run[name](x, w_x, w_h, bias, *map(np.zeros_like, states))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(g, w)


@both
def test_against_finite_differences(name):
    args = arrays(name, (1, 3, 4, 1), 2)
    check_grads(jax.jit(CELLS[name][0]), args, order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def scans(jaxpr):
    """The scans in a program, those inside of others included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from scans(inner)


@both
def test_the_gradient_of_the_kernel_is_taken_once_over_all_images(name):
    """No loop adds it up, and what is kept of each step are the gates and the states."""
    cell, gates = CELLS[name]
    shape, f = (2, 5, 6, 7, 1), 3
    values = arrays(name, shape, f)

    def loss(*values):
        return jax.tree.leaves(cell(*values))[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*values)
    loops = [e for e in scans(jaxpr.jaxpr) if e.params["length"] == 5]
    assert len(loops) == 2
    forward, backward = loops
    assert values[2].shape not in [v.aval.shape for v in backward.outvars]
    pixels = (5, 2, 6, 7)
    stacked = [v.aval.shape for v in forward.outvars[forward.params["num_carry"] :]]
    kept = [(*pixels, 4 * f), (*pixels, f), (*pixels, f)]
    assert sorted(stacked) == sorted(kept if name == "conv_lstm" else kept[:2])
    stacked = [v.aval.shape for v in backward.outvars[backward.params["num_carry"] :]]
    assert stacked == [(*pixels, gates * f)]
    alone = jax.make_jaxpr(lambda *values: cell(*values)[0])(*values)
    (loop,) = (e for e in scans(alone.jaxpr) if e.params["length"] == 5)
    assert len(loop.outvars) == loop.params["num_carry"] + 1, "without gradient only h is stacked"


@both
def test_transforms(name, stands_every_transform):
    cell = CELLS[name][0]
    x, *weights = arrays(name, (8, 2, 4, 2), 2)[:4]
    stands_every_transform(lambda *args: cell(*args)[0], x, *weights)


@both
def test_compile_once(name, compiles_once, gradients_compile_once):
    given = [jnp.asarray(v) for v in arrays(name, (1, 2, 3, 1), 1)]
    compiles_once(CELLS[name][0], *given)
    gradients_compile_once(CELLS[name][0], *given)


@both
def test_a_batch_on_several_devices_stays_there(name, mesh_of, compiled, run):
    """The images of each device are convolved there; only gradients of weights are added up."""
    cell = CELLS[name][0]
    x, *weights = arrays(name, (8, 2, 8, 8, 2), 2)[:4]
    spread = jax.device_put(x, NamedSharding(mesh_of(8), P("a")))

    def loss(x, *weights):
        return jnp.sum(cell(x, *weights)[0] ** 2)

    gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
    h, collectives = compiled(lambda *args: cell(*args)[0], spread, *weights)
    assert not collectives
    np.testing.assert_allclose(h, run[name](x, *weights)[0], rtol=1e-5, atol=1e-5)
    gradients, collectives = compiled(gradient, spread, *weights)
    assert collectives <= {"all-reduce"}
    expected, _ = compiled(gradient, x, *weights)
    for g, e in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4)


@both
def test_an_empty_batch(name):
    cell = CELLS[name][0]
    x, *weights = arrays(name, (1, 2, 5, 2), 3)[:4]
    assert cell(x[:0], *weights)[0].shape == (0, 2, 5, 3)


X = np.ones((2, 3, 5, 2), np.float32)


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: X[0]}, r"x \(3, 5, 2\).*Expected x \(b, t, \*spatial, c\), w_x \(\*k, c, "),
        ({0: X[:, :0]}, r"x \(2, 0, 5, 2\)"),
        ({0: X[..., :1]}, r"x \(2, 3, 5, 1\)"),
        ({1: np.ones((3, 3, 2, 8), np.float32)}, r"w_x \(3, 3, 2, 8\).*the same one to three"),
        ({2: np.ones((3, 2, 7), np.float32)}, r"w_h \(3, 2, 7\)"),
        ({2: np.ones(3, np.float32)}, r"w_h \(3,\)"),
        ({3: np.ones((1, 8), np.float32)}, r"bias \(1, 8\).*Make the shapes agree"),
        ({0: X.astype(jnp.bfloat16)}, "x of bfloat16, w_x of float32.*one floating dtype"),
        ({0: X.astype(int)}, "x of int"),
        ({4: np.ones((2, 5, 3), np.float32)}, r"h0 of float32 and shape \(2, 5, 3\)"),
        ({4: np.ones((2, 5, 2)) * 1j}, "h0 of complex"),
    ],
)
def test_what_is_refused(name, change, message):
    args = arrays(name, X.shape, 2)
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ShapeError, match=f"^{name}: got .*?{message}"):
        CELLS[name][0](*args)


def test_a_second_state_that_is_refused():
    with pytest.raises(ShapeError, match=r"^conv_lstm: got c0 of float32 and shape \(2, 1\)"):
        conv_lstm(*arrays("conv_lstm", X.shape, 2)[:4], c0=jnp.ones((2, 1)))


@both
def test_precision_reaches_every_product(name):
    """Of the input, of the state, and of all gradients."""
    cell = partial(CELLS[name][0], precision="highest")
    values = arrays(name, (1, 2, 4, 4, 2), 2)[:4]

    def loss(*values):
        return jax.tree.leaves(cell(*values))[0].sum()

    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if "precision" in equation.params and equation.primitive.name in (
                "dot_general",
                "conv_general_dilated",
            ):
                found.append(equation.params["precision"])
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    visit(inner)

    visit(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2, 3)))(*values).jaxpr)
    highest = jax.lax.Precision.HIGHEST
    assert found
    assert all(p in (highest, (highest, highest)) for p in found)
