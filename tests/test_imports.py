"""Imports run one way, optional packages wait until they are used, and public names explain."""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import biojax

ROOT = Path(biojax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = [
    ".".join(("biojax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in FILES
]

# What each room may import besides itself, `typing` and `errors`. Lower rooms stand first.
ROOMS = {
    "typing": (),
    "errors": (),
    "losses": (),
    "surface": (),
    "metrics": ("surface",),
    "io": (),
    "data": ("io", "metrics"),
    "kernels": (),
    "modules": ("kernels",),
    "models": ("kernels", "modules"),
    "tasks": ("kernels", "losses", "metrics"),
    "parallel": (),
    "training": ("parallel", "tasks", "io.atomic"),
    "convert": ("io.atomic", "models"),
    "inference": ("io", "data", "metrics", "models", "parallel", "tasks", "training"),
}
ROOMS["bench"] = (
    "io.atomic",
    "kernels",
    "losses",
    "modules",
    "models",
    "tasks",
    "training",
    "inference",
)
ROOMS["cli"] = tuple(ROOMS)

OPTIONAL = {
    "nibabel",
    "grain",
    "rich",
    "matplotlib",
    "tyro",
    "nilearn",
    "imagecodecs",
    "safetensors",
}
SLOW = {"orbax", "scipy", "tifffile"}


def imports(nodes: Iterable[ast.AST], package: str) -> Iterator[str]:
    """The full name of every module or member that the nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")
            base = ".".join(parent[: len(parent) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "biojax":
            yield f"biojax.{node.attr}"  # the package imports its rooms as they are asked for


def at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run with the import: not in functions, nor while types are checked."""
    for node in ast.iter_child_nodes(tree):
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (later or checked):
            yield node
            yield from at_import_time(node)


def forbidden(module: str, tree: ast.AST, package: str) -> list[str]:
    """The imports of biojax that run up, or sideways into another room."""
    room = module.split(".")[1]
    allowed = [f"biojax.{name}" for name in (room, "typing", "errors", *ROOMS[room])]
    return [
        name
        for name in imports(ast.walk(tree), package)
        if name.startswith("biojax.")
        and name != "biojax.__version__"
        and not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)
    ]


def parsed(module: str) -> tuple[ast.Module, str]:
    path = FILES[MODULES.index(module)]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return ast.parse(path.read_text(encoding="utf-8")), package


@pytest.mark.parametrize("module", MODULES[1:])
def test_imports_run_one_way(module):
    assert module.split(".")[1] in ROOMS, "a new room needs a line in ROOMS"
    assert forbidden(module, *parsed(module)) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("biojax.tasks.x", "from biojax.models import UNet", ["biojax.models.UNet"]),
        ("biojax.tasks.x", "from biojax import metrics, models", ["biojax.models"]),
        ("biojax.tasks.x", "import biojax\nbiojax.models.UNet", ["biojax.models"]),
        ("biojax.tasks.x", "import biojax\nprint(biojax.__version__)", []),
        ("biojax.kernels.x", "def f():\n import biojax.io.tiff", ["biojax.io.tiff"]),
        ("biojax.training.x", "from biojax.io.atomic import replacing", []),
        ("biojax.training.x", "from biojax.io import tiff", ["biojax.io.tiff"]),
        ("biojax.io.x", "from ..data import boxes", ["biojax.data.boxes"]),
        ("biojax.io.x", "from . import tiff\nfrom .tiff import a\nfrom ..errors import b", []),
        ("biojax.io.x", "import jax, numpy as np\nfrom biojaxlike import models", []),
    ],
)
def test_the_check_sees_arrows_that_run_up(module, source, found):
    assert forbidden(module, ast.parse(source), module.rpartition(".")[0]) == found


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("biojax.kernels")])
def test_kernels_need_jax_and_numpy_alone(module):
    tree, package = parsed(module)
    tops = {name.split(".")[0] for name in imports(ast.walk(tree), package)}
    assert tops - set(sys.stdlib_module_names) <= {"biojax", "jax", "numpy"}


@pytest.mark.parametrize("module", MODULES)
def test_no_optional_or_slow_package_is_imported_at_module_level(module):
    tree, package = parsed(module)
    tops = {name.split(".")[0] for name in imports(at_import_time(tree), package)}
    assert not tops & (OPTIONAL | SLOW)


PROBE = """
import importlib, json, pkgutil, sys

def loaded():
    return {name.split(".")[0] for name in sys.modules}

found = {}
import biojax
found["biojax"] = sorted(loaded())
import biojax.errors
found["biojax.errors"] = sorted(loaded())
import jax, jax.numpy, jaxtyping
before = loaded()
import biojax.kernels
found["biojax.kernels"] = sorted(loaded() - before)
import biojax.io
found["biojax.io"] = sorted(loaded() - before)
import flax.linen, optax
before = loaded()
for module in pkgutil.walk_packages(biojax.__path__, "biojax."):
    importlib.import_module(module.name)
found["everything"] = sorted(loaded() - before)
print(json.dumps(found))
"""


def test_what_a_fresh_interpreter_loads():
    run = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    found = {name: set(loaded) for name, loaded in json.loads(run.stdout).items()}
    third_party = {"jax", "numpy", "flax", "optax", *OPTIONAL, *SLOW}
    assert not found["biojax"] & third_party
    assert not found["biojax.errors"] & third_party
    assert not found["biojax.kernels"] & third_party
    assert not found["biojax.io"] & third_party
    assert not found["everything"] & (OPTIONAL | SLOW)


@pytest.mark.parametrize("module", MODULES)
def test_public_names_exist_and_explain_themselves(module):
    imported = importlib.import_module(module)
    assert imported.__doc__, "the module has no docstring"
    for name in getattr(imported, "__all__", []):
        member = getattr(imported, name)
        ours = getattr(member, "__module__", "").startswith("biojax")
        if ours and (inspect.isclass(member) or inspect.isfunction(member)):
            text = inspect.getdoc(member) or ""
            assert text, f"{name} has no docstring"
            assert not text.startswith(f"{name}("), f"{name} has a generated docstring"


def test_packages_say_what_is_public():
    packages = [m.name for m in pkgutil.iter_modules(biojax.__path__) if m.name != "py"]
    assert sorted(packages) == sorted({*biojax.__all__, "surface"} - {"__version__"})
    for name in packages:
        public = importlib.import_module(f"biojax.{name}").__all__
        assert len(set(public)) == len(public)


def test_the_package_finds_its_rooms_when_they_are_asked_for():
    assert biojax.kernels.conv is importlib.import_module("biojax.kernels").conv
    assert dir(biojax) == biojax.__all__
    with pytest.raises(AttributeError, match="module 'biojax' has no attribute 'kernel'"):
        _ = biojax.kernel  # pyright: ignore[reportAttributeAccessIssue]
