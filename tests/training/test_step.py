import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.losses import cross_entropy
from biojax.training import create_state, make_eval_step, make_train_step

OPTIMIZER = optax.sgd(0.5)


@pytest.fixture(scope="module")
def start(segmentation, batch):
    """A function that makes the same first state each time, since steps donate it."""
    state = create_state(segmentation, OPTIMIZER, jax.random.key(0), batch)

    def make(averaged=False):
        copy = jax.tree.map(jnp.copy, state)
        return copy.replace(ema=jax.tree.map(jnp.copy, state.params) if averaged else None)

    return make


@pytest.fixture(scope="module")
def plain_step(segmentation):
    return make_train_step(segmentation, OPTIMIZER)


@pytest.fixture(scope="module")
def gradient(segmentation, batch, start):
    """Loss and gradient of the first state, without the step."""

    def loss(params):
        logits = segmentation.model.apply({"params": params}, batch["image"], train=True)
        return cross_entropy(logits, batch["label"])

    return jax.jit(jax.value_and_grad(loss))(start().params)


def test_equal_keys_make_equal_states(segmentation, batch, start, assert_trees_equal):
    state = create_state(segmentation, OPTIMIZER, jax.random.key(0), batch, ema_decay=0.9)
    assert_trees_equal(state, start(averaged=True))
    assert state.variables["params"] is state.ema
    assert start().variables["params"] is not None


def test_step_is_gradient_descent(plain_step, start, batch, gradient, assert_trees_equal):
    loss, expected = gradient
    before = start()
    state, metrics = plain_step(start(), batch)
    by_hand = jax.tree.map(lambda p, g: p - 0.5 * g, before.params, expected)
    assert_trees_equal(state.params, by_hand, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 1
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(expected), rtol=1e-5)
    assert 0 <= float(metrics["accuracy"]) <= 1


def test_state_is_donated(plain_step, start, batch):
    state = start()
    plain_step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_accumulation_clipping_and_average(
    segmentation, start, batch, gradient, assert_trees_equal
):
    """Four microbatches make the whole batch's gradient, which is clipped and averaged."""
    step = make_train_step(segmentation, OPTIMIZER, accumulate=4, clip_norm=0.1, ema_decay=0.75)
    before, (loss, whole) = start(), gradient
    norm = float(optax.tree.norm(whole))
    assert norm > 0.1
    state, metrics = step(start(averaged=True), batch)
    moved = jax.tree.map(lambda p, g: p - 0.5 * 0.1 / norm * g, before.params, whole)
    averaged = jax.tree.map(lambda p, q: 0.1 * p + 0.9 * q, before.params, moved)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert_trees_equal(state.params, moved, rtol=1e-5, atol=1e-6)
    assert_trees_equal(state.ema, averaged, rtol=1e-5, atol=1e-6)
    assert state.variables["params"] is state.ema
    state, previous = state.replace(step=state.step + 99), jax.tree.map(jnp.copy, state.ema)
    state, _ = step(state, batch)  # 101 / 110 is above the decay by then
    averaged = jax.tree.map(lambda p, q: 0.75 * p + 0.25 * q, previous, state.params)
    assert_trees_equal(state.ema, averaged, rtol=1e-5, atol=1e-6)


def test_remat_changes_memory_and_nothing_else(
    segmentation, plain_step, start, batch, assert_trees_equal
):
    step = make_train_step(segmentation, OPTIMIZER, remat=True)
    expected, _ = plain_step(start(), batch)
    state, _ = step(start(), batch)
    assert_trees_equal(state.params, expected.params, rtol=1e-5, atol=1e-6)
    computed = [
        str(jax.make_jaxpr(function)(start(), batch)).count("tanh")
        for function in (plain_step, step)
    ]
    assert computed[1] == 2 * computed[0]  # the activation before the block is computed anew


def test_bfloat16_computes_low_and_keeps_float32(segmentation, start, batch):
    step = make_train_step(segmentation, OPTIMIZER, dtype="bfloat16")
    assert "bf16[16,8,8,4]" in str(jax.make_jaxpr(step)(start(), batch))
    state, metrics = step(start(), batch)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32


@pytest.fixture(scope="module")
def two_steps(segmenter, segmentation, batch):
    """A model with statistics and dropout, its variables, and two steps that move nothing else."""
    task = dataclasses.replace(segmentation, model=segmenter(norm=True, dropout=0.5))
    step = make_train_step(task, optax.sgd(0.0), accumulate=2)
    state = create_state(task, optax.sgd(0.0), jax.random.key(0), batch)
    variables = jax.tree.map(jnp.copy, state.variables)
    first, metrics = step(state, batch)
    stats = jax.device_get(first.batch_stats)
    return task.model, variables, stats, [metrics, step(first, batch)[1]]


def test_batch_stats_move_with_each_microbatch(two_steps, batch, assert_trees_equal):
    model, variables, stats, _ = two_steps
    still = model.clone(dropout=0.0)  # which comes after the normalisation
    apply = jax.jit(partial(still.apply, train=True, mutable=["batch_stats"]))
    for part in (batch["image"][0::2], batch["image"][1::2]):
        variables = {**variables, **apply(variables, part)[1]}
    assert_trees_equal(stats, variables["batch_stats"], rtol=1e-5, atol=1e-6)


def test_dropout_draws_anew_every_step(two_steps):
    first, second = two_steps[-1]
    assert float(first["loss"]) != float(second["loss"])


def test_transform_gets_the_key_of_each_sample(segmentation, start, batch):
    """With or without microbatches, sample i is transformed with key i."""

    def transform(key, sample):
        return {**sample, "image": sample["image"] + jax.random.normal(key, (8, 8, 1))}

    losses = []
    for accumulate in (1, 4):
        step = make_train_step(segmentation, OPTIMIZER, accumulate=accumulate, transform=transform)
        losses.append(float(step(start(), batch)[1]["loss"]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_learning_rate_is_reported_where_it_is_known(segmentation, batch, plain_step, start):
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)
    step = make_train_step(segmentation, optimizer)
    state = create_state(segmentation, optimizer, jax.random.key(0), batch)
    rates = []
    for _ in range(3):
        state, metrics = step(state, batch)
        rates.append(float(metrics["lr"]))
    assert rates == [1.0, 0.75, 0.5]
    assert "lr" not in plain_step(start(), batch)[1]


def test_eval_step_uses_the_average(segmentation, start, batch):
    evaluate = make_eval_step(segmentation)
    state = start(averaged=True)
    averaged = float(evaluate(state, batch)["loss"])
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    assert float(evaluate(state, batch)["loss"]) == averaged
    assert float(evaluate(state.replace(ema=state.params), batch)["loss"]) != averaged


def test_options_out_of_range(segmentation, batch, start):
    with pytest.raises(ConfigError, match=r"accumulate=0. Expected 1 or more"):
        make_train_step(segmentation, OPTIMIZER, accumulate=0)
    with pytest.raises(ConfigError, match=r"clip_norm=0.0. Expected above 0, or None"):
        make_train_step(segmentation, OPTIMIZER, clip_norm=0.0)
    with pytest.raises(ConfigError, match=r"ema_decay=1.0. Expected between 0 and 1"):
        make_train_step(segmentation, OPTIMIZER, ema_decay=1.0)
    with pytest.raises(ConfigError, match="same ema_decay"):
        make_train_step(segmentation, OPTIMIZER, ema_decay=0.9)(start(), batch)
    with pytest.raises(ShapeError, match=r"multiple of 3.*batch of 15 or 18.*mean 15"):
        make_train_step(segmentation, OPTIMIZER, accumulate=3)(start(), batch)


def test_dtype_wants_the_field(batch, segmentation):
    import flax.linen as nn

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(3)(x)

    task = dataclasses.replace(segmentation, model=Fixed())
    with pytest.raises(ConfigError, match=r"Fixed.*field `dtype`"):
        make_train_step(task, OPTIMIZER, dtype="bfloat16")
