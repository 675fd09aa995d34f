import json

import jax.numpy as jnp
import pytest

from biojax.errors import DataError
from biojax.training.log import Log


class Running(float):
    """The metric of a step that is still running."""

    def is_ready(self):
        return False


def metrics(loss, norm=1.0):
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(norm)}


def make_log(path=None, step=0, every=1, shown=None):
    return Log(path, step, every=every, show=lambda *numbers: (shown or []).append(numbers))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_is_the_mean_of_its_steps(tmp_path):
    path, shown = tmp_path / "log.jsonl", [()]
    log = make_log(path, every=2, shown=shown)
    for step, loss in enumerate([4.0, 2.0, 1.0], start=1):
        log.add(step, metrics(loss), voxels=100)
    assert [record["step"] for record in log.records] == [2]
    with log.paused():
        text = log.add_evaluation(3, {"dice": 0.5, "dice_1": float("nan")})
    assert text == "step 3: dice 0.5"
    first, second, evaluation = lines(path)
    assert (first["step"], first["loss"], first["grad_norm"]) == (2, 3.0, 1.0)
    assert (second["step"], second["loss"]) == (3, 1.0)
    assert first["voxels_per_second"] == pytest.approx(100 * first["steps_per_second"])
    assert 0 < first["seconds"] < second["seconds"] < evaluation["seconds"]
    assert evaluation["evaluation"] == {"dice": 0.5, "dice_1": None}
    assert log.evaluated(3)
    assert not log.evaluated(2)
    assert [numbers[:2] for numbers in shown[1:]] == [(1, 4.0), (2, 2.0), (3, 1.0)]


def test_records_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    log = make_log(path)
    for step in range(1, 6):
        log.add(step, metrics(step), voxels=1)
    with log.paused():
        log.add_evaluation(5, {"dice": 1.0})
    with path.open("a") as file:
        file.write('[1]\nnot JSON\n{"step": 3, "lo')  # cut off by a kill
    log = make_log(path, step=3)
    assert [record["step"] for record in log.records] == [1, 2, 3]
    assert lines(path) == log.records
    assert not log.evaluated(5)
    before = log.records[-1]["seconds"]
    log.add(4, metrics(1), voxels=1)
    with log.paused():
        pass
    assert log.records[-1]["seconds"] > before
    assert [record["step"] for record in lines(path)] == [1, 2, 3, 4]


def test_a_step_that_runs_is_not_waited_for():
    shown = [()]
    log = make_log(shown=shown)
    log.add(1, {"loss": Running(4.0)}, voxels=1)
    assert len(shown) == 1
    log.add(2, {"loss": Running(2.0)}, voxels=1)
    assert [numbers[:2] for numbers in shown[1:]] == [(1, 4.0)]
    with log.paused():
        assert [record["loss"] for record in log.records] == [4.0, 2.0]
    log.add(3, {"loss": Running("nan")}, voxels=1)
    with pytest.raises(DataError, match="step 3"):
        log.add(4, {"loss": Running(1.0)}, voxels=1)


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_what_is_not_finite_stops_the_run(tmp_path, loss, norm):
    path = tmp_path / "log.jsonl"
    log = make_log(path, every=10)
    log.add(6, metrics(1.0), voxels=1)
    name = "loss nan" if loss != loss else "grad_norm inf"
    with pytest.raises(DataError, match=rf"got {name} at step 7.*Lower the learning rate"):
        log.add(7, metrics(loss, norm), voxels=1)
    (record,) = lines(path)
    assert record["step"] == 7
    assert record["loss" if loss != loss else "grad_norm"] is None
