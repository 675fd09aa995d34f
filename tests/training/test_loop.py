import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biojax.errors import CheckpointError, ConfigError, DataError, FileError
from biojax.training import Checkpoints, fit


@pytest.fixture
def step_fn(run):
    return run[0]


@pytest.fixture
def start(run):
    return lambda: jax.tree.map(jnp.copy, run[1])


class StopAt:
    """A step function that sends this process a signal at one of its steps."""

    def __init__(self, step_fn, at, number=signal.SIGTERM):
        self.step_fn, self.at, self.number = step_fn, at, number

    def __call__(self, state, batch):
        self.at -= 1
        if self.at == 0:
            signal.raise_signal(self.number)
        return self.step_fn(state, batch)


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def numbers_of(record):
    """What has to be equal between two runs: everything but the times."""
    return {name: value for name, value in record.items() if "second" not in name}


def test_loss_falls_and_everything_is_kept(step_fn, start, batches, tmp_path, capsys):
    seen = []

    def evaluate(state):
        seen.append(int(state.step))
        assert len(state.step.sharding.device_set) == 1
        return {"dice": np.float32(0.5), "empty": float("nan")}

    result = fit(
        step_fn,
        start(),
        batches(),
        steps=25,
        folder=tmp_path / "runs" / "one",
        evaluate=evaluate,
        evaluate_every=10,
        checkpoint_every=5,
        keep=2,
        config={"name": "tiny"},
    )
    assert (result.step, result.interrupted) == (25, False)
    assert int(result.state.step) == 25
    assert seen == [10, 20, 25]
    folder = tmp_path / "runs" / "one"
    assert Checkpoints(folder).steps() == [20, 25]
    assert Checkpoints(folder).config() == {"name": "tiny"}
    assert (folder / "progress.png").exists()
    records = read_log(folder)
    training = [record for record in records if "loss" in record]
    assert [record["step"] for record in training] == list(range(1, 26))
    assert training[-1]["loss"] < 0.8 * training[0]["loss"]
    assert {"loss", "accuracy", "grad_norm", "seconds", "voxels_per_second"} < set(training[0])
    assert [r["evaluation"] for r in records if "evaluation" in r] == [
        {"dice": 0.5, "empty": None}
    ] * 3
    assert records == result.records
    assert "step 25/25  loss" in capsys.readouterr().out


def test_interrupted_and_resumed_is_uninterrupted(
    step_fn, start, batches, tmp_path, assert_trees_equal
):
    """Parameters, average, optimizer, data order and log are equal, bit for bit."""
    options = {"steps": 12, "checkpoint_every": 4, "evaluate_every": 5, "progress": False}

    def evaluate(state):
        return {"norm": optax.tree.norm(state.variables["params"])}

    whole, whole_batches = tmp_path / "whole", batches()
    expected = fit(step_fn, start(), whole_batches, folder=whole, evaluate=evaluate, **options)

    parts, seen = tmp_path / "parts", []
    # Between checkpoints, at an evaluation, at a checkpoint, at the end.
    for after, done in ((2, 2), (3, 5), (3, 8), (4, 12)):
        source = batches()
        stopping = StopAt(step_fn, after)
        result = fit(stopping, start(), source, folder=parts, evaluate=evaluate, **options)
        assert (result.interrupted, result.step) == (True, done)
        seen += source.seen
    result = fit(step_fn, start(), batches(), folder=parts, evaluate=evaluate, **options)
    assert (result.interrupted, result.step) == (False, 12)

    assert seen == whole_batches.seen == list(range(12))
    assert_trees_equal(jax.device_get(result.state), jax.device_get(expected.state))
    assert list(map(numbers_of, read_log(parts))) == list(map(numbers_of, read_log(whole)))
    seconds = [record["seconds"] for record in read_log(parts)]
    assert seconds == sorted(seconds)


def test_a_kill_loses_no_more_than_the_last_steps(
    step_fn, start, batches, tmp_path, assert_trees_equal
):
    """Without any warning: the run goes on from the last checkpoint, and the log with it."""

    def dying(state, batch):
        if int(state.step) == 6:
            raise RuntimeError("killed")
        return step_fn(state, batch)

    options = {"steps": 9, "checkpoint_every": 4, "progress": False}
    with pytest.raises(RuntimeError, match="killed"):
        fit(dying, start(), batches(), folder=tmp_path / "a", **options)
    (tmp_path / "a" / "step-00000008.partial").mkdir()
    assert [record["step"] for record in read_log(tmp_path / "a")][:5] == [1, 2, 3, 4, 5]
    source = batches()
    result = fit(step_fn, start(), source, folder=tmp_path / "a", **options)
    assert source.seen == [4, 5, 6, 7, 8]
    assert Checkpoints(tmp_path / "a").steps() == [4, 8, 9]
    expected = fit(step_fn, start(), batches(), folder=tmp_path / "b", **options)
    assert_trees_equal(jax.device_get(result.state), jax.device_get(expected.state))
    logs = [list(map(numbers_of, read_log(tmp_path / name))) for name in "ab"]
    assert logs[0] == logs[1]


def test_ctrl_c_once_saves_and_twice_stops_at_once(step_fn, start, batches, tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    options = {"steps": 9, "folder": tmp_path}
    result = fit(StopAt(step_fn, 3, signal.SIGINT), start(), batches(), **options)
    assert (result.interrupted, result.step) == (True, 3)
    assert "SIGINT: stopped after step 3 of 9. It is kept in" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before

    twice = StopAt(StopAt(step_fn, 2, signal.SIGINT), 2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(twice, start(), batches(), **options)
    assert "Going on from step 3." in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    assert Checkpoints(tmp_path).steps() == [3]


def test_without_a_folder_or_the_main_thread(step_fn, start, batch):
    """A thread may not handle signals, and any iterable will do where nothing is kept."""
    results = []
    options = {"steps": 2, "progress": False}
    target = lambda: results.append(fit(step_fn, start(), [small(batch)] * 2, **options))  # noqa: E731
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert (results[0].step, results[0].interrupted) == (2, False)
    assert [record["step"] for record in results[0].records] == [1, 2]


def small(batch):
    return {name: x[:4] for name, x in batch.items()}


def test_a_loss_that_is_not_finite_is_never_saved(step_fn, start, batches, tmp_path):
    class Broken(batches):
        def __next__(self):
            batch = super().__next__()
            if self.position == 6:
                batch["image"][0, 0, 0] = np.nan
            return batch

    with pytest.raises(DataError, match=r"loss nan at step 6.*Lower the learning rate"):
        fit(step_fn, start(), Broken(), steps=20, folder=tmp_path, checkpoint_every=2)
    assert Checkpoints(tmp_path).steps() == [2, 4]
    state, _ = Checkpoints(tmp_path).restore(start())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_batches_that_end(step_fn, start, batches):
    with pytest.raises(DataError, match=r"end of the batches after step 3.*mean steps=3\?"):
        fit(step_fn, start(), batches(last=3), steps=5, progress=False)


def test_what_would_fail_later_fails_before_the_first_step(
    step_fn, start, batches, tmp_path, batch
):
    with pytest.raises(ConfigError, match=r"batches of type list_iterator.*get_state"):
        fit(step_fn, start(), [batch], steps=2, folder=tmp_path)
    with pytest.raises(ConfigError, match="config of which"):
        fit(step_fn, start(), batches(), steps=2, folder=tmp_path, config={"dtype": jnp.float32})
    with pytest.raises(ConfigError, match="checkpoint_every=0"):
        fit(step_fn, start(), batches(), steps=2, checkpoint_every=0)
    with pytest.raises(ConfigError, match="evaluate_every=0"):
        fit(step_fn, start(), batches(), steps=2, evaluate_every=0)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="a folder to write in"):
        fit(step_fn, start(), batches(), steps=2, folder=tmp_path / "file")


def test_a_folder_of_another_model_is_refused(step_fn, start, batches, tmp_path):
    options = {"folder": tmp_path, "progress": False}
    fit(step_fn, start(), batches(), steps=1, config={"width": 4}, **options)
    with pytest.raises(CheckpointError, match="width is 4 there and 8 here"):
        fit(step_fn, start(), batches(), steps=2, config={"width": 8}, **options)


PROGRAM = """
import sys, time
sys.path.insert(0, {here!r})
from conftest import Batches, make_run
from biojax.training import fit

class Slow(Batches):
    def __next__(self):
        time.sleep(0.02)
        return super().__next__()

step, state = make_run()
result = fit(step, state, Slow(), steps=1000000, folder={folder!r})
print("interrupted" if result.interrupted else "finished", result.step)
"""


def test_sigterm_to_a_process(step_fn, start, batches, tmp_path, assert_trees_equal):
    """A process that is told to end exits with 0, and this one can take its run over."""
    code = PROGRAM.format(here=str(Path(__file__).parent), folder=str(tmp_path / "parts"))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "parts" / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    word, done = out.splitlines()[-1].split()
    assert word == "interrupted"
    assert int(done) >= 4
    assert Checkpoints(tmp_path / "parts").steps() == [int(done)]

    options = {"steps": int(done) + 5, "progress": False}
    result = fit(step_fn, start(), batches(), folder=tmp_path / "parts", **options)
    expected = fit(step_fn, start(), batches(), folder=tmp_path / "whole", **options)
    assert_trees_equal(jax.device_get(result.state), jax.device_get(expected.state))
    logs = [list(map(numbers_of, read_log(tmp_path / name))) for name in ("parts", "whole")]
    assert logs[0] == logs[1]
