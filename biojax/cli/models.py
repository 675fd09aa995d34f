"""`biojax models`: what can be created."""

import dataclasses

from biojax.errors import ConfigError, nearest

__all__ = ["Models", "models"]


@dataclasses.dataclass(frozen=True)
class Models:
    """List the models, with their fields and defaults."""

    pattern: str = "*"
    """Names to show, with * and ? as in a shell."""


def models(config: Models) -> None:
    """Print them.

    Raises:
      ConfigError: no model has such a name.
    """
    pattern = config.pattern
    from biojax.models import list_models
    from biojax.models.registry import MODELS

    names = list_models(pattern)
    if not names:
        known = list_models()
        raise ConfigError(
            "models",
            f"{pattern!r}, which fits no model",
            f"one of {', '.join(known)}, or a pattern",
            "Try biojax models without a pattern",
            nearest(pattern, known),
        )
    for name in names:
        model = MODELS[name]
        print(f"{name}: {(model.__doc__ or '').splitlines()[0]}")
        for field in dataclasses.fields(model):
            if field.name in ("parent", "name"):
                continue
            required = field.default is dataclasses.MISSING
            default = "required" if required else getattr(field.default, "__name__", field.default)
            print(f"    {field.name:16}{default}")
