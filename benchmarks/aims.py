"""What biojax wants to reach against its peers, and how far it is from there."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from benchmarks.contest import Result
from biojax.bench.report import markdown
from biojax.bench.turns import geometric_mean
from biojax.kernels.specs import LARGE

__all__ = ["AIMS", "Aim", "summary"]


# Of a contest, among all of its run; None where the aim is not about it.
Measure = Callable[[Result, Sequence[Result]], float | None]


class Aim(NamedTuple):
    """A bar for something that each contest measures.

    Args:
      title: what is measured.
      over: `min` and `geometric_mean` of what should be large, or `max` of what should be small.
      bar: what that should reach.
      measure: of one contest.
      together: float32 and bfloat16 count as one; otherwise each has to reach the bar.
    """

    title: str
    over: Callable[[Iterable[float]], float]
    bar: float
    measure: Measure
    together: bool = False

    def reached(self, value: float) -> bool:
        """Whether a value is on the right side of the bar."""
        return value <= self.bar if self.over is max else value >= self.bar


def _ratio(rival: str, fits: Callable[[Result], bool]) -> Measure:
    """Times of PyTorch are those of its faster layout, of XLA those of its faster way."""

    def measure(result: Result, _: Sequence[Result]) -> float | None:
        if not fits(result):
            return None
        found = result.against(result.layout if rival == "torch" else result.plain)
        return found and found.value

    return measure


def _times(other: str, fits: Callable[[Result], bool]) -> Measure:
    """How many times as long biojax takes as in another contest of the run, in the same mode."""

    def measure(result: Result, results: Sequence[Result]) -> float | None:
        found = [r for r in results if (r.name, r.mode) == (other, result.mode)]
        if not found or not fits(result):
            return None
        ours, theirs = (statistics.median(r.rounds["biojax"]) for r in (result, found[0]))
        return ours / theirs

    return measure


def _compile(fits: Callable[[Result], bool]) -> Measure:
    return lambda result, _: result.compile_seconds.get("biojax") if fits(result) else None


def _extra_mib(fits: Callable[[Result], bool]) -> Measure:
    """MiB beside arguments and results."""

    def measure(result: Result, _: Sequence[Result]) -> float | None:
        found = result.extra_bytes.get("biojax") if fits(result) else None
        return None if found is None else found / 2**20

    return measure


def _any(result: Result) -> bool:
    return True


def _is_kernel(result: Result) -> bool:
    return result.name.partition("/")[0] in LARGE


def _is_conv(result: Result) -> bool:
    return result.name.startswith(("conv/", "conv_transpose/"))


def _is_conv_3d(result: Result) -> bool:
    return result.name.startswith(("conv/3d", "conv_transpose/3d"))


def _is_kernel_3d(result: Result) -> bool:
    return _is_kernel(result) and result.name.partition("/")[2].startswith("3d")


def _is_unet_step(result: Result) -> bool:
    return result.name.startswith("unet/") and result.mode == "train"


def _is(*cases: str) -> Callable[[Result], bool]:
    return lambda result: result.name in cases


_CELLS = _is("lstm/t256_c64_to_256", "gru/t256_c64_to_256")
_LINEAR = _is(*(f"linear_scan/t{t}_c512" for t in (256, 4096, 65536)))
_SELECTIVE = _is("selective_scan/t4096_c256_n16")

_ATTENTION = _is("attention/t1024_n8", "attention/t1728_n8", "attention/t4096_n8")
_WINDOWS = _is(
    "window_attention/49_n3_k16",
    "window_attention/49_n3_k16_shifted",
    "window_attention_layer/48_c48_n3",
    "window_attention_layer/48_c48_n3_shifted",
)
_NEIGHBORHOOD = _is("neighborhood_attention/48_n3_k16")


def _in(mode: str, fits: Callable[[Result], bool]) -> Callable[[Result], bool]:
    return lambda result: result.mode == mode and fits(result)


AIMS = (
    Aim("XLA / biojax, each case", min, 0.95, _ratio("xla", _any)),
    Aim("XLA / biojax, mean of 3-D convolutions", geometric_mean, 2.5, _ratio("xla", _is_conv_3d)),
    Aim(
        "XLA / biojax, mean of all 3-D shapes, both dtypes",
        geometric_mean,
        2.5,
        _ratio("xla", _is_kernel_3d),
        together=True,
    ),
    Aim("PyTorch / biojax, each case", min, 0.6, _ratio("torch", _any)),
    Aim("PyTorch / biojax, mean of all", geometric_mean, 1.0, _ratio("torch", _any)),
    Aim("PyTorch / biojax, mean of convolutions", geometric_mean, 1.0, _ratio("torch", _is_conv)),
    Aim("PyTorch / biojax, the U-Net's step", min, 1.0, _ratio("torch", _is_unet_step)),
    Aim("PyTorch / biojax, LSTM and GRU, 64 to 256", min, 1.0, _ratio("torch", _CELLS)),
    Aim("PyTorch / biojax, 4096 selective steps", min, 5.0, _ratio("torch", _SELECTIVE)),
    Aim("XLA / biojax, linear scan of 512 states", min, 1.0, _ratio("xla", _LINEAR)),
    Aim("XLA / biojax, attention of 1024 to 4096 tokens", min, 3.0, _ratio("xla", _ATTENTION)),
    Aim(
        "PyTorch / biojax, attention of 1024 to 4096 tokens",
        min,
        0.9,
        _ratio("torch", _in("forward", _ATTENTION)),
    ),
    Aim(
        "PyTorch / biojax, attention of 1024 to 4096 tokens",
        min,
        1.0,
        _ratio("torch", _in("both", _ATTENTION)),
    ),
    Aim("MONAI / biojax, attention in windows", min, 1.0, _ratio("torch", _WINDOWS)),
    Aim(
        "PyTorch, a dense mask / biojax, neighbourhoods", min, 10.0, _ratio("torch", _NEIGHBORHOOD)
    ),
    Aim(
        "neighbourhoods / windows, both biojax",
        max,
        4.0,
        _times("window_attention/49_n3_k16", _NEIGHBORHOOD),
    ),
    Aim(
        "MiB beside arguments and results, attention of 16,384 tokens",
        max,
        256.0,
        _extra_mib(_is("attention/t16384_n8")),
    ),
    Aim("seconds to compile a kernel", max, 5.0, _compile(_is_kernel)),
    Aim("seconds to compile the U-Net's step", max, 40.0, _compile(_is_unet_step)),
)


def summary(results: Sequence[Result], aims: Sequence[Aim] = AIMS) -> str:
    """A Markdown table: each aim, forward and with gradients apart, and each dtype apart.

    An aim that puts dtypes together has one row for both. Means are geometric. Beside what is
    missed stand the cases beyond the bar, the farthest first, and by how much.
    """
    rows = []
    for aim in aims:
        measured: dict[tuple[str, str], dict[str, float]] = {}
        for result in results:
            if (value := aim.measure(result, results)) is not None:
                kind = ("both" if aim.together else result.dtype, _how(result))
                measured.setdefault(kind, {})[result.name] = value
        rows += [_row(aim, kind, values) for kind, values in measured.items()]
    head = ("aim", "dtype", "mode", "cases", "bar", "measured", "reached", "beyond the bar")
    return "\n".join(markdown(head, rows))


def _how(result: Result) -> str:
    return "forward" if result.mode == "forward" else "with gradients"


def _row(aim: Aim, kind: tuple[str, str], values: dict[str, float]) -> tuple[str, ...]:
    found = aim.over(values.values())
    reached = aim.reached(found)
    beyond = [] if reached else [name for name in values if not aim.reached(values[name])]
    beyond.sort(key=lambda name: -abs(values[name] - aim.bar))
    shown = [f"{name} {values[name]:.2f} ({values[name] - aim.bar:+.2f})" for name in beyond]
    bar = f"at {'most' if aim.over is max else 'least'} {aim.bar:g}"
    verdict = "yes" if reached else f"no ({found - aim.bar:+.2f})"
    return (
        aim.title,
        *kind,
        str(len(values)),
        bar,
        f"{found:.2f}",
        verdict,
        ", ".join(shown) or "-",
    )
