"""State dicts as PyTorch would hold them, without PyTorch."""

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
        arrays = {}
        for path, leaf in abstract_variables(model, channels).items():
            _, _, rest = path.partition("/")
            owner, _, name = rest.rpartition("/")
            module, shape = modules[owner], leaf.shape
            if name == "kernel":
                *k, c, f = shape
                shape = (c, f, *k) if module.layout == "transposed" else (f, c, *k)
            rng = np.random.default_rng(zlib.crc32(path.encode()))
            values = rng.standard_normal(shape or (1,))
            values = abs(values) + 0.5 if name == "var" else values
            arrays[f"{module.torch}.{LEAVES[name]}"] = values.astype(np.float32)
        return arrays

    return state
