"""Files written whole or not at all, and the folders they go to."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from biojax.errors import FileError, nearest

__all__ = ["make_folder", "replacing"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Write to a temporary file in the same folder, and rename it once it is whole.

    The block gets a path that does not exist yet and must create a file there. If the block ends
    without an error, the file is flushed to disk and takes the place of `path` in one step
    (`os.replace`); if it raises, the temporary file is removed and `path` is as it was.

    Args:
      path: the file to write. Its folder must exist.
      overwrite: whether a file already at `path` may be replaced.

    Yields:
      A hidden path `.partial-<random>-<name>` beside `path`, with the same extension.

    Raises:
      FileError: the folder does not exist or takes no files, `path` is a folder, a file is there
        and `overwrite` is False, or the disk is full. Other errors of the block pass unchanged.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> (folder / "a.txt").read_text()
    'whole'
    >>> with replacing(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("again")
    Traceback (most recent call last):
    ...
    biojax.errors.FileError: ...a.txt: got a file that exists already. ...
    """
    path = Path(path)
    _refuse(path, overwrite)
    temporary = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _refuse(path, overwrite)  # the block may have run for hours
        os.replace(temporary, path)
    except OSError as error:
        own = str(temporary) in (error.filename, error.filename2) or error.errno in _NO_ROOM
        if not own and not str(error).endswith(" written"):  # numpy's way to say a full disk
            raise
        raise FileError(
            str(path),
            f"'{error.strerror or error}' while writing",
            "a folder that takes the file",
            "Free space there, check its permissions, or write elsewhere",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike) -> Path:
    """Create a folder, and those above it, where they are missing.

    Raises:
      FileError: it cannot be created, or a file has its name.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            str(folder), f"'{error.strerror}'", "a folder to write in", "Choose another one"
        ) from error
    return folder


def _refuse(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise FileError(
            str(path),
            f"the folder {path.parent}, which does not exist",
            "a folder to write in",
            "Create it first",
            _nearest_folder(path.parent),
        )
    if path.is_dir():
        raise FileError(str(path), "a folder", "the name of a file", "Add a file name to it")
    if not overwrite and os.path.lexists(path):
        raise FileError(
            str(path),
            "a file that exists already",
            "a path that is free",
            "Choose another name, or pass overwrite=True",
        )


def _nearest_folder(folder: Path) -> str | None:
    if not folder.parent.is_dir():
        return None
    return nearest(folder.name, [entry.name for entry in folder.parent.iterdir() if entry.is_dir()])
