"""Every mistake ends in one clear message and exit code 2, and nothing already written is lost."""

import shutil
import struct

import nibabel
import numpy as np
import pytest
import tifffile

from biojax.cli import main
from biojax.io import Volume, write_volume

from .conftest import words


@pytest.fixture
def check_mistake(capsys):
    """Run a line that must fail: the message, of which there is exactly one and no traceback."""

    def run(line: list[str], *parts: str) -> str:
        assert main(line) == 2
        err = capsys.readouterr().err
        assert err.startswith("biojax: ")
        assert len(err.strip().splitlines()) == 1
        assert "Traceback" not in err
        for part in ("got ", "Expected ", *parts):
            assert part in err
        return err

    return run


@pytest.fixture
def predict(run, tmp_path):
    """The line that segments one file."""

    def line(path, *more: str) -> list[str]:
        options = {"--run": str(run), "--inputs": str(path), "--out": str(tmp_path / "out")}
        return [*words("predict", options), *more]

    return line


def test_a_wrong_path(check_mistake, predict, volumes):
    check_mistake(predict(volumes / "images" / "case9.ome.tif"), "case9.ome.tif")


def test_a_truncated_tiff(check_mistake, predict, volumes, tmp_path):
    whole = (volumes / "images" / "case1.ome.tif").read_bytes()
    (tmp_path / "cut.ome.tif").write_bytes(whole[:-1000])
    check_mistake(predict(tmp_path / "cut.ome.tif"), "cut.ome.tif")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tiff_that_claims_70_gib(check_mistake, predict, tmp_path):
    path = tmp_path / "huge.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages.first.tags
        places = [tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
        sizes = [tags[name].dtype for name in ("ImageWidth", "ImageLength")]
    for place, dtype in zip(places, sizes, strict=True):
        struct.pack_into(
            "<I" if dtype == 4 else "<H", data, place, 270_000 if dtype == 4 else 65_535
        )
    path.write_bytes(data)
    check_mistake(predict(path), "huge.tif")


def test_axes_that_do_not_match(check_mistake, predict, tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((12, 14, 16), np.uint16), metadata=None)
    check_mistake(predict(tmp_path / "stack.tif"), "axes=")
    check_mistake(predict(tmp_path / "stack.tif", "--axes", "yx"), "axes")


def test_an_affine_with_nan(check_mistake, predict, tmp_path):
    header = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    header.header["srow_x"][1] = np.nan
    header.header["sform_code"] = 1
    nibabel.save(header, tmp_path / "nan.nii")
    raw = bytearray((tmp_path / "nan.nii").read_bytes())
    raw[280 + 4 : 280 + 8] = struct.pack("<f", np.nan)
    (tmp_path / "nan.nii").write_bytes(raw)
    check_mistake(predict(tmp_path / "nan.nii"), "nan")


def test_a_label_outside_of_the_classes(check_mistake, train_options, volumes, tmp_path):
    shutil.copytree(volumes / "labels", tmp_path / "labels")
    label = np.full((12, 14, 16), 7, np.uint8)
    write_volume(
        tmp_path / "labels" / "case1.ome.tif",
        Volume(label, "zyx", affine=np.diag([2.0, 1, 1, 1])),
        overwrite=True,
    )
    line = words("train", {**train_options, "--labels": str(tmp_path / "labels")})
    check_mistake(line, "case1", "7")


def test_an_unknown_model(check_mistake, train_options):
    check_mistake(words("train", {**train_options, "--model": "unett"}), "Did you mean 'unet'?")


def test_an_unknown_field(check_mistake, train_options):
    line = words("train", {**train_options, "--fields": '{"featurs": [4, 8]}'})
    check_mistake(line, "Did you mean 'features'?")


def test_fields_that_are_not_json(check_mistake, train_options):
    check_mistake(words("train", {**train_options, "--fields": "{features: 4}"}), "JSON")


def test_a_run_is_not_continued_with_other_options(check_mistake, run, train_options):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    line = words("train", {**train_options, "--folder": str(run)})
    check_mistake(line, "started with")
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_run_is_not_continued_on_other_cases(check_mistake, run, run_line, volumes, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    for part in ("images", "labels"):
        shutil.copytree(volumes / part, tmp_path / part)
        (tmp_path / part / "case2.ome.tif").unlink()
    line = [str(tmp_path / "moved") if word == str(run) else word for word in run_line]
    line[line.index("--images") + 1] = str(tmp_path / "images")
    line[line.index("--labels") + 1] = str(tmp_path / "labels")
    check_mistake(line, "cases=['case0', 'case1']")


def test_a_config_that_is_no_object(check_mistake, run, run_line, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    (tmp_path / "moved" / "config.json").write_text("[1]")
    line = [str(tmp_path / "moved") if word == str(run) else word for word in run_line]
    check_mistake(line, "config.json")


def test_a_checkpoint_of_another_architecture(check_mistake, run, train_options, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run / "step-00000060", folder / "step-00000060")
    fields = '{"features": [4, 4, 8], "num_convs": 1}'
    line = words("train", {**train_options, "--fields": fields, "--steps": "80"})
    check_mistake(line, "features")
    assert (folder / "step-00000060" / "manifest.json").exists()


def flip_a_bit(step) -> None:
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_a_flipped_bit_in_the_only_checkpoint(check_mistake, predict, run, volumes, tmp_path):
    shutil.copytree(run / "step-00000060", tmp_path / "broken" / "step-00000060")
    flip_a_bit(tmp_path / "broken" / "step-00000060")
    line = predict(volumes / "images" / "case1.ome.tif")
    line[line.index(str(run))] = str(tmp_path / "broken")
    with pytest.warns(UserWarning, match="step 60 .* damaged"):
        check_mistake(line, "damaged")


def test_a_flipped_bit_falls_back_to_the_step_before(predict, run, volumes, tmp_path):
    shutil.copytree(run, tmp_path / "broken")
    flip_a_bit(tmp_path / "broken" / "step-00000060")
    line = predict(volumes / "images" / "case1.ome.tif")
    line[line.index(str(run))] = str(tmp_path / "broken")
    with pytest.warns(UserWarning, match="step 60 .* damaged"):
        assert main(line) == 0
    assert (tmp_path / "out" / "case1.ome.tif").exists()


def test_a_folder_that_is_no_run(check_mistake, predict, volumes, run, tmp_path):
    line = predict(volumes / "images" / "case1.ome.tif")
    line[line.index(str(run))] = str(tmp_path / "nothing")
    check_mistake(line, "no checkpoint")


def test_debug_shows_the_traceback(predict, volumes, capsys):
    assert main([*predict(volumes / "images" / "case9.ome.tif"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_option_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["models", "--patern", "unet"])
    assert stop.value.code == 2


def test_results_do_not_go_among_the_images(check_mistake, run, volumes, tmp_path):
    shutil.copytree(volumes, tmp_path / "copy")
    folder = tmp_path / "copy" / "images"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    options = {"--run": str(run), "--inputs": str(folder), "--out": str(folder)}
    check_mistake(words("predict", options), "nothing is read from")
    options["--inputs"] = str(folder / "case0.nii.gz")
    check_mistake(words("predict", options), "nothing is read from")
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_a_truth_of_another_shape_is_found_before_the_work(
    check_mistake, predict, volumes, tmp_path
):
    (tmp_path / "truth").mkdir()
    label = Volume(np.zeros((4, 4, 4), np.uint8), "zyx")
    write_volume(tmp_path / "truth" / "case1.ome.tif", label)
    line = predict(volumes / "images" / "case1.ome.tif", "--truth", str(tmp_path / "truth"))
    check_mistake(line, "case1")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_prediction_that_lies_elsewhere(check_mistake, volumes, tmp_path):
    shutil.copytree(volumes / "labels", tmp_path / "moved")
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    affine[0, 3] = 50.0
    label = Volume(np.ones((12, 14, 16), np.uint8), "zyx", affine=affine)
    write_volume(tmp_path / "moved" / "case1.ome.tif", label, overwrite=True)
    options = {"--predictions": str(tmp_path / "moved"), "--truth": str(volumes / "labels")}
    check_mistake(words("evaluate", {**options, "--num-classes": "2"}), "case1")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("--steps", "0", "steps=0"),
        ("--num-classes", "1", "num_classes=1"),
        ("--fields", '{"features": 16}', "features=16"),
        ("--fields", '{"dtype": "float99"}', "float99"),
        ("--fields", '{"num_convs": 0}', "num_convs=0"),
        ("--intensity", "zscor", "Did you mean"),
        ("--class-names", "only", "1 class names"),
        ("--val-images", "somewhere", "--val-labels"),
    ],
)
def test_options_that_cannot_be_meant(check_mistake, train_options, name, value, said):
    check_mistake(words("train", {**train_options, name: value}), said)


def test_a_first_step_that_fails_does_not_lock_the_folder(check_mistake, train_options):
    line = words("train", {**train_options, "--batch": "2", "--accumulate": "3"})
    check_mistake(line, "a multiple of 3")
    line = words("train", {**train_options, "--batch": "4", "--accumulate": "3"})
    check_mistake(line, "a multiple of 3")
