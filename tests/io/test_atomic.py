"""Files are written whole or not at all."""

import errno

import pytest

from biojax.errors import FileError
from biojax.io.atomic import replacing


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.ome.tif"
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("-a.ome.tif")
        temporary.write_bytes(b"1234")
        assert not path.exists()
    assert path.read_bytes() == b"1234"
    assert [file.name for file in tmp_path.iterdir()] == ["a.ome.tif"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path, overwrite=True) as temporary:  # noqa: PT012
        temporary.write_bytes(b"ne")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_overwrite_must_be_asked_for(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(FileError, match="exists already"), replacing(path):
        pytest.fail("the block must not run")
    with replacing(path, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(FileError, match="exists already"), replacing(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"mine")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_dangling_link_is_in_the_way(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileError, match="exists already"), replacing(tmp_path / "link"):
        pytest.fail("the block must not run")


def test_a_missing_folder_and_a_folder_are_refused(tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(FileError, match="Did you mean 'results'"), replacing(tmp_path / "reslts/a"):
        pytest.fail("the block must not run")
    with pytest.raises(FileError, match="got a folder"), replacing(tmp_path / "results"):
        pytest.fail("the block must not run")


def test_a_full_disk_is_told_and_other_errors_pass(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(FileError, match="No space left"), replacing(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"1")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ConnectionResetError), replacing(path):
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")
    with pytest.raises(FileError, match="No such file"), replacing(path):
        pass  # nothing was written
    assert list(tmp_path.iterdir()) == []
