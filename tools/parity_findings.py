"""What the comparisons with open_clip find: a figure, its limit, and a line of the table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable


@dataclasses.dataclass(frozen=True)
class Finding:
    """One comparison: `measured` may be at most `limit`."""

    what: str
    measured: float
    limit: float
    note: str = ""

    @property
    def holds(self) -> bool:
        return bool(self.measured <= self.limit)  # a NaN does not hold


def report(part: str, compare: Callable[[], Iterable[Finding]]) -> int:
    """Prints a line for each finding, as they come, and the time; returns how many do not hold."""
    start, over = time.perf_counter(), 0
    for finding in compare():
        over += not finding.holds
        mark = "ok  " if finding.holds else "OVER"
        note = f"  ({finding.note})" if finding.note else ""
        line = f"{mark} {finding.what:<58} {finding.measured:.3g}, limit {finding.limit:g}"
        print(f"{line}{note}", flush=True)
    print(f"     {part}: {time.perf_counter() - start:.0f} s", flush=True)
    return over
