"""A bar for work that is counted."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from biojax.errors import require

__all__ = ["bar"]


@contextlib.contextmanager
def bar(name: str, *, enabled: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar with the time left, in a terminal; nothing elsewhere.

    Args:
      name: in front of the bar.
      enabled: False for nothing at all.

    Yields:
      A function of (done, total), or None.
    """
    if not enabled or not sys.stdout.isatty():
        yield None
        return
    rich = require("rich.progress", "train")
    with rich.Progress(transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
