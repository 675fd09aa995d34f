"""The next frame: the file, the box, the filters, and the default run."""

import importlib.metadata
import io
import struct

import numpy as np
import pytest

from biojax.errors import DataError, DependencyError, FileError, require
from examples import next_frame, ultrasound_clip
from examples.next_frame import CROP, HELD_OUT, SHOWN, NextFrame


def write_clip(path, frames):
    """A file that ends as DICOM files with JPEG frames do."""
    image = require("PIL.Image", "train")
    items = [b""]
    for frame in frames:
        buffer = io.BytesIO()
        image.fromarray(frame).save(buffer, "JPEG", quality=95)
        items.append(buffer.getvalue() + b"\0" * (buffer.tell() % 2))
    tag = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
    body = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    path.write_bytes(b"header" + tag + body + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    return path


@pytest.fixture(scope="module")
def made():
    """A disc that turns about the middle of a picture with a still border."""
    y, x = np.mgrid[:88, :104]
    frames = []
    for t in range(24):
        angle = 2 * np.pi * t / 12
        inside = (y - 44 - 14 * np.sin(angle)) ** 2 + (x - 52 - 14 * np.cos(angle)) ** 2 < 24**2
        frames.append(np.where(inside, 200, 40).astype(np.uint8))
    return np.stack(frames)


def test_frames_are_read_as_they_were_stored(tmp_path, made):
    clip = ultrasound_clip.read_clip(write_clip(tmp_path / "a.dcm", made), 20)
    assert clip.shape == made.shape
    assert clip.dtype == np.float32
    assert np.abs(clip - made / 255).mean() < 0.01


def test_a_damaged_file_is_named(tmp_path, made):
    whole = write_clip(tmp_path / "whole.dcm", made).read_bytes()
    for name, data in {"empty": b"", "cut": whole[: len(whole) // 2], "other": b"x" * 999}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FileError, match=f"{name}: got"):
            ultrasound_clip.read_clip(tmp_path / name, 20)
    with pytest.raises(FileError, match=r"got 3 frames\. Expected 20 or more"):
        ultrasound_clip.read_clip(write_clip(tmp_path / "short", made[:3]), 20)
    sizes = [made[0], made[0][:-8]]
    with pytest.raises(FileError, match=r"a frame of \(80, 104\). Expected frames of one size"):
        ultrasound_clip.read_clip(write_clip(tmp_path / "sizes", sizes), 2)


def test_without_the_wheel_the_command_is_told(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(DependencyError, match="pip install --no-deps pydicom"):
        ultrasound_clip.find_clip()


def test_the_box_holds_what_moves(made):
    _, rows, columns = ultrasound_clip.moving(made / 255, 64, 4)
    changes = made.std(0) > 0
    assert not changes[: rows.start - 3].any()
    assert not changes[rows.stop + 3 :].any()
    assert (rows.stop - rows.start) % 4 == (columns.stop - columns.start) % 4 == 0
    with pytest.raises(DataError, match="0 lines along axis 0 change"):
        ultrasound_clip.moving(np.zeros((5, 80, 80)), 64, 4)


def test_windows_end_before_what_they_lead_to():
    shown, following = ultrasound_clip.windows(np.arange(7.0)[:, None, None], 3)
    assert shown[..., 0, 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert following.ravel().tolist() == [3, 4, 5, 6]


def test_the_filter_finds_a_linear_law():
    """Frames that move by a pixel at a time: the last one, shifted."""
    picture = np.random.default_rng(0).random((16, 40)).astype(np.float32)
    clip = np.stack([picture[:, t : t + 20] for t in range(12)])
    shown, following = ultrasound_clip.windows(clip, SHOWN)
    found = next_frame.filtered(shown[:4], following[:4], shown[4:])
    assert np.abs(found - following[4:])[:, 2:-2, 2:-2].mean() < 0.01
    assert np.abs(shown[4:, -1] - following[4:]).mean() > 0.2
    still = np.repeat(clip[:1], 8, axis=0)
    shown, following = ultrasound_clip.windows(still, SHOWN)
    np.testing.assert_array_equal(next_frame.smoothed(shown, following, shown), following)


def test_scores_by_hand():
    truth = np.random.default_rng(0).random((2, 32, 32))
    mse, psnr, ssim = next_frame.score(truth + 0.1, truth)
    assert (mse, psnr) == pytest.approx((0.01, 20.0))
    assert ssim < 1
    assert next_frame.ssim(truth[0], truth[0]) == pytest.approx(1.0)
    # Two constants: luminance alone.
    flat = np.full((16, 16), 0.5)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert next_frame.ssim(flat, flat / 2) == pytest.approx(expected)


def test_crops_of_image_and_label_agree():
    image = np.arange(80 * 90.0).reshape(1, 80, 90, 1)
    rng = np.random.default_rng(0)
    for _ in range(4):
        sample = next_frame.crop({"image": image, "label": image}, rng)
        np.testing.assert_array_equal(sample["image"], sample["label"])
        assert sample["image"].shape == (1, CROP, CROP, 1)


def test_a_run_leaves_a_report_and_a_picture(tmp_path, made, capsys):
    path = write_clip(tmp_path / "clip.dcm", made)
    config = NextFrame(folder=tmp_path / "run", clip=path, steps=2, batch=2, features=(4,))
    results = next_frame.main(config)
    assert [r.method for r in results][-1] == "convlstm_forecaster"
    assert results[0].parameters == 0
    assert all(0 < r.mse < 0.1 for r in results)
    report = (config.folder / "report.md").read_text()
    assert f"| {results[0].psnr:.2f} " in report
    assert report.count("\n| ") == 6
    assert "one heart" in report
    assert "linear filter" in capsys.readouterr().out
    assert (config.folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in config.folder.iterdir()) == ["picture.png", "report.md"]


@pytest.mark.data
def test_the_real_clip_is_as_described(data_folder):
    clip = ultrasound_clip.read_clip(data_folder / "ultrasound_echo" / "echo.dcm", 20)
    assert clip.shape == (28, 240, 320)  # of 30, two of which are there twice
    _, rows, columns = ultrasound_clip.moving(clip[:-HELD_OUT], CROP, 4)
    assert min(rows.stop - rows.start, columns.stop - columns.start) > 100


@pytest.mark.data
@pytest.mark.slow
def test_the_default_run_beats_repeating_the_last_frame(data_folder, tmp_path):
    path = data_folder / "ultrasound_echo" / "echo.dcm"
    results = {r.method: r for r in next_frame.main(NextFrame(folder=tmp_path, clip=path))}
    assert results["convlstm_forecaster"].mse < results["last frame"].mse
