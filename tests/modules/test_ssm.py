"""State space layers against loops over their parameters, and their identities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biojax.errors import BiojaxError, ConfigError
from biojax.kernels.scan.orders import cross_scan_orders
from biojax.modules import Mamba2Block, MambaBlock, SelectiveSSM, VSSBlock

rng = np.random.default_rng(0)
X = rng.standard_normal((2, 6, 4)).astype(np.float32)
IMAGE = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
VOLUME = rng.standard_normal((1, 2, 3, 2, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def run(quickly):
    """A module's output, compiled quickly."""

    def call(module, variables, x, **options):
        compiled = jax.jit(partial(module.apply, **options), compiler_options=quickly)
        return np.asarray(compiled(variables, x))

    return call


def numbers(tree) -> dict:
    """The parameters in double precision."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(tree))


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(x, 0)


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def s6(u, p):
    """The recurrence step by step, (b, t, c)."""
    r, n = p["w_dt"].shape[0], p["A_log"].shape[1]
    s, b, c = np.split(u @ p["w_x"], [r, r + n], axis=-1)
    delta = softplus(s @ p["w_dt"] + p["bias"])
    h, ys = np.zeros((*u[:, 0].shape, n)), []
    for t in range(u.shape[1]):
        h = np.exp(delta[:, t, :, None] * -np.exp(p["A_log"])) * h
        h = h + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        ys.append((h * c[:, t, None]).sum(-1) + p["D"] * u[:, t])
    return np.stack(ys, axis=1)


def causal(x, p):
    """A depthwise convolution that reads what was before, (b, t, c)."""
    kernel = p["kernel"][:, 0]
    padded = np.pad(x, ((0, 0), (len(kernel) - 1, 0), (0, 0)))
    return sum(padded[:, i : i + x.shape[1]] * w for i, w in enumerate(kernel)) + p["bias"]


def test_selective_ssm_step_by_step(with_parameters, run):
    module = SelectiveSSM(3, 5)
    variables = with_parameters(module, X)
    p = numbers(variables["params"])
    shapes = {"w_x": (4, 13), "w_dt": (3, 4), "bias": (4,), "A_log": (4, 5), "D": (4,)}
    assert {name: leaf.shape for name, leaf in p.items()} == shapes
    np.testing.assert_allclose(run(module, variables, X), s6(X, p), rtol=1e-4, atol=1e-5)


def test_where_the_parameters_start(quickly):
    init = jax.jit(SelectiveSSM(4, 3).init, compiler_options=quickly)
    p = init(jax.random.key(0), jnp.zeros((1, 2, 200)))["params"]
    np.testing.assert_allclose(-jnp.exp(p["A_log"]), np.tile([-1.0, -2.0, -3.0], (200, 1)), 1e-6)
    np.testing.assert_array_equal(p["D"], 1)
    assert np.abs(p["w_dt"]).max() <= 0.5
    assert np.abs(p["w_dt"]).max() > 0.45
    steps = np.sort(softplus(np.asarray(p["bias"])))
    assert steps[0] >= 0.001
    assert steps[-1] <= 0.1 + 1e-6
    assert 0.005 < np.median(steps) < 0.02  # uniform in the logarithm


def test_mamba_by_hand(with_parameters, run):
    module = MambaBlock(state_size=3)
    variables = with_parameters(module, X)
    p = numbers(variables["params"])
    assert p["in"]["kernel"].shape == (4, 16)
    assert p["conv0"]["kernel"].shape == (4, 1, 8)
    x, z = np.split(X @ p["in"]["kernel"], 2, axis=-1)
    y = s6(silu(causal(x, p["conv0"])), p["ssm0"])
    expected = (y * silu(z)) @ p["out"]["kernel"]
    np.testing.assert_allclose(run(module, variables, X), expected, rtol=1e-4, atol=1e-5)


def test_mamba_looks_back_only(with_parameters, run):
    module = MambaBlock(state_size=3)
    variables = with_parameters(module, X)
    changed = X.copy()
    changed[:, 3:] += 1
    y, other = (run(module, variables, x) for x in (X, changed))
    np.testing.assert_allclose(y[:, :3], other[:, :3], rtol=1e-5, atol=1e-6)
    assert not np.allclose(y[:, 3:], other[:, 3:])


def only(params, i: int) -> dict:
    """The block whose one order is the i-th of these."""
    shared = {"in": params["in"], "out": params["out"]}
    return {"params": {**shared, "conv0": params[f"conv{i}"], "ssm0": params[f"ssm{i}"]}}


def test_bidirectional_is_the_mean_of_both_ways(with_parameters, run):
    module, single = MambaBlock(("x", "-x"), state_size=3), MambaBlock(state_size=3)
    variables = with_parameters(module, X)
    forward = run(single, only(variables["params"], 0), X)
    backward = run(single, only(variables["params"], 1), X[:, ::-1])[:, ::-1]
    expected = (forward + backward) / 2
    np.testing.assert_allclose(run(module, variables, X), expected, rtol=1e-4, atol=1e-5)


def test_orders_of_a_volume_are_sequences_of_its_voxels(with_parameters, run):
    """Forward, backward, and from slice to slice."""
    module = MambaBlock(("zyx", "-zyx", "yxz"), "sum", state_size=2)
    variables = with_parameters(module, VOLUME)
    single = MambaBlock(state_size=2)
    b, d, h, w, c = VOLUME.shape

    def along(i, x):
        return run(single, only(variables["params"], i), x.reshape(b, -1, c))

    expected = along(0, VOLUME).reshape(VOLUME.shape)
    flat = VOLUME.reshape(b, -1, c)
    expected = expected + along(1, flat[:, ::-1])[:, ::-1].reshape(VOLUME.shape)
    slices = along(2, VOLUME.transpose(0, 2, 3, 1, 4)).reshape(b, h, w, d, c)
    expected = expected + slices.transpose(0, 3, 1, 2, 4)
    np.testing.assert_allclose(run(module, variables, VOLUME), expected, rtol=1e-4, atol=1e-5)


def scanned(y, p, axes, back):
    """One order by transposition: the last of `axes` runs fastest."""
    moved = y.transpose(0, *axes, y.ndim - 1)
    tokens = moved.reshape(y.shape[0], -1, y.shape[-1])
    tokens = s6(tokens[:, ::-1], p)[:, ::-1] if back else s6(tokens, p)
    return tokens.reshape(moved.shape).transpose(0, *(np.argsort(axes) + 1), y.ndim - 1)


@pytest.mark.parametrize("x", [IMAGE, VOLUME])
def test_cross_scan_is_a_scan_along_each_axis_and_back(x, with_parameters, run, quickly):
    module = VSSBlock(expansion_ratio=2.0, state_size=2)
    variables = with_parameters(module, x)
    p = numbers(variables["params"])
    spatial = x.ndim - 2
    orders = cross_scan_orders(spatial)
    assert len(orders) == 2 * spatial
    axis = {letter: i + 1 for i, letter in enumerate("zyx"[-spatial:])}
    walks = [([axis[a] for a in o.lstrip("-")], o.startswith("-")) for o in orders]
    assert {(axes[-1], back) for axes, back in walks} == {
        (a, back) for a in axis.values() for back in (False, True)
    }
    y = layer_norm(x, p["norm1"]) @ p["in"]["kernel"]
    padded = np.pad(y, ((0, 0), *((1, 1),) * spatial, (0, 0)))
    kernel = p["conv"]["kernel"][..., 0, :]
    y = sum(
        padded[(slice(None), *(slice(i, i + n) for i, n in zip(tap, y.shape[1:-1], strict=True)))]
        * kernel[tap]
        for tap in np.ndindex(kernel.shape[:-1])
    )
    y = silu(y)
    y = sum(scanned(y, p[f"ssm{i}"], *walk) for i, walk in enumerate(walks))
    x1 = x + layer_norm(y, p["norm_scan"]) @ p["out"]["kernel"]
    y = layer_norm(x1, p["norm2"]) @ p["mlp1"]["kernel"] + p["mlp1"]["bias"]
    y = np.asarray(jax.nn.gelu(y, approximate=False))
    expected = x1 + y @ p["mlp2"]["kernel"] + p["mlp2"]["bias"]
    np.testing.assert_allclose(run(module, variables, x), expected, rtol=1e-3, atol=1e-4)


def test_the_parameters_of_vmamba():
    x = jax.ShapeDtypeStruct((1, 8, 8, 96), jnp.float32)
    leaves = jax.tree.leaves(jax.eval_shape(VSSBlock().init, jax.random.key(0), x))
    assert sum(leaf.size for leaf in leaves) == 100_608


def test_mamba2_step_by_step(with_parameters, run):
    module = Mamba2Block(head_size=2, state_size=3, num_groups=2)
    variables = with_parameters(module, X)
    p = numbers(variables["params"])
    inner, gs, heads = 8, 2 * 3, 4
    z, v, s = np.split(X @ p["in"]["kernel"], [inner, 2 * inner + 2 * gs], axis=-1)
    x, b, c = np.split(silu(causal(v, p["conv"])), [inner, inner + gs], axis=-1)
    dt = softplus(s + p["dt_bias"])
    x = x.reshape(2, 6, heads, 2)
    b, c = (np.repeat(v.reshape(2, 6, 2, 3), 2, axis=2) for v in (b, c))
    h, ys = np.zeros((2, heads, 2, 3)), []
    for t in range(6):
        h = np.exp(dt[:, t] * -np.exp(p["A_log"]))[..., None, None] * h
        h = h + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        ys.append((h * c[:, t, :, None]).sum(-1) + p["D"][:, None] * x[:, t])
    y = np.stack(ys, axis=1).reshape(2, 6, inner) * silu(z)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    expected = y @ p["out"]["kernel"]
    np.testing.assert_allclose(run(module, variables, X), expected, rtol=1e-3, atol=1e-4)


def test_mamba2_in_reverse_is_mamba2_of_the_flipped_sequence(with_parameters, run):
    forward, backward = (Mamba2Block(head_size=2, state_size=3, reverse=r) for r in (False, True))
    variables = with_parameters(forward, X)
    params = variables["params"]
    conv = {**params["conv"], "kernel": params["conv"]["kernel"][::-1]}
    turned = {"params": {**params, "conv": conv}}
    expected = run(forward, variables, X[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(run(backward, turned, X), expected, rtol=1e-4, atol=1e-5)


BLOCKS = {
    "mamba": (partial(MambaBlock, ("x", "-x"), state_size=2), X),
    "mamba2": (partial(Mamba2Block, head_size=2, state_size=2), X),
    "ssm": (partial(SelectiveSSM, 1, 2), X),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_dtypes(name, keeps_dtypes):
    make, x = BLOCKS[name]
    keeps_dtypes(make, jnp.asarray(x))


def test_the_visual_block_keeps_the_wider_dtype_of_its_sum():
    for x, expected in ((IMAGE, "float32"), (jnp.asarray(IMAGE, jnp.bfloat16), "bfloat16")):
        block = VSSBlock(dtype=jnp.bfloat16)
        y, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
        assert jnp.result_type(y) == expected
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}


@pytest.mark.parametrize("name", BLOCKS)
def test_bfloat16_is_finite_and_near(name, with_parameters, run):
    make, x = BLOCKS[name]
    variables = with_parameters(make(), x)
    y = run(make(), variables, x)
    narrow = run(make(dtype=jnp.bfloat16), variables, x).astype(np.float32)
    assert np.isfinite(narrow).all()
    np.testing.assert_allclose(narrow, y, rtol=0.1, atol=0.05 * np.abs(y).max())


def test_blocks_are_left_out_only_while_training(with_parameters, run):
    module = VSSBlock(state_size=2, drop_path_rate=0.5)
    x = np.repeat(IMAGE, 8, axis=0)
    variables = with_parameters(module, x)
    still = run(module, variables, x)
    np.testing.assert_array_equal(still, run(VSSBlock(state_size=2), variables, x, train=True))
    y = run(module, variables, x, train=True, rngs={"dropout": jax.random.key(0)})
    same = [np.allclose(a, b) for a, b in zip(y, x, strict=True)]  # both branches left out
    assert 0 < sum(same) < len(x)


@pytest.mark.parametrize(
    ("module", "x", "error", "message"),
    [
        (MambaBlock(("zyx",)), X, BiojaxError, "zyx"),
        (MambaBlock(merge="men"), X, ConfigError, "Did you mean .mean."),
        (MambaBlock(chunk=0), X, ConfigError, "chunk=0"),
        (VSSBlock(chunk=0), IMAGE, ConfigError, "chunk=0"),
        (Mamba2Block(3), X, ConfigError, "head_size=3 and num_groups=1 for 8 inner channels"),
        (Mamba2Block(4, num_groups=3), X, ConfigError, "num_groups=3"),
    ],
)
def test_what_is_refused(module, x, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(module.init, jax.random.key(0), x)
