"""Infrared spectra: the file, the split without twins, the rules, and the default run."""

import importlib.metadata

import numpy as np
import pytest

from biojax.errors import ConfigError, DataError, DependencyError, FileError
from biojax.models import create_model
from examples import classify_planes, classify_spectra
from examples.classify_spectra import MARGIN, TWIN, Spectra, distances, split

T = 18


def _write(path, spectra, names):
    rows = [["type", *map(str, 1800 - 4 * np.arange(T))], ["d"] + ["c"] * T, ["class"]]
    rows += [[name, *map(str, x)] for name, x in zip(names, spectra, strict=True)]
    path.write_text("\n".join(map(",".join, rows)) + "\n")
    return path


@pytest.fixture(scope="module")
def made():
    """Two classes, a rising and a falling line under noise; the first row is there twice."""
    rng = np.random.default_rng(0)
    slope = np.repeat([1.0, -1.0], 16)
    spectra = 5 + slope[:, None] * np.linspace(-1, 1, T) + rng.normal(0, 0.3, (32, T))
    spectra[9] = 2 * spectra[0] + 1
    return spectra, np.repeat(["up", "down"], 16)


def test_the_file_is_read_and_each_spectrum_standardised(tmp_path, made):
    spectra, names = made
    wavenumbers, x, read = classify_spectra.read_spectra(_write(tmp_path / "a.csv", spectra, names))
    np.testing.assert_array_equal(wavenumbers, 1800 - 4 * np.arange(T))
    np.testing.assert_array_equal(read, names)
    expected = (spectra - spectra.mean(1, keepdims=True)) / spectra.std(1, keepdims=True)
    np.testing.assert_allclose(x[..., 0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["", "type,1\nd,c\nclass\n", "type,1,2\nd,c,c\nclass\na,1\n", "t,1\nd,c\nclass\na,b\n"]
)
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "spectra.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=r"spectra\.csv"):
        classify_spectra.read_spectra(path)


def test_without_the_wheel_the_command_is_told(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(DependencyError, match="pip install --no-deps orange-spectroscopy"):
        classify_spectra.find_csv()
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    with pytest.raises(DependencyError, match="--csv PATH"):
        classify_spectra.find_csv()


def test_twins_of_held_out_spectra_are_not_trained_on(made):
    spectra, names = made
    x = (spectra - spectra.mean(1, keepdims=True)) / spectra.std(1, keepdims=True)
    labels = (names == "up").astype(int)
    training, held_out = split(x, labels, 1)
    np.testing.assert_array_equal(np.flatnonzero(held_out), [0, 1, 2, 3, 16, 17, 18, 19])
    assert not training[9], "it is row 0 in another scale"
    assert training.sum() == 32 - 8 - 1
    training, _ = split(x, labels, 4)
    assert training[[0, 9]].all()


@pytest.mark.parametrize("quarter", [0, 5])
def test_quarters_count_from_1_to_4(made, quarter):
    with pytest.raises(ConfigError, match="1 to 4"):
        split(made[0], np.zeros(32, int), quarter)


def test_each_class_must_be_in_both_parts(made):
    with pytest.raises(DataError, match="1 classes to train on"):
        split(made[0], np.zeros(32, int), 1)
    with pytest.raises(DataError, match="0 classes to train on"):
        split(np.ones((8, 3)), np.repeat([0, 1], 4), 1)


def test_distances_by_hand():
    np.testing.assert_allclose(distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])), 12.5**0.5)


@pytest.mark.parametrize("rule", ["nearest_mean", "nearest_spectrum", "logistic_regression"])
def test_rules_tell_lines_apart(rule):
    x = np.array([[0, 1], [0, 2], [1, 0], [2, 0]], float)[..., None]
    unseen = np.array([[5, 0], [0, 5]], float)[..., None]
    answers = getattr(classify_spectra, rule)(x, np.array([0, 0, 1, 1]), unseen)
    np.testing.assert_array_equal(answers, [1, 0])


def test_a_run_leaves_a_report_and_a_picture(monkeypatch, tmp_path, made, capsys):
    model = create_model(
        "rnn_encoder_decoder", num_classes=2, num_steps=2, patch_size=9, features=4
    )
    monkeypatch.setattr(classify_spectra, "create_models", lambda num_classes: {"small": model})
    path = _write(tmp_path / "a.csv", *made)
    config = Spectra(folder=tmp_path / "run", csv=path, quarter=2, steps=60, batch=8, lr=2e-2)
    *rules, result = classify_spectra.main(config)
    assert [r.accuracy for r in rules] == [1.0] * 3, "lines of opposite slope"
    assert result.accuracy > result.chance == 0.5
    report = (config.folder / "report.md").read_text()
    assert f"| small               | {result.accuracy:.3f}" in report
    assert report.count("\n| ") == 6
    assert "The aim of training" in capsys.readouterr().out
    assert (config.folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_mistake_is_one_message_and_code_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--csv", str(tmp_path / "no.csv")])
    with pytest.raises(SystemExit) as exit:
        classify_planes.run(classify_spectra.main, Spectra, "classify_spectra")
    assert exit.value.code == 2
    assert "Expected a file" in capsys.readouterr().err


@pytest.mark.data
def test_the_real_file_is_as_described(data_folder):
    path = data_folder / "spectra_ftir" / "collagen.csv"
    wavenumbers, x, names = classify_spectra.read_spectra(path)
    assert x.shape == (731, 234, 1)
    np.testing.assert_allclose(wavenumbers[[0, -1]], [1801.264, 902.5606])
    assert len(np.unique(x[..., 0], axis=0)) == 731 - 21
    classes, labels = np.unique(names, return_inverse=True)
    assert dict(zip(classes, np.bincount(labels), strict=True)) == {
        "DNA": 110,
        "collagen": 195,
        "glycogen": 212,
        "lipids": 214,
    }
    between = distances(x[..., 0], x[..., 0])
    np.fill_diagonal(between, np.inf)
    assert 0.04 < np.median(between.min(1)) < 0.05
    assert np.mean(labels[between.argmin(1)] == labels) == pytest.approx(0.986, abs=2e-3)
    training, held_out = split(x[..., 0], labels, 1)
    assert (training.sum(), held_out.sum()) == (366, 184)
    assert between[training][:, held_out].min() >= TWIN
    answers = classify_spectra.nearest_mean(x[training], labels[training], x[held_out])
    assert np.mean(answers == labels[held_out]) == pytest.approx(0.707, abs=0.02)


@pytest.mark.data
@pytest.mark.slow
def test_the_default_run_beats_chance_by_the_stated_margin(data_folder, tmp_path):
    path = data_folder / "spectra_ftir" / "collagen.csv"
    results = classify_spectra.main(Spectra(folder=tmp_path, csv=path))
    assert len(results) == 8
    trained = [r for r in results if r.parameters]
    assert all(r.accuracy - r.chance >= MARGIN for r in trained)
