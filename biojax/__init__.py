"""biojax: convolution, recurrent scan and attention models for biomedical images, in JAX.

Nothing is imported until it is used: `import biojax` stays cheap, and each part works alone.

>>> import biojax
>>> "unet" in biojax.models.list_models()
True
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "bench",
    "cli",
    "convert",
    "data",
    "errors",
    "inference",
    "io",
    "kernels",
    "losses",
    "metrics",
    "models",
    "modules",
    "parallel",
    "tasks",
    "training",
    "typing",
]

if TYPE_CHECKING:
    from biojax import (
        bench,
        cli,
        convert,
        data,
        errors,
        inference,
        io,
        kernels,
        losses,
        metrics,
        models,
        modules,
        parallel,
        tasks,
        training,
        typing,
    )


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"biojax.{name}")
    raise AttributeError(f"module 'biojax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
