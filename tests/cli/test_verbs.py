"""Train, predict, evaluate, info and models, from files to files."""

import json
import shutil

import jax
import numpy as np
import pytest
import tifffile

from biojax.cli import main
from biojax.inference import load_segmenter
from biojax.io import read_volume, write_volume

from .conftest import words


def test_a_run_keeps_what_a_reader_needs(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "log.jsonl", "progress.png", "step-00000030", "step-00000060"} <= names
    config = json.loads((run / "config.json").read_text())
    assert config["num_classes"] == 2
    assert config["patch"] == [8, 8, 8]
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    (evaluation,) = [record["evaluation"] for record in records if "evaluation" in record]
    assert evaluation["dice ball"] > 0.7


def test_predict_writes_labels_and_pictures_and_skips_what_is_done(run, volumes, tmp_path, capsys):
    options = {
        "--run": str(run),
        "--inputs": str(volumes / "images"),
        "--out": str(tmp_path / "out"),
        "--truth": str(volumes / "labels"),
    }
    assert main(words("predict", options)) == 0
    assert capsys.readouterr().out.count("voxels/s") == 3
    for i, ending in enumerate(("nii.gz", "ome.tif", "ome.tif")):
        image = read_volume(volumes / "images" / f"case{i}.{ending}")
        truth = read_volume(volumes / "labels" / f"case{i}.{ending}")
        found = read_volume(tmp_path / "out" / f"case{i}.{ending}")
        assert found.spacing == image.spacing == (2.0, 1.0, 1.0)
        both = (found.data == 1) & (truth.data == 1)
        assert 2 * both.sum() / (found.data.sum() + truth.data.sum()) > 0.7
        assert (tmp_path / "out" / f"case{i}.png").read_bytes().startswith(b"\x89PNG")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert main(words("predict", options)) == 0
    assert capsys.readouterr().out.count("done already") == 3
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}

    options = {
        "--predictions": str(tmp_path / "out"),
        "--truth": str(volumes / "labels"),
        "--num-classes": "2",
        "--out": str(tmp_path / "figures.json"),
    }
    # The pictures beside the labels are no cases.
    assert main(words("evaluate", options)) == 0
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert [row["case"] for row in rows] == ["case0", "case1", "case2"]
    assert all(0.7 < row["dice"] <= 1 and row["hd95"] < 10 for row in rows)
    assert "mean/cases" in capsys.readouterr().out


def test_one_bad_image_does_not_stop_the_others(run, volumes, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    shutil.copy(volumes / "images" / "case1.ome.tif", tmp_path / "images")
    whole = (volumes / "images" / "case2.ome.tif").read_bytes()
    (tmp_path / "images" / "bad.ome.tif").write_bytes(whole[: len(whole) // 2])
    options = {
        "--run": str(run),
        "--inputs": str(tmp_path / "images"),
        "--out": str(tmp_path / "out"),
    }
    assert main(words("predict", options)) == 2
    assert (tmp_path / "out" / "case1.ome.tif").exists()
    assert not (tmp_path / "out" / "bad.ome.tif").exists()
    assert "1 of 2 images that failed: bad" in capsys.readouterr().err


def test_labels_that_are_floats_in_the_file_are_measured(volumes, tmp_path, capsys):
    shutil.copytree(volumes / "labels", tmp_path / "floats")
    label = read_volume(tmp_path / "floats" / "case0.nii.gz")
    label = label.replace(data=np.asarray(label.data, np.float32))
    write_volume(tmp_path / "floats" / "case0.nii.gz", label, overwrite=True)
    options = {"--predictions": str(tmp_path / "floats"), "--truth": str(volumes / "labels")}
    assert main(words("evaluate", {**options, "--num-classes": "2"})) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["case", "class", "dice"]


def test_axes_of_images_serve_labels_too_and_nifti_keeps_its_own(volumes, train_options, tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        shutil.copy(volumes / part / "case0.nii.gz", tmp_path / part)
        data = np.asarray(read_volume(volumes / part / "case1.ome.tif").data)
        tifffile.imwrite(tmp_path / part / "case1.tif", data, metadata=None)
    options = {**train_options, "--steps": "1", "--axes": "zyx", "--augment": ""}
    options |= {"--images": str(tmp_path / "images"), "--labels": str(tmp_path / "labels")}
    assert main(words("train", options)) == 0


def test_a_run_moved_elsewhere_goes_on_bit_for_bit(run, run_line, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "step-00000060")
    assert main([str(tmp_path / "moved") if word == str(run) else word for word in run_line]) == 0
    before, after = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (run, tmp_path / "moved")
    )
    assert [r.get("loss", r.get("evaluation")) for r in before] == [
        r.get("loss", r.get("evaluation")) for r in after
    ]
    a, b = (load_segmenter(folder).variables for folder in (run, tmp_path / "moved"))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_models_lists_fields(capsys):
    assert main(["models", "--pattern", "unet"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("unet: ")
    assert "out_channels      required" in out


def test_info_names_versions_and_devices(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for name in ("python", "biojax", "jax ", "flax", "devices", "backend"):
        assert name in out


@pytest.mark.parametrize("verb", ["train", "predict", "evaluate", "info", "models"])
def test_help_reads(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"usage: biojax {verb}" in capsys.readouterr().out
