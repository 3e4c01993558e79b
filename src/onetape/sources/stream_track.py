"""The track of one Redis stream: where it was read to, and whether something was trimmed away or lost before it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onetape.clock import now_ns
from onetape.migrate.landing.merge import parse_id

_ID_MS_MIN = 10**11  # an entry id below it (1973) was made up and tells no time


def id_ns(entry_id: bytes | str) -> int | None:
    """Return the time that an entry's id tells, or None."""
    ms = parse_id(entry_id if isinstance(entry_id, bytes) else entry_id.encode())[0]
    return ms * 1_000_000 if _ID_MS_MIN <= ms < 9 * 10**12 else None


def facts(info: Sequence[Any]) -> dict[bytes, Any]:
    """Return the reply of XINFO STREAM as a dict."""
    return dict(zip(info[::2], info[1::2], strict=True))


class Track:
    """`at`: id of the last entry read, None before the first. Of entries that are gone before they were read it tells.

    Where the server counts what was ever added (7.0 and later), the count is compared whenever everything is read.
    """

    def __init__(self, key: bytes, symbol: str, cursor: str, at: str | None) -> None:
        self.key, self.symbol, self.cursor, self.at = key, symbol, cursor, at
        self._count: int | None = None
        self._count_at = at
        self._seen = 0
        self._since_ns = now_ns()

    def read(self, entries: Sequence[Any]) -> None:
        """Note that these entries, the next ones, were read."""
        self.at = entries[-1][0].decode()
        self._seen += len(entries)

    def settle(self, info: Sequence[Any]) -> tuple[int, tuple[int, int]] | None:
        """Compare with an XINFO STREAM made after all that was read. Return what is gone, and of which span, or None.

        What is gone is a count, 0 where nobody knows it.
        """
        told = facts(info)
        added = told.get(b"entries-added")
        if added is None or self.at is None or told[b"last-generated-id"].decode() != self.at:
            return None
        before, since, seen = self._count, self._count_at, self._seen
        self._count, self._count_at, self._seen = added, self.at, 0
        span_from, self._since_ns = self._since_ns, now_ns()
        if before is None or added - before == seen:
            return None
        return max(0, added - before - seen), self._span(since, self.at, span_from)

    def resumed(self, info: Sequence[Any], is_there: bool) -> tuple[str | None, tuple[int, int]] | None:
        """Compare a position kept from before with the stream as it is; `is_there`: whether its entry still is.

        Return None where all goes on without a gap, else the position to go on from, and the span that is missing.
        """
        told = facts(info)
        end: bytes = told[b"last-generated-id"]
        self._count, self._count_at, self._seen = None, self.at, 0
        since, self._since_ns = self._since_ns, now_ns()
        if self.at is None:
            return None
        at = parse_id(self.at.encode())
        if parse_id(end) < at:  # data was lost, or the stream was made anew: what it held is not told apart
            return end.decode(), self._span(end.decode(), None, since)
        if is_there or parse_id(end) == at:
            return None
        first = told.get(b"first-entry")
        first_id: bytes = first[0] if first else end
        if parse_id(first_id) <= at:
            return None  # older ones are there, so nothing behind it was trimmed
        return self.at, self._span(self.at, first_id.decode(), since)

    def _span(self, start: str | None, end: str | None, since_ns: int) -> tuple[int, int]:
        start_ns = None if start is None else id_ns(start)
        end_ns = None if end is None else id_ns(end)
        first = since_ns if start_ns is None else start_ns
        last = now_ns() if end_ns is None else end_ns
        return min(first, last), max(last, first + 1_000_000)
