"""The README's example runs as it stands, and its commands exist."""

import re
from pathlib import Path

import numpy as np

from biojax.models import list_models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["y"].shape == (1, 8, 8, 8, 4)
    assert names["labels"].shape == (40, 50, 60)
    assert set(np.unique(names["labels"])) <= {0, 1, 2}
    assert capsys.readouterr().out.startswith("conv: ")


def test_the_commands_and_links_exist():
    make = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in make
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_model_is_in_the_table():
    for name in list_models():
        assert f"`{name}`" in README
