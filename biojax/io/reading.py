"""Paths to read from, and failures told as one error that names the path."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from biojax.errors import BiojaxError, FileError, nearest

__all__ = ["existing_file", "telling"]


def existing_file(path: str | os.PathLike) -> Path:
    """The path, if there is a regular file.

    Raises:
      FileError: there is none (the nearest name in its folder is offered), or it is a folder.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        raise FileError(str(path), "a folder", "a file", "Name one of the files in it")
    if path.exists():
        raise FileError(str(path), "no regular file", "a file", "Copy its contents to a file")
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise FileError(
        str(path),
        "a path where nothing is",
        "a file",
        f"Check the name; the folder {path.parent} {'exists' if names else 'is missing or empty'}",
        nearest(path.name, names),
    )


@contextlib.contextmanager
def telling(path: str, kind: str = "image") -> Iterator[None]:
    """Tell whatever goes wrong in the block as one `BiojaxError` that names the path.

    Files come from outside, and a hostile one can make any reader fail in any way.
    """
    try:
        yield
    except BiojaxError as error:
        if error.where.startswith(path):
            raise
        raise FileError(path, error.got, error.expected, error.fix, error.nearest) from error
    except Exception as error:
        raise FileError(
            path,
            f"'{type(error).__name__}: {error}'",
            f"a whole {kind} file",
            "The file is damaged, cut short or something else: copy it again from its source",
        ) from error
