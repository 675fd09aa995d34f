"""What became slower or faster since an earlier run, beyond the noise."""

from collections.abc import Iterable
from typing import NamedTuple

from biojax.bench.record import Record

__all__ = ["Change", "compare"]

_LEAST = 0.05
_DEVIATIONS = 3.0


class Change(NamedTuple):
    """A case then and now."""

    before: Record
    after: Record

    @property
    def ratio(self) -> float:
        """The time now over the time then."""
        return self.after.seconds / self.before.seconds

    @property
    def noise(self) -> float:
        """The seconds that two runs of the same code may differ by.

        noise = max(5 % of the earlier median, 3 (deviation then + deviation now))
        """
        deviations = self.before.deviation + self.after.deviation
        return max(_LEAST * self.before.seconds, _DEVIATIONS * deviations)

    @property
    def verdict(self) -> str:
        """Whether it is "slower" or "faster" by more than the noise, or the "same"."""
        difference = self.after.seconds - self.before.seconds
        if abs(difference) <= self.noise:
            return "same"
        return "slower" if difference > 0 else "faster"


def compare(
    records: Iterable[Record], earlier: Iterable[Record]
) -> tuple[list[Change], list[Record]]:
    """Match records with earlier ones of the same case.

    The same are suite, target, spec, shapes, mode, dtype, machine and device, and the
    implementation that was asked for: where none was, the library's choice then is held against
    its choice now, though they may differ. Of several earlier records the last one counts.

    Returns:
      The changes, and those records that have nothing to be compared with.
    """
    known = {_same(record): record for record in earlier}
    changes, alone = [], []
    for record in records:
        before = known.get(_same(record))
        if before is None:
            alone.append(record)
        else:
            changes.append(Change(before, record))
    return changes, alone


def _same(r: Record) -> tuple:
    where = (r.machine, r.device)
    return (r.suite, r.target, r.spec, r.shapes, r.mode, r.dtype, r.requested, *where)
