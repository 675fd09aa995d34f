"""Checksums of a folder's files: the last thing written, and the proof that all of it is there."""

import hashlib
import json
import os
from pathlib import Path

__all__ = ["damage", "flush_folder", "write_manifest"]

_NAME = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Force every file of a folder to the disk, and then list their SHA-256 in manifest.json."""
    sums = _checksums(folder, flush=True)
    with (folder / _NAME).open("w") as file:
        json.dump({"sha256": sums}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder's files, or None. No path that the manifest names is opened."""
    try:
        expected = json.loads((folder / _NAME).read_text())["sha256"]
        found = _checksums(folder)
        names = sorted({*expected, *found})
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_NAME} cannot be read: {error!r}"
    for name in names:
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} was added"
        if found[name] != expected[name]:
            return f"{name} is not as it was written"
    return None


def flush_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, so that a rename survives a loss of power."""
    if os.name != "posix":  # a folder cannot be opened elsewhere
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksums(folder: Path, *, flush: bool = False) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != _NAME:
            with path.open("rb") as file:
                if flush:
                    os.fsync(file.fileno())
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
