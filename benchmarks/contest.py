"""Contenders for one and the same work: whether they agree on what it is, and who is faster."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from biojax.bench.case import in_mode
from biojax.bench.turns import Ratio, ratio, take_turns
from biojax.errors import DataError, FileError
from biojax.kernels import explain

__all__ = [
    "Contender",
    "Contest",
    "Result",
    "check_agreement",
    "choices_of",
    "compile_timed",
    "hold",
    "jax_contender",
    "jax_result",
    "read_results",
]

# A contest has three rounds at least, or two where they are longer than this many seconds.
_LONG_ROUND = 60.0


class Contender(NamedTuple):
    """One way to do it.

    Args:
      run: does it, and returns when it is done.
      result: does it from the start that all have in common, and returns every output and
        gradient, channels last.
      compile_seconds: of tracing, lowering and compilation together; None where nothing is.
      choices: which implementations of biojax's kernels run in it, and why.
      extra_bytes: of its program beside arguments and results; None where they are not known.
    """

    run: Callable[[], object]
    result: Callable[[], list[np.ndarray]]
    compile_seconds: float | None = None
    choices: tuple[str, ...] = ()
    extra_bytes: int | None = None


class Contest(NamedTuple):
    """What is to be done: contenders by name, "biojax" first, made when their turn comes."""

    name: str
    mode: str
    dtype: str
    prepare: Callable[[], dict[str, Contender]]


@dataclasses.dataclass(frozen=True)
class Result:
    """The rounds of one contest.

    Attributes:
      name, mode, dtype: those of the contest.
      rounds: seconds of each contender, in order.
      compile_seconds: of each contender that is compiled.
      choices: which implementations ran in biojax, and why.
      extra_bytes: beside arguments and results, of each contender of which they are known.
    """

    name: str
    mode: str
    dtype: str
    rounds: dict[str, tuple[float, ...]]
    compile_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    choices: tuple[str, ...] = ()
    extra_bytes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def layout(self) -> str | None:
        """PyTorch's faster one; None if it did not take part."""
        return self._fastest("torch")

    @property
    def plain(self) -> str | None:
        """The faster plain way in JAX."""
        return self._fastest("xla")

    def _fastest(self, prefix: str) -> str | None:
        theirs = [name for name in self.rounds if name.startswith(prefix)]
        return min(theirs, key=lambda name: statistics.median(self.rounds[name]), default=None)

    def against(self, rival: str | None) -> Ratio | None:
        """The rival's time over ours; None for a rival that did not take part."""
        return ratio(self.rounds[rival], self.rounds["biojax"]) if rival in self.rounds else None

    def to_json(self, where: dict[str, Any]) -> str:
        """One line."""
        ratios = {
            "against_xla": self.against(self.plain),
            "against_torch": self.against(self.layout),
        }
        parts = {k: r and {"ratio": r.value, "deviation": r.deviation} for k, r in ratios.items()}
        return json.dumps({**where, **dataclasses.asdict(self), "layout": self.layout, **parts})


def read_results(path: Path) -> list[Result]:
    """The lines that `Result.to_json` wrote.

    Raises:
      FileError: there is no such file, or a line of it is no result.
    """
    names = [field.name for field in dataclasses.fields(Result)]
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Result(**{name: line[name] for name in names if name in line}) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise FileError(
            str(path),
            f"what is no file of results ({error})",
            "JSON lines, one for each contest",
            "Give the peers.jsonl that benchmarks.peers writes",
        ) from error


def hold(contest: Contest, *, budget: float = 10.0, at_most: int = 9, **options: Any) -> Result:
    """Check that all agree, and let them take turns; options as in `take_turns`.

    Raises:
      DataError: outputs or gradients differ.
      DependencyError: PyTorch is not installed.
    """
    contenders = contest.prepare()
    check_agreement(contest, contenders)
    runs = {name: each.run for name, each in contenders.items()}
    start = time.perf_counter()
    rounds = take_turns(runs, at_least=2, at_most=2, **options)
    spent = time.perf_counter() - start
    if spent <= 2 * _LONG_ROUND:
        more = take_turns(
            runs, budget=budget - spent, at_least=1, at_most=max(at_most - 2, 1), **options
        )
        rounds = {name: rounds[name] + more[name] for name in runs}

    def known(attribute: str) -> dict[str, Any]:
        values = {name: getattr(each, attribute) for name, each in contenders.items()}
        return {name: value for name, value in values.items() if value is not None}

    compiled, extra = known("compile_seconds"), known("extra_bytes")
    choices = contenders["biojax"].choices
    return Result(contest.name, contest.mode, contest.dtype, rounds, compiled, choices, extra)


def jax_contender(mode: str, function: Callable, arguments: tuple) -> Contender:
    """A function of arrays, compiled; in the mode "both" with the gradients of all of them."""
    timed, inputs = in_mode(mode, function, arguments)
    program, seconds = compile_timed(timed, inputs)
    memory = program.memory_analysis()
    return Contender(
        lambda: jax.block_until_ready(program(*inputs)),
        lambda: jax_result(program(*inputs)),
        seconds,
        choices_of(function, *arguments),
        None if memory is None else memory.temp_size_in_bytes,
    )


def compile_timed(
    function: Callable, arguments: tuple, **options: Any
) -> tuple[jax.stages.Compiled, float]:
    """The program of `jax.jit(function, **options)`, and the seconds from the one to the other."""
    start = time.perf_counter()
    program = jax.jit(function, **options).lower(*arguments).compile()
    return program, time.perf_counter() - start


def choices_of(function: Callable, *arguments: Any) -> tuple[str, ...]:
    """What `biojax.kernels.explain` says, each line once."""
    return tuple(dict.fromkeys(map(str, explain(function, *arguments))))


def jax_result(tree: Any) -> list[np.ndarray]:
    """The leaves as float32 arrays of numpy."""
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)]


def check_agreement(contest: Contest, contenders: Mapping[str, Contender]) -> None:
    """Compare all outputs and gradients with those of the first contender.

    The largest difference may be 0.1 % of an array's largest value, and 5 % in bfloat16. After a
    step of training the loss is held to 0.1 %, and the norm of what the step changed to 5 %: where
    an activation is zero but for rounding, the slope of a ReLU jumps, and a filter's gradient with
    it. PyTorch's two layouts differ by up to 1.5 %.

    Raises:
      DataError: a shape differs, or values by more.
    """
    loose = contest.dtype == "bfloat16" or contest.mode == "train"
    order = 2 if contest.mode == "train" else np.inf
    ours, *rivals = contenders
    expected = contenders[ours].result()
    limits = [5e-2 if loose and want.ndim else 1e-3 for want in expected]
    for rival in rivals:
        pairs = list(zip(contenders[rival].result(), expected, strict=True))
        differences = [_difference(got, want, order) for got, want in pairs]
        wrong = [i for i, limit in enumerate(limits) if not differences[i] <= limit]
        if wrong:
            found = [f"{pairs[i][0].shape} off by {differences[i]:.1e}" for i in wrong[:8]]
            raise DataError(
                f"{contest.name}/{contest.mode}: {rival}",
                f"{len(wrong)} of {len(pairs)} outputs and gradients differ: {', '.join(found)}",
                f"the shapes and values of {ours}, within {limits[wrong[0]]:g}",
                "Nothing can be compared before they agree: correct one of the two",
            )


def _difference(got: np.ndarray, want: np.ndarray, order: float) -> float:
    """The norm of the difference over that of the values; NaN for other shapes."""
    if got.shape != want.shape:
        return float("nan")
    norms = [np.linalg.norm(a.ravel(), order) for a in (got - want, want)]
    return float(norms[0] / max(norms[1], 1e-30))
