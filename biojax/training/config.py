"""The options of a run, kept in its folder."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import biojax
from biojax.errors import ConfigError, FileError
from biojax.io.atomic import make_folder, replacing

__all__ = ["keep_config"]


def keep_config(
    folder: str | os.PathLike, config: Mapping[str, Any], *, free: Collection[str] = ()
) -> None:
    """Write config.json, or find that the run in this folder was started with other options.

    Options are compared only where the folder holds a checkpoint: before that there is nothing to
    go on with.

    Args:
      folder: of the run, created if needed.
      config: the options; what JSON does not know, such as a path, is kept as text.
      free: options that may change when the run goes on.

    Raises:
      ConfigError: another option differs; the text says which, and how it was.
      FileError: the folder or the file cannot be written, or the file there is something else.
    """
    folder = make_folder(folder)
    path = folder / "config.json"
    given = json.loads(json.dumps(dict(config), default=str))
    if path.exists() and any(folder.glob("step-*")):
        stored = _read(path)
        for name, value in given.items():
            if name not in free and stored.get(name, value) != value:
                raise ConfigError(
                    str(folder),
                    f"{name}={value!r}, where the run there was started with {stored[name]!r}",
                    "the options it was started with",
                    "Repeat the options of its config.json, or choose another folder",
                )
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps({"biojax": biojax.__version__, **given}, indent=1))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise FileError(
            str(path), f"'{error}'", "the options of a run as JSON", "Choose another folder"
        ) from error
