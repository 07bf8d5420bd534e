"""A progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

from types import TracebackType

import tqdm


class Progress:
    """Shows shards done, records per second and the time left, from the second second on.

    Quiet when standard error is not a terminal.
    """

    def __init__(self, title: str, total: int, done: int = 0):
        self._records = 0
        # `disable=None` is tqdm's way to say: only on a terminal.
        self._bar = tqdm.tqdm(
            desc=title, total=total, initial=done, unit="shard", disable=None, delay=2
        )

    def advance(self, records: int) -> None:
        """One more shard is done, which held `records` records."""
        self._records += records
        if not self._bar.disable:
            elapsed = self._bar.format_dict["elapsed"] or 1e-9
            rate = f"{self._records / elapsed:,.0f} records/s"
            self._bar.set_postfix_str(f"{self._records:,} records, {rate}", refresh=False)
        self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
