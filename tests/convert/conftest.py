"""State dicts as PyTorch would hold them, without PyTorch."""

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from biojax.convert.names import module_names
from biojax.convert.state_dict import abstract_variables

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "negative_slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@pytest.fixture(scope="session")
def torch_state() -> Callable:
    """Random arrays by PyTorch's names, in its layouts, for a model and its channels."""

    def state(model, channels: int = 1) -> dict[str, np.ndarray]:
        modules = {}
        for module in module_names(model):
            modules.setdefault(module.path, module)  # the first of two names
        parts: dict[str, list] = {}  # of each array there, by the row at which it begins
        for path, leaf in abstract_variables(model, channels).items():
            _, _, rest = path.partition("/")
            owner, _, name = rest.rpartition("/")
            shape = leaf.shape
            if rest in modules:  # an array without a module
                module, key = modules[rest], modules[rest].torch
                shape = (math.prod(shape[:-1]), shape[-1])
            else:
                module = modules[owner]
                key = f"{module.torch}.{LEAVES[name]}"
            if name == "kernel":
                *k, c, f = shape
                shape = (c, f, *k) if module.layout == "transposed" else (f, c, *k)
            rng = np.random.default_rng(zlib.crc32(path.encode()))
            values = rng.standard_normal(shape or (1,))
            values = abs(values) + 0.5 if name == "var" else values
            parts.setdefault(key, []).append((module.rows.start or 0, values.astype(np.float32)))
        return {
            key: np.concatenate([values for _, values in sorted(some, key=lambda part: part[0])])
            for key, some in parts.items()
        }

    return state
