"""Every model of the registry at a small input, with its default fields."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from biojax.bench.case import Case, Work, in_mode, normal, shapes_of
from biojax.bench.counts import MODES, count_bytes, count_model
from biojax.models import create_model, list_models
from biojax.models.registry import model_fields
from biojax.typing import Array

__all__ = ["initialise", "model_cases"]

_INPUTS = {1: (4, 512, 8), 2: (4, 128, 128, 3), 3: (1, 32, 32, 32, 1)}


def model_cases(implementations: Iterable[str | None] = (None,)) -> list[Case]:
    """Each model forward, and forward with the gradient of its parameters.

    Two classes, or one frame to forecast; spectra of (4, 512, 8), images of (4, 128, 128, 3), and
    volumes or clips of (1, 32, 32, 32, 1), rounded up to the model's stride.
    """
    return [
        Case(
            "models", name, "small", mode, "float32", None, functools.partial(_prepare, name, mode)
        )
        for name in list_models()
        for mode in ("forward", "both")
        if None in implementations
    ]


def initialise(model: nn.Module, x: Any) -> Any:
    """Variables for such an input. Only its shape and dtype matter.

    On the CPU the code of random initialisers, which runs once, is compiled without the
    optimisations that would take far longer than running it.
    """
    options: Any = {"xla_backend_optimization_level": 1} if _on_cpu() else {}
    init: Callable = jax.jit(model.init, compiler_options=options)
    return init(jax.random.key(0), jnp.zeros(x.shape, x.dtype))


def _prepare(name: str, mode: str) -> Work:
    model = _with_two_classes(name)
    b, *spatial, c = _INPUTS[model.spatial_dims]
    stride = getattr(model, "stride", (1,) * len(spatial))
    spatial = [-(-n // s) * s for n, s in zip(spatial, stride, strict=True)]
    x = normal(0, jax.ShapeDtypeStruct((b, *spatial, c), jnp.float32))
    variables = initialise(model, x)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    choices, flops = count_model(model, variables, x)

    def forward(params: Any, rest: Any, x: Array) -> Any:
        return model.apply({"params": params, **rest}, x)

    outputs = jax.eval_shape(forward, params, rest, x)
    return Work(
        *in_mode(mode, forward, (params,), (rest, x)),
        choices,
        shapes_of(x),
        None if flops is None else MODES[mode] * flops,
        count_bytes(mode, (params, x), outputs),
        x.size // c,
    )


def _with_two_classes(name: str) -> Any:
    """The model by name; some call their outputs channels, others classes, and some have none."""
    fields = {"out_channels", "num_classes"} & model_fields(name).keys()
    return create_model(name, **dict.fromkeys(fields, 2))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
