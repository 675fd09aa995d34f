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
    from biojax.models.registry import MODELS, model_fields

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
        print(f"{name}: {(MODELS[name].__doc__ or '').splitlines()[0]}")
        for field, default in model_fields(name).items():
            if default is dataclasses.MISSING:
                default = "required"
            print(f"    {field:18}{getattr(default, '__name__', default)}")
