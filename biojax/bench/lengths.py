"""Kernels over sequences, at one width and many lengths; volumes of as many voxels."""

from collections.abc import Iterable

from biojax.bench.case import Case
from biojax.bench.kernels import kernel_cases
from biojax.kernels.specs import Spec

__all__ = ["LENGTHS", "length_cases"]

LENGTHS = (256, 1024, 4096, 16_384, 65_536)
_OPTIONS = {"neighborhood_attention": {"kernel_size": 3}, "window_attention": {"window_size": 4}}


def length_cases(implementations: Iterable[str | None] = (None,)) -> list[Case]:
    """Each of the kernels in every mode, from 256 to 65,536 steps or voxels."""
    specs: dict[str, list[Spec]] = {}
    for t in LENGTHS:
        for kernel, shapes in _shapes(t).items():
            options = _OPTIONS.get(kernel, {})
            specs.setdefault(kernel, []).append(Spec(f"t{t}", shapes, options))
    return kernel_cases(implementations, specs, suite="lengths")


def _shapes(t: int) -> dict[str, tuple[tuple[int, ...], ...]]:
    """By kernel, those of its arrays for t steps."""
    inputs, ports, gate = (1, t, 64), (1, t, 16), (1, t, 4)
    head, heads, volume = (1, t, 1, 64), (1, t, 4, 16), (1, t // 64, 8, 8, 4, 16)

    def cell(gates: int) -> tuple[tuple[int, ...], ...]:
        return (4, t, 64), (64, gates * 64), (64, gates * 64), (gates * 64,), (4, 64)

    return {
        "linear_scan": (inputs, inputs, (1, 64)),
        "selective_scan": (inputs, inputs, (64, 16), ports, ports),
        "ssd": (heads, gate, (4,), (1, t, 1, 16), (1, t, 1, 16)),
        "rg_lru": (inputs, inputs, inputs, (64,)),
        "mlstm": (heads, heads, heads, gate, gate),
        "slstm": ((1, t, 4, 4, 16), (4, 16, 4, 16)),
        "rnn": cell(1),
        "lstm": (*cell(4), (4, 64)),
        "gru": cell(3),
        "attention": (head,) * 3,
        "linear_attention": (head,) * 3,
        "neighborhood_attention": (volume,) * 3,
        "window_attention": (volume,) * 3,
    }
