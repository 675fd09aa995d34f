"""Choosing what to measure, and measuring it."""

import datetime
import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

from biojax.bench.case import Case
from biojax.bench.kernels import kernel_cases
from biojax.bench.lengths import length_cases
from biojax.bench.machine import describe_machine, process_peak_bytes
from biojax.bench.models import model_cases
from biojax.bench.record import Record
from biojax.bench.roofline import ceilings
from biojax.bench.volumes import volume_cases
from biojax.errors import BiojaxError, ConfigError, UnsupportedError, nearest
from biojax.kernels import Choice

__all__ = ["SUITES", "measure", "run", "select_cases"]

SUITES: dict[str, Callable[..., list[Case]]] = {
    "kernels": kernel_cases,
    "lengths": length_cases,
    "models": model_cases,
    "volumes": volume_cases,
}


def select_cases(suite: str, pattern: str = "*", implementations: Sequence[str] = ()) -> list[Case]:
    """The cases of a suite whose names fit.

    Args:
      suite: "kernels", "lengths", "models" or "volumes".
      pattern: part of a name `target/spec/mode`, with `*` and `?` as in a shell.
      implementations: those to use, in the suites of kernels; the library chooses if empty.

    Raises:
      ConfigError: no such suite, nothing fits the pattern, or an implementation for a suite
        whose models choose for themselves.

    >>> [case.name for case in select_cases("kernels", "conv/3d_16*forward")]
    ['conv/3d_16_c320/forward']
    """
    if suite not in SUITES:
        raise ConfigError(
            "bench",
            f"the suite {suite!r}",
            f"one of {', '.join(SUITES)}",
            "Name one of these",
            nearest(suite, SUITES),
        )
    if implementations and suite not in ("kernels", "lengths"):
        raise ConfigError(
            "bench",
            f"implementation {implementations[0]!r} for the suite {suite!r}",
            "none: what is measured there chooses its kernels' implementations itself",
            "Leave it out, or measure the suite 'kernels'",
        )
    cases = SUITES[suite](tuple(implementations) or (None,))
    fitting = [case for case in cases if fnmatch.fnmatchcase(case.name, f"*{pattern}*")]
    if not fitting:
        known = {part for c in cases for part in (c.target, c.spec, c.mode, c.name)}
        raise ConfigError(
            "bench",
            f"the filter {pattern!r}, which fits no case of {suite!r}",
            f"part of a name target/spec/mode, such as {cases[0].name}",
            "Widen it, or leave it out",
            nearest(pattern.strip("*"), sorted(known)),
        )
    return fitting


def run(
    cases: Sequence[Case],
    *,
    budget: float = 1.0,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Record]:
    """Measure one case after the other.

    Args:
      cases: what to measure.
      budget: seconds for the warm runs of each.
      progress: called with how many cases are done, and how many there are.

    Yields:
      A record for each case that its implementation can do. The others are named in one warning
      at the end.

    Raises:
      ConfigError, UnsupportedError: none could be done; this says why the first one could not.
    """
    refusals: list[tuple[str, BiojaxError]] = []
    for i, case in enumerate(cases):
        if progress is not None:
            progress(i, len(cases))
        try:
            record = measure(case, budget=budget)
        except (ConfigError, UnsupportedError) as error:
            refusals.append((case.name, error))
        else:
            yield record
    if progress is not None:
        progress(len(cases), len(cases))
    if refusals and len(refusals) == len(cases):
        raise refusals[0][1]
    if refusals:
        name, error = refusals[0]
        warnings.warn(
            f"left out {len(refusals)} of {len(cases)} cases, the first of them {name}: {error}",
            stacklevel=2,
        )


def measure(case: Case, *, budget: float = 1.0) -> Record:
    """Prepare a case and time it.

    Raises:
      ConfigError, UnsupportedError: the implementation does not exist or cannot do it.
    """
    work = case.prepare()
    timing = work.time(work.function, work.arguments, budget=budget)
    roof = ceilings(case.dtype)
    now = datetime.datetime.now(datetime.UTC)
    return Record(
        suite=case.suite,
        target=case.target,
        spec=case.spec,
        mode=case.mode,
        dtype=case.dtype,
        shapes=work.shapes,
        requested=case.requested,
        implementation=", ".join(_once(_chosen(work.choices))),
        reason="; ".join(_once(f"{choice}" for choice in work.choices)),
        lower_seconds=timing.lower,
        compile_seconds=timing.compile,
        first_seconds=timing.first,
        samples=timing.samples,
        flop_count=work.flop_count,
        byte_count=work.byte_count,
        voxel_count=work.voxel_count,
        peak_bytes=timing.peak_bytes,
        process_peak_bytes=process_peak_bytes(),
        matmul_ceiling=roof.flops_per_second,
        copy_ceiling=roof.bytes_per_second,
        date=now.isoformat(timespec="seconds"),
        **describe_machine(),
    )


def _chosen(choices: Sequence[Choice]) -> list[str]:
    """The implementations; with their kernels, where there are several kernels."""
    if len({choice.kernel for choice in choices}) == 1:
        return [choice.implementation for choice in choices]
    return [f"{choice.kernel}: {choice.implementation}" for choice in choices]


def _once(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
