"""One step under every strategy: the same losses and parameters, ten steps long."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biojax.errors import ConfigError, ShapeError
from biojax.losses import cross_entropy
from biojax.parallel import data, gather, make_strategy, pmap, single
from biojax.tasks import Classification, Segmentation
from biojax.training import Checkpoints, create_state, make_eval_step, make_train_step

STRATEGIES = ("single", "data", "pmap")


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(nn.gelu(nn.Dense(4)(x)))


def transform(key, sample):
    return {**sample, "image": sample["image"] * jax.random.uniform(key)}


TASK = Segmentation(Model(), cross_entropy)
OPTIMIZER = optax.adam(0.05)
OPTIONS = {"accumulate": 2, "clip_norm": 0.2, "ema_decay": 0.9, "transform": transform}


@functools.cache
def make_batches(count=10, size=16):
    random = np.random.default_rng(0)
    images = random.normal(size=(count, size, 4, 4, 2)).astype(np.float32)
    labels = random.integers(0, 3, size=(count, size, 4, 4)).astype(np.int32)
    return [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)]


@functools.cache
def first_state():
    return create_state(TASK, OPTIMIZER, jax.random.key(3), make_batches()[0], ema_decay=0.9)


@functools.cache
def run(strategy):
    """Ten steps with every option: the last state on one device, the losses and the norms."""
    step = make_train_step(TASK, OPTIMIZER, strategy=strategy, **OPTIONS)
    state, metrics = jax.tree.map(jnp.copy, first_state()), []
    for batch in make_batches():
        state, values = step(state, batch)
        metrics.append([float(values["loss"]), float(values["grad_norm"])])
    return gather(state), np.array(metrics)


@pytest.mark.parametrize("strategy", ["data", "pmap"])
def test_ten_steps_agree_with_one_device(strategy):
    expected, expected_metrics = run("single")
    state, metrics = run(strategy)
    np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-5)
    assert metrics[-1, 0] < metrics[0, 0]
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(state.replace(key=())),
        jax.tree.leaves(expected.replace(key=())),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-5, err_msg=str(path))
    assert state.key == expected.key


@pytest.mark.parametrize("before", STRATEGIES)
def test_checkpoint_of_one_strategy_goes_on_under_another(before, tmp_path):
    """The state has one form, so that it can move between strategies at any step."""
    placed = make_strategy(before).place_state(first_state())
    Checkpoints(tmp_path).save(0, placed)
    state, _ = Checkpoints(tmp_path).restore(first_state())
    expected = evaluation("single")(first_state(), make_batches()[0])["loss"]
    for after in STRATEGIES:
        loss = evaluation(after)(state, make_batches()[0])["loss"]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@functools.cache
def evaluation(strategy):
    return make_eval_step(TASK, strategy=strategy)


def test_batch_norm_looks_at_one_share_under_pmap():
    """`data` normalises over the whole batch, as `single` does; pmap over each device's share."""
    task = Classification(PooledNorm())
    shift = np.repeat(np.arange(8.0, dtype=np.float32), 2)[:, None, None]  # one value per device
    batch = {
        "image": np.broadcast_to(shift, (16, 4, 1)),
        "label": np.arange(16, dtype=np.int32) % 3,
    }
    variances = {}
    start = create_state(task, optax.sgd(0.1), jax.random.key(0), batch)
    for strategy in ("data", "pmap"):
        step = make_train_step(task, optax.sgd(0.1), strategy=strategy)
        state, _ = step(jax.tree.map(jnp.copy, start), batch)
        variances[strategy] = float(gather(state).batch_stats["BatchNorm_0"]["var"][0])
    np.testing.assert_allclose(variances["data"], 0.9 + 0.1 * 5.25, rtol=1e-5)  # var of 0 ... 7
    np.testing.assert_allclose(variances["pmap"], 0.9, rtol=1e-5)  # no variance in a share


class PooledNorm(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(not train, momentum=0.9)(x)
        return nn.Dense(3)(x.mean(1))


def test_states_and_batches_are_placed():
    batch = make_batches()[0]
    assert pmap().place_batch(batch)["image"].shape == (8, 2, 4, 4, 2)
    placed = data().place_batch(batch)["image"]
    assert placed.shape == (16, 4, 4, 2)
    assert {shard.data.shape[0] for shard in placed.addressable_shards} == {2}
    np.testing.assert_array_equal(gather(placed), batch["image"])
    for strategy in (data(), pmap(4), single(jax.devices()[2:3])):
        state = strategy.place_state(first_state())
        assert len(state.step.sharding.device_set) == strategy.size
        assert (
            strategy.place_state(state).params["Dense_0"]["bias"]
            is (state.params["Dense_0"]["bias"])
        )
        back = gather(state)
        assert len(back.step.sharding.device_set) == 1
        assert back.key == first_state().key


def test_unknown_strategy_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'dta'.*'single', 'pmap', 'data'.*mean 'data'\?"):
        make_strategy("dta")
    strategy = data(2)
    assert make_strategy(strategy) is strategy
    assert make_strategy("pmap", 4).size == 4


@pytest.mark.parametrize("name", ["data", "pmap"])
def test_batches_that_do_not_divide(name):
    strategy = make_strategy(name)
    with pytest.raises(ShapeError, match=r"batch of 13 for 8 .*8 or 16\. Did you mean 16\?"):
        strategy.place_batch({"image": np.zeros((13, 2)), "label": np.zeros(13)})
    with pytest.raises(ShapeError, match=r"a multiple of 16\. Use a batch of 16\."):
        strategy.place_batch({"image": np.zeros((8, 2))}, accumulate=2)
    with pytest.raises(ShapeError, match="one batch size"):
        strategy.place_batch({"image": np.zeros((8, 2)), "label": np.zeros(16)})
    with pytest.raises(ShapeError, match="a batch of 0"):
        strategy.place_batch({"image": np.zeros((0, 2))})
