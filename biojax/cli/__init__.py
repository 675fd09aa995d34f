"""The command line, one file per verb: `biojax train`, `biojax predict` and so on."""

import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union

from biojax.cli.bench import Bench, bench
from biojax.cli.convert import Convert, convert
from biojax.cli.evaluate import Evaluate, evaluate
from biojax.cli.info import Info, info
from biojax.cli.models import Models, models
from biojax.cli.predict import Predict, predict
from biojax.cli.train import Train, train
from biojax.errors import BiojaxError, require

__all__ = ["main"]

_VERBS: dict[type, Callable[[Any], int | None]] = {
    Train: train,
    Predict: predict,
    Evaluate: evaluate,
    Convert: convert,
    Info: info,
    Models: models,
    Bench: bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    A user's mistake is one message on standard error. `--debug`, anywhere, shows the traceback.

    Args:
      arguments: the words after `biojax`; those of the process if None.

    Returns:
      The exit code: 0, 2 for a mistake, or 130 after Ctrl-C (training stops with 0); 1 where
      `bench` finds that something became slower.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    before, warnings.formatwarning = warnings.formatwarning, _format_warning
    try:
        tyro = require("tyro", "cli")
        # A suite is named as the verb is, without a flag.
        positional = Annotated[Bench, tyro.conf.PositionalRequiredArgs]
        config = tyro.cli(
            Union[*(positional if verb is Bench else verb for verb in _VERBS)],
            prog="biojax",
            description="Models of biomedical images in JAX. Add --debug to see tracebacks.",
            args=words or ["--help"],
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
        return _VERBS[type(config)](config) or 0
    except BiojaxError as error:
        if debug:
            traceback.print_exc()
        print(f"biojax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("biojax: interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = before


def _format_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """One line without the place in the code, which tells a user nothing."""
    return f"biojax: {message}\n"
