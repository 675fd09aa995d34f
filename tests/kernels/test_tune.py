"""Measuring implementations: the fastest is chosen from then on, here and in other processes."""

import json
import os
import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from biojax.errors import ConfigError, FileError
from biojax.kernels import attention, conv, explain, linear_scan, max_pool, measured, tune
from biojax.kernels.measured import Row

X, W = (
    jax.ShapeDtypeStruct((1, 6, 5, 3), jnp.float32),
    jax.ShapeDtypeStruct((3, 3, 3, 2), "float32"),
)
RULE = ("conv", "xla", "2-D and small, on CPU")


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch):
    """What a test measures ends with it."""
    monkeypatch.delenv(measured.VARIABLE, raising=False)
    measured._kept.cache_clear()
    before = measured._table.value
    measured._table.set_global(None)
    yield
    measured._table.set_global(before)
    measured._kept.cache_clear()


@pytest.fixture
def slow(monkeypatch):
    """Times as given, so that the winner is known."""

    def give(**seconds):
        found = {name: (each / 2, each) for name, each in seconds.items()}
        monkeypatch.setattr(sys.modules["biojax.kernels.tune"], "_seconds", lambda *_: found)

    return give


def test_labels_have_no_gradient_to_measure():
    row = tune(max_pool, jnp.arange(8).reshape(1, 8, 1), 2, budget=0.0)
    assert "xla" in row.seconds
    assert all(forward > 0 and both > 0 for forward, both in row.seconds.values())


def test_measures_what_can_do_the_call():
    row = tune(conv, X, W, strides=2, budget=0.0)
    assert set(row.seconds) == {
        "xla",
        "planes",
        "patches",
        "grouped",
        "fft",
    }  # Winograd's has no stride
    assert all(forward > 0 and both > 0 for forward, both in row.seconds.values())
    assert row.implementation == min(row.seconds, key=lambda name: row.seconds[name][1])
    assert row.call.startswith("conv(float32[1,6,5,3], float32[3,3,3,2], Geometry(strides=(2, 2),")
    (choice,) = explain(conv, X, W, strides=2)
    assert (choice.implementation, choice.reason) == (row.implementation, row.reason)
    assert explain(conv, X, W) == [RULE]  # another call


def test_the_fastest_is_chosen_from_then_on(slow):
    slow(xla=0.004, planes=0.003, winograd=0.001, grouped=0.002)
    row = tune(conv, X, W)
    assert row.implementation == "winograd"
    assert row.reason == "measured here: 1 ms with gradients, grouped 2 ms"
    assert explain(conv, X, W) == [
        ("conv", "winograd", "measured here: 1 ms with gradients, grouped 2 ms")
    ]
    same = explain(conv, X, W, padding=1)  # "SAME" in other words
    assert same[0].implementation == "winograd"
    for other in (
        {"implementation": "xla"},
        {"precision": "highest"},
        {"padding": "VALID"},
    ):
        assert "measured" not in explain(conv, X, W, **other)[0].reason
    lines = str(row).splitlines()
    assert lines[0] == row.call
    assert [line.split()[0] for line in lines[1:]] == ["winograd", "grouped", "planes", "xla"]


def test_a_precision_has_several_names_and_a_default(slow):
    slow(xla=4.0, planes=1.0)
    row = tune(conv, X, W, precision="highest")
    for same in ("float32", lax.Precision.HIGHEST, ("highest", "float32")):
        assert explain(conv, X, W, precision=same)[0].reason == row.reason
    for other in (None, "default", "high", ("highest", "high")):
        assert "measured" not in explain(conv, X, W, precision=other)[0].reason
    tune(conv, X, W)
    assert explain(conv, X, W)[0].reason == row.reason
    with jax.default_matmul_precision("highest"):
        assert "measured" not in explain(conv, X, W)[0].reason


def test_the_only_one_is_against_none():
    alone = Row("cpu", "some, 2 cores", "0", "conv()", "xla", {"xla": (1.0, 2.0)})
    assert alone.reason == "measured here: 2e+03 ms with gradients"


def test_functions_compiled_before_are_compiled_anew(slow):
    slow(xla=4.0, planes=1.0, winograd=2.0, grouped=3.0)
    traced = []

    @jax.jit
    def run(x, w):
        traced.append(explain(conv, X, W)[0].implementation)
        return conv(x, w)

    x, w = jnp.ones(X.shape), jnp.ones(W.shape)
    before = run(x, w)
    tune(conv, x, w)
    after = run(x, w)
    assert traced == ["xla", "planes"]
    assert jnp.allclose(before, after, rtol=1e-5)


def test_a_row_is_for_one_device_and_version(slow, monkeypatch):
    slow(xla=4.0, planes=1.0, winograd=2.0, grouped=3.0)
    row = tune(conv, X, W)
    for field in ("platform", "device", "jax"):
        measured._table.set_global(None)
        measured.publish([row._replace(**{field: "other"})])
        assert explain(conv, X, W) == [RULE]
    measured.publish([row])
    assert explain(conv, X, W)[0].implementation == "planes"


def test_arrays_without_gradient():
    mask = jnp.tril(jnp.ones((4, 4), bool))
    row = tune(
        attention, *[jax.ShapeDtypeStruct((1, 4, 2, 8), jnp.float32)] * 3, None, mask, budget=0.0
    )
    assert set(row.seconds) == {"xla", "blocked"}


def test_several_outputs_and_options():
    b = jnp.ones((2, 5, 3))
    row = tune(linear_scan, jnp.full(3, 0.5), b, reverse=True, budget=0.0)
    assert set(row.seconds) == {"sequential", "associative", "chunked"}
    assert explain(linear_scan, jnp.full(3, 0.5), b, reverse=True)[0].reason == row.reason


@pytest.mark.parametrize(
    ("function", "options", "got"),
    [
        (lambda x, w: conv(conv(x, w), w[:, :, :2]), {}, "a call of 2 kernels"),
        (lambda x, w: x, {}, "a call of 0 kernels"),
        (conv, {"implementation": "xla"}, "implementation='xla'"),
    ],
)
def test_one_kernel_at_a_time(function, options, got):
    with pytest.raises(ConfigError, match=f"tune: got .*{got}.*Expected one kernel"):
        tune(function, X, W, **options)


def test_a_file_keeps_rows(slow, tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    monkeypatch.setenv(measured.VARIABLE, str(path))  # not there yet
    slow(xla=4.0, planes=1.0, winograd=2.0, grouped=3.0)
    first = tune(conv, X, W)
    slow(xla=1.0, planes=2.0, grouped=3.0)
    second = tune(conv, X, W, strides=2)
    assert measured.read(path) == [first, second]
    slow(xla=4.0, planes=3.0, winograd=2.0, grouped=1.0)
    again = tune(conv, X, W)
    assert measured.read(path) == [second, again]
    assert again.implementation == "grouped"
    assert [file.name for file in tmp_path.iterdir()] == ["tuned.json"]
    elsewhere = tune(conv, X, W, padding="VALID", path=tmp_path / "other.json")
    assert measured.read(tmp_path / "other.json") == [elsewhere]
    assert explain(conv, X, W)[0].implementation == "grouped"


PROBE = """
import jax
from biojax.kernels import conv, explain
x = jax.ShapeDtypeStruct((1, 6, 5, 3), "float32"), jax.ShapeDtypeStruct((3, 3, 3, 2), "float32")
print(explain(conv, *x)[0])
"""


def test_another_process_reads_the_file_that_the_environment_names(slow, tmp_path):
    slow(xla=0.004, planes=0.001, winograd=0.002, grouped=0.003)
    tune(conv, X, W, path=tmp_path / "tuned.json")
    environment = {**os.environ, measured.VARIABLE: str(tmp_path / "tuned.json")}
    run = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "conv: planes (measured here: 1 ms with gradients, winograd 2 ms)\n"


def row(**fields) -> dict:
    good = Row("cpu", "some, 2 cores", "0", "conv()", "xla", {"xla": (1.0, 2.0)})
    return {**good._asdict(), **fields}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        '{"format": 2, "rows": []}',
        '{"format": 1}',
        '{"format": 1, "rows": 3}',
        "[" * 100_000,
        "\xff\x00",
        json.dumps({"format": 1, "rows": [{"platform": "cpu"}]}),
        json.dumps({"format": 1, "rows": [row(more=1)]}),
        json.dumps({"format": 1, "rows": [row(call=["conv"])]}),
        json.dumps({"format": 1, "rows": [row(implementation="planes")]}),
        json.dumps({"format": 1, "rows": [row(seconds={"xla": 1.0})]}),
        json.dumps({"format": 1, "rows": [row(seconds=[["xla", 1.0]])]}),
        json.dumps({"format": 1, "rows": [row(seconds={"xla": [1.0, float("nan")]})]}),
        json.dumps({"format": 1, "rows": [row(seconds={"xla": [1.0, -1.0]})]}),
    ],
)
def test_a_damaged_file_is_an_error_and_stays(content, tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(FileError, match=r"tuned\.json: got '.*a table that `tune` wrote"):
        tune(conv, X, W, path=path)
    assert path.read_text(encoding="latin-1") == content
    monkeypatch.setenv(measured.VARIABLE, str(path))
    with pytest.raises(FileError, match="delete this one and tune again"):
        explain(conv, X, W)


def test_a_missing_or_huge_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path / "nothing.json"))
    with pytest.raises(FileError, match="FileNotFoundError"):
        explain(conv, X, W)
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(measured.LARGEST + 1)
    with pytest.raises(FileError, match=f"{measured.LARGEST + 1} bytes"):
        tune(conv, X, W, path=huge)


def test_a_row_cannot_name_what_does_not_exist(slow):
    slow(xla=4.0, planes=1.0, winograd=2.0, grouped=3.0)
    found = tune(conv, X, W)
    measured.publish([found._replace(implementation="plane", seconds={"plane": (1.0, 1.0)})])
    with pytest.raises(ConfigError, match="Did you mean 'planes'"):
        explain(conv, X, W)


def test_a_folder_that_takes_no_file(slow, tmp_path):
    slow(xla=4.0, planes=1.0, winograd=2.0, grouped=3.0)
    with pytest.raises(FileError, match="while writing"):
        tune(conv, X, W, path=tmp_path / "missing" / "tuned.json")
    path = tmp_path / "tuned.json"
    tune(conv, X, W, path=path)
    assert not stat.S_IMODE(path.stat().st_mode) & stat.S_IXUSR
