"""Checkpoints: Orbax for the arrays, and around it what makes a checkpoint safe to rely on.

A step is a folder of its own:

    step-00000100/
      arrays/        every array of the state, written by Orbax
      tree.json      name, shape and dtype of each array
      config.json    the model's configuration
      data.json      where the data iterator stood
      manifest.json  SHA-256 of every other file, written last: the commit

It is written under a name that ends in `.partial`, and renamed when it is whole.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from biojax.errors import CheckpointError, ConfigError
from biojax.training.manifest import damage, flush_folder, write_manifest

__all__ = ["Checkpoints", "to_json"]

Tree = TypeVar("Tree")
_STEP = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"step-\d{8,}\.partial")


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
      folder: where the steps are; the first `save` creates it.
      keep: how many steps to keep, the newest ones; None for all.

    Raises:
      ConfigError: `keep` is below 1.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int | None = 3):
        if keep is not None and keep < 1:
            raise ConfigError("Checkpoints", f"keep={keep}", "1 or more", "Use None to keep all")
        self.folder, self.keep = Path(folder).absolute(), keep

    def steps(self) -> list[int]:
        """The steps that were written to their end, in order. They are not verified here."""
        matches = [_STEP.fullmatch(entry.name) for entry in self._entries()]
        return sorted(int(match[1]) for match in matches if match)

    def clean(self) -> None:
        """Remove what interrupted saves left behind. Only for the process that saves here."""
        for entry in self._entries():
            if _PARTIAL.fullmatch(entry.name) and not entry.is_symlink():
                shutil.rmtree(entry)

    def save(self, step: int, state: Any, *, config: Any = None, data_state: Any = None) -> None:
        """Write a step, and return when it is on the disk. Older ones are deleted after that.

        Args:
          step: its number.
          state: a tree of arrays, placed by any strategy. Typed random keys are welcome.
          config: the model's configuration, JSON.
          data_state: the data iterator's state, JSON.

        Raises:
          ConfigError: `config` or `data_state` is not JSON.
          CheckpointError: the step is there already and is good, or it cannot be written, as on
            a full disk. What was there before is untouched.
        """
        final = self._path(step)
        partial = _partial(final)
        texts = {
            "config.json": to_json("config", config),
            "data.json": to_json("data_state", data_state),
            "tree.json": to_json("state", {k: _kind(x) for k, x in _names(state).items()}),
        }
        if final.exists() and damage(final) is None:
            raise CheckpointError(
                str(final),
                "a step that is saved already",
                "a new step",
                "Resume from it, or choose another folder",
            )
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write_arrays(partial / "arrays", state)
            for name, text in texts.items():
                (partial / name).write_text(text)
            write_manifest(partial)
            shutil.rmtree(final, ignore_errors=True)  # damaged, so that nothing is lost
            partial.rename(final)
            flush_folder(self.folder)
        except Exception as error:  # the disk's errors come out of Orbax as many kinds
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                str(final),
                f"'{error}' while saving",
                "a folder that takes the whole checkpoint",
                "Free space there or choose another folder; earlier steps are as they were",
            ) from error
        if self.keep is not None:
            older = [old for old in self.steps() if old < step]
            for old in older[: max(len(older) + 1 - self.keep, 0)]:
                _remove(self._path(old))

    def restore(self, abstract_state: Tree, *, config: Any = None) -> tuple[Tree, Any]:
        """Restore the newest step that verifies. A damaged one is warned of and passed over.

        Args:
          abstract_state: the tree to restore into: arrays or `jax.ShapeDtypeStruct`s, such as
            `jax.eval_shape` of `create_state`. Nothing but values is taken from the files.
          config: the model's configuration, to compare with the stored one; None not to.

        Returns:
          The state, on the host until a strategy places it, and the data iterator's state.

        Raises:
          CheckpointError: there is no good step, or it belongs to another model: the text names
            each field of the configuration that differs, or the first arrays that do.
        """
        path = self._newest()
        _check_config(path, config)
        names = _names(abstract_state)
        _check_arrays(path, names)
        arrays = _read_arrays(path, names)
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), arrays)
        return state, _read_json(path, "data.json")

    def restore_variables(self, abstract_variables: Tree, *, config: Any = None) -> Tree:
        """Restore only what a model predicts with, from the newest step that verifies.

        Args:
          abstract_variables: `params` and maybe `batch_stats`, such as `jax.eval_shape` of a
            model's `init`.
          config: the model's configuration, to compare with the stored one; None not to.

        Returns:
          The variables; `params` are the moving average if the run kept one.

        Raises:
          CheckpointError: as for `restore`.
        """
        path = self._newest()
        _check_config(path, config)
        names = _names(abstract_variables)
        if any(name.startswith("ema/") for name in _read_json(path, "tree.json")):
            names = {re.sub("^params/", "ema/", name): leaf for name, leaf in names.items()}
        _check_arrays(path, names, parts={name.split("/")[0] for name in names})
        arrays = _read_arrays(path, names)
        return jax.tree.unflatten(jax.tree.structure(abstract_variables), arrays)

    def config(self) -> Any:
        """The model's configuration, from the newest step that verifies.

        Raises:
          CheckpointError: there is no good step.
        """
        return _read_json(self._newest(), "config.json")

    def _entries(self) -> list[Path]:
        return [path for path in self.folder.glob("step-*") if path.is_dir()]

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _newest(self) -> Path:
        steps = self.steps()
        for step in reversed(steps):
            wrong = damage(self._path(step))
            if wrong is None:
                return self._path(step)
            warnings.warn(
                f"Checkpoint step {step} in {self.folder} is damaged and passed over: {wrong}.",
                stacklevel=3,
            )
        raise CheckpointError(
            str(self.folder),
            f"checkpoints of steps {steps}, all of them damaged" if steps else "no checkpoint",
            "a step that agrees with its manifest",
            "Copy the folder again from where it is whole, or train anew in another one"
            if steps
            else "Check the folder's name, or train first",
        )


def to_json(name: str, value: Any) -> str:
    """JSON text of a part of a checkpoint.

    Raises:
      ConfigError: it holds something that JSON does not know.
    """
    try:
        return json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "Checkpoints",
            f"{name} of which '{error}'",
            "finite numbers, text, lists and dicts",
            "Convert what is something else, such as a dtype to its name",
        ) from error


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def _remove(folder: Path) -> None:
    """Delete a step under the name that is cleaned if the deletion is interrupted."""
    folder.rename(_partial(folder))
    shutil.rmtree(_partial(folder))


def _read_json(path: Path, name: str) -> Any:
    try:
        value = json.loads((path / name).read_text())
        if name == "tree.json" and not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} in place of an object")
        return value
    except (OSError, ValueError) as error:
        raise CheckpointError(
            str(path / name), f"'{error}'", "JSON", "Save the checkpoint again with this version"
        ) from error


def _names(tree: Any) -> dict[str, Any]:
    """Each leaf under its name, such as params/conv/kernel, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _kind(leaf: Any) -> list:
    return [list(leaf.shape), str(leaf.dtype)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _check_config(path: Path, config: Any) -> None:
    if config is None:
        return
    stored = _read_json(path, "config.json")
    different = list(_differences("", stored, json.loads(to_json("config", config))))
    if different:
        raise CheckpointError(
            str(path),
            f"the checkpoint of another model: {'; '.join(different)}",
            "the configuration it was saved with",
            "Build the model as it was, or choose another folder to train anew",
        )


def _differences(name: str, stored: Any, given: Any) -> Iterator[str]:
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for key in sorted({*stored, *given}):
            inner = f"{name}.{key}" if name else key
            yield from _differences(inner, stored.get(key, "unset"), given.get(key, "unset"))
    elif stored != given:
        yield f"{name or 'config'} is {stored!r} there and {given!r} here"


def _check_arrays(path: Path, names: dict[str, Any], parts: set[str] | None = None) -> None:
    """Compare names, shapes and dtypes with those stored (only under `parts`, where given)."""
    stored = _read_json(path, "tree.json")
    wanted = {name: _kind(leaf) for name, leaf in names.items()}
    if parts is not None:
        stored = {name: kind for name, kind in stored.items() if name.split("/")[0] in parts}
    different = [name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name)]
    if different:
        first = [
            f"{name} is {_show(stored.get(name))} there and {_show(wanted.get(name))} here"
            for name in different[:3]
        ]
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise CheckpointError(
            str(path),
            f"other arrays: {'; '.join(first)}{more}",
            "the arrays of this model, optimizer and moving average",
            "Build them as they were when the checkpoint was saved",
        )


def _show(kind: list | None) -> str:
    return "missing" if kind is None else f"{kind[1]} {tuple(kind[0])}"


def _write_arrays(path: Path, state: Any) -> None:
    import orbax.checkpoint as ocp

    arrays = {k: jax.random.key_data(x) if _is_key(x) else x for k, x in _names(state).items()}
    arrays = {name: np.asarray(array) for name, array in jax.device_get(arrays).items()}
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(arrays))


def _read_arrays(path: Path, names: dict[str, Any]) -> list[Any]:
    """The arrays of these names, and no other, in the given shapes and dtypes."""
    import orbax.checkpoint as ocp

    item = {
        name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        for name, leaf in names.items()
    }
    args = ocp.args.PyTreeRestore(
        item=item,
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in item},
        partial_restore=True,
    )
    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arrays = checkpointer.restore(path / "arrays", args=args)
    except Exception as error:
        raise CheckpointError(
            str(path),
            f"'{error}' from Orbax",
            "arrays that it can read",
            "Install the version of orbax-checkpoint that saved them",
        ) from error
    for name, wanted in item.items():  # the files, and not only what tree.json says of them
        if _kind(arrays[name]) != _kind(wanted):
            raise CheckpointError(
                str(path),
                f"{name} of {_show(_kind(arrays[name]))} in its arrays",
                f"{_show(_kind(wanted))}, as its tree.json says",
                "Copy the folder again from where it is whole",
            )
    return [_like(leaf, arrays[name]) for name, leaf in names.items()]


def _like(leaf: Any, array: np.ndarray) -> Any:
    if not _is_key(leaf):
        return array
    kind = jax.random.key_impl(jnp.empty((), leaf.dtype))
    return jax.random.wrap_key_data(jnp.asarray(array), impl=kind)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax tells absl's log of every file it touches: let only errors through."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
