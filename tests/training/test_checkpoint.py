import json
import resource
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biojax.errors import CheckpointError, ConfigError
from biojax.training import Checkpoints, TrainState
from biojax.training.manifest import write_manifest

CONFIG = {"name": "tiny", "features": [4, 8], "norm": {"kind": "batch", "epsilon": 1e-5}}


def make_state(seed=0, features=4, ema=True):
    """A state with every kind of leaf: float32, bfloat16, int32, scalars and typed keys."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    params = {"conv": {"kernel": draw(3, 3, features), "bias": draw(features)}}
    return TrainState(
        step=jnp.int32(seed),
        params=params,
        batch_stats={"norm": {"mean": draw(features).astype(jnp.bfloat16)}},
        opt_state=optax.adam(1e-3).init(params),
        ema=jax.tree.map(lambda p: p + 1, params) if ema else None,
        key=jax.random.key(seed),
    )


def shapes(state):
    return jax.eval_shape(lambda: state)


def variables(state):
    return shapes({"params": state.params, "batch_stats": state.batch_stats})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("original"))
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), config=CONFIG, data_state={"position": step})
    return checkpoints.folder


@pytest.fixture
def saved(original, tmp_path):
    """Steps 1, 2 and 3, in a copy of their own."""
    return Checkpoints(shutil.copytree(original, tmp_path / "run"))


def flip_a_bit(folder):
    """In the largest file of the arrays, which holds their values."""
    path = max((folder / "arrays").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_state_comes_back_bit_for_bit(saved, assert_trees_equal):
    state, data_state = saved.restore(shapes(make_state()), config=CONFIG)
    assert_trees_equal(state, make_state(3))
    assert data_state == {"position": 3}
    assert state.params["conv"]["kernel"].dtype == np.float32
    assert state.batch_stats["norm"]["mean"].dtype == jnp.bfloat16
    assert jax.random.uniform(state.key) == jax.random.uniform(jax.random.key(3))
    assert saved.config() == CONFIG
    assert saved.steps() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_other_kinds(tmp_path, kind):
    key = jax.random.split(jax.random.key(5, impl=kind), 3)
    Checkpoints(tmp_path).save(1, {"key": key})
    restored, _ = Checkpoints(tmp_path).restore(shapes({"key": key}))
    assert restored["key"].dtype == key.dtype
    assert (restored["key"] == key).all()
    with pytest.raises(CheckpointError, match=r"key is key<u?rbg> \(3,\) there and key<fry>"):
        Checkpoints(tmp_path).restore({"key": jax.random.split(jax.random.key(5), 3)})


def test_only_what_a_model_predicts_with(saved, tmp_path, assert_trees_equal):
    state = make_state(3)
    restored = saved.restore_variables(variables(state), config=CONFIG)
    assert_trees_equal(restored["params"], state.ema)
    assert_trees_equal(restored["batch_stats"], state.batch_stats)
    plain = Checkpoints(tmp_path / "plain")
    plain.save(1, make_state(1, ema=False))
    restored = plain.restore_variables(variables(state))
    assert_trees_equal(restored["params"], make_state(1).params)


def test_old_steps_go_after_the_new_one(saved):
    saved.save(4, make_state(4))
    assert saved.steps() == [2, 3, 4]
    everything = Checkpoints(saved.folder, keep=None)
    everything.save(5, make_state(5))
    assert everything.steps() == [2, 3, 4, 5]
    with pytest.raises(ConfigError, match="keep=0"):
        Checkpoints(saved.folder, keep=0)


def test_a_flipped_bit_falls_back_to_the_step_before(saved, assert_trees_equal):
    flip_a_bit(saved.folder / "step-00000003")
    with pytest.warns(UserWarning, match=r"step 3 .* damaged .*arrays/.* not as it was written"):
        state, data_state = saved.restore(shapes(make_state()))
    assert_trees_equal(state, make_state(2))
    assert data_state == {"position": 2}


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda p: (p / "data.json").unlink(), "data.json is missing"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda p: (p / "manifest.json").write_text("[1, 2"), "manifest.json cannot be read"),
        (lambda p: (p / "manifest.json").write_text('{"sha256": 3}'), "manifest.json cannot be"),
        (lambda p: (p / "arrays" / "more").touch(), "arrays/more was added"),
        (lambda p: (p / "config.json").write_text("{}"), "config.json is not as it was"),
    ],
)
def test_every_damage_is_named(saved, break_it, reason):
    break_it(saved.folder / "step-00000003")
    with pytest.warns(UserWarning, match=reason):
        assert int(saved.restore(shapes(make_state()))[0].step) == 2


def test_none_good_is_an_error(saved, tmp_path):
    for step in (1, 2, 3):
        flip_a_bit(saved.folder / f"step-0000000{step}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match=r"steps \[1, 2, 3\], all of them damaged"):
            saved.restore(shapes(make_state()))
    with pytest.raises(CheckpointError, match=r"no checkpoint.*Check the folder's name"):
        Checkpoints(tmp_path / "elsewhere").config()


def test_a_damaged_step_may_be_saved_again(saved, assert_trees_equal):
    with pytest.raises(CheckpointError, match="saved already"):
        saved.save(3, make_state(7))
    flip_a_bit(saved.folder / "step-00000003")
    saved.save(3, make_state(7))
    assert_trees_equal(saved.restore(shapes(make_state()))[0], make_state(7))


def test_another_model_is_named_field_by_field(saved):
    other = {"name": "tiny", "features": (4, 16), "norm": {"kind": "group"}, "depth": 2}
    with pytest.raises(CheckpointError) as error:
        saved.restore(shapes(make_state()), config=other)
    for part in (
        "depth is 'unset' there and 2 here",
        "features is [4, 8] there and [4, 16] here",
        "norm.epsilon is 1e-05 there and 'unset' here",
        "norm.kind is 'batch' there and 'group' here",
    ):
        assert part in str(error.value)
    assert "name is" not in str(error.value)
    assert saved.restore(shapes(make_state()), config={**CONFIG, "features": (4, 8)})


def test_other_arrays_are_named(saved):
    with pytest.raises(CheckpointError, match=r"bias is float32 \(4,\) there and float32 \(5,\)"):
        saved.restore(shapes(make_state(features=5)))
    with pytest.raises(CheckpointError, match=r"ema/conv/bias is float32 \(4,\) there and missing"):
        saved.restore(shapes(make_state(ema=False)))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state().params)
    with pytest.raises(CheckpointError, match=r"float32 \(4,\) there and bfloat16 \(4,\) here"):
        saved.restore_variables(shapes({"params": half}))
    fewer = {"params": {"conv": {"bias": make_state().params["conv"]["bias"]}}}
    with pytest.raises(CheckpointError, match=r"ema/conv/kernel is .* there and missing here"):
        saved.restore_variables(shapes(fewer))


def test_only_leftovers_of_our_own_are_cleaned(saved):
    (saved.folder / "step-00000004.partial" / "arrays").mkdir(parents=True)
    for other in ("step-9.partial", "notes.partial", "step-00000005.partial.bak", "step-last"):
        (saved.folder / other).mkdir()
    (saved.folder / "step-00000006.partial").touch()
    assert saved.steps() == [1, 2, 3]
    saved.clean()
    left = {path.name for path in saved.folder.iterdir()} - {f"step-0000000{i}" for i in (1, 2, 3)}
    assert left == {
        "step-9.partial", "notes.partial", "step-00000005.partial.bak", "step-last",
        "step-00000006.partial",
    }  # fmt: skip


# Orbax's threads may still report to an event loop that the failure has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_what_was_there(saved, assert_trees_equal):
    """A limit on the size of files stands in for a disk that is full."""
    big = make_state(4).replace(params={"w": np.random.default_rng(0).normal(size=(200, 200))})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"while saving.*Free space"):
            saved.save(4, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.steps() == [1, 2, 3]
    assert not list(saved.folder.glob("*.partial"))
    assert_trees_equal(saved.restore(shapes(make_state()))[0], make_state(3))


def test_an_interrupted_save_is_no_checkpoint(saved, monkeypatch):
    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("biojax.training.checkpoint.write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        saved.save(4, make_state(4))
    assert (saved.folder / "step-00000004.partial" / "tree.json").exists()
    assert int(saved.restore(shapes(make_state()))[0].step) == 3
    monkeypatch.undo()
    saved.save(4, make_state(4))
    assert saved.steps() == [2, 3, 4]


def test_what_json_does_not_know(saved):
    with pytest.raises(ConfigError, match="config of which 'Object of type"):
        saved.save(4, make_state(4), config={"dtype": jnp.float32})
    with pytest.raises(ConfigError, match="data_state"):
        saved.save(4, make_state(4), data_state={"x": float("nan")})
    assert saved.steps() == [1, 2, 3]


def test_the_manifest_lists_every_file(saved):
    folder = saved.folder / "step-00000003"
    listed = set(json.loads((folder / "manifest.json").read_text())["sha256"])
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert listed == there - {"manifest.json"}
    assert {"config.json", "data.json", "tree.json"} < listed


def test_a_tree_that_is_no_object(saved):
    step = saved.folder / "step-00000003"
    (step / "tree.json").write_text("[1]")
    write_manifest(step)
    with pytest.raises(CheckpointError, match=r"tree.json.*a list in place of an object"):
        saved.restore(shapes(make_state()))


def test_arrays_that_are_not_what_the_tree_says(saved):
    """The text agrees with the model, and the manifest with the text; the arrays do not."""
    wide = make_state(3)
    wide = wide.replace(params=jax.tree.map(lambda x: jnp.concatenate([x, x]), wide.params))
    step = saved.folder / "step-00000003"
    tree = (step / "tree.json").read_text()
    shutil.rmtree(step)
    saved.save(3, wide)
    (step / "tree.json").write_text(tree)
    write_manifest(step)
    with pytest.raises(CheckpointError, match="in its arrays"):
        saved.restore(shapes(make_state()))
