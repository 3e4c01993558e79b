"""The track of one Redis stream: where it was read to, and whether something was trimmed away or lost before it was."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Mark(NamedTuple):
    """A point of a stream, and how many entries had been added to it up to there."""

    added: int
    at: str


#: What is gone: how many entries (0 where nobody knows it), and of which span, ns.
Gone = tuple[int, tuple[int, int]]


class Track:
    """`at`: id of the last entry read, None before the first. Of entries that are gone before they were read it tells.

    Until everything was read once (`caught_up`) it is to be read together with an XINFO STREAM of the same moment: an
    oldest entry behind the place tells what was trimmed away. From then on, where the server counts what was ever added
    (7.0 and later), what was read between two marks is compared with the count, also of a stream that grows all the
    time; of an older server the oldest entry is all there is.
    """

    def __init__(self, key: bytes, symbol: str, cursor: str, at: str | None) -> None:
        self.key, self.symbol, self.cursor, self.at = key, symbol, cursor, at
        self.caught_up = False
        self._before = at  # the place before the last entries that were read
        self._base: Mark | None = None  # all up to here is accounted for
        self._next: Mark | None = None
        self._seen = self._beyond = 0  # entries read from the one to the other, and behind that
        self._since_ns = now_ns()

    def begin(self) -> None:
        """Read from here on as after a pause: anything may have become of the stream."""
        self.caught_up, self._base, self._next = False, None, None
        self._seen = self._beyond = 0

    def absent(self) -> None:
        """Note that there is no such stream: whatever is added to it from here on is to be read."""
        self.begin()
        self.caught_up, self._base = True, Mark(0, "0-0")

    def catch_up(self, info: Sequence[Any], entries: Sequence[Any]) -> list[Gone]:
        """Note the next entries, and an XINFO STREAM of the moment in which they were read. Return what is gone."""
        told = facts(info)
        end, added = told[b"last-generated-id"].decode(), told.get(b"entries-added")
        found = self._trimmed(told, end, self.at)
        if entries:
            self.read(entries)
        if not entries or self.at == end:
            self.caught_up, self._since_ns = True, now_ns()
            self._base = None if added is None else Mark(added, end)
            self._seen = self._beyond = 0
        return found

    def read(self, entries: Sequence[Any]) -> None:
        """Note that these entries, the next ones, were read."""
        before = 0
        if self._next is not None:
            last = parse_id(self._next.at.encode())
            before = bisect_right(entries, last, key=lambda entry: parse_id(entry[0]))
            self._seen += before
        self._beyond += len(entries) - before
        self._before, self.at = self.at, entries[-1][0].decode()

    def settle(self, info: Sequence[Any]) -> list[Gone]:
        """Compare with an XINFO STREAM made after all that was read. Return what is gone."""
        told = facts(info)
        end, added = told[b"last-generated-id"].decode(), told.get(b"entries-added")
        if added is None:
            return self._trimmed(told, end, self._before)
        found = self._reached()
        if self._next is None:
            self._next, self._seen, self._beyond = Mark(added, end), self._beyond, 0
            found += self._reached()
        return found

    def _reached(self) -> list[Gone]:
        """Compare the counts where the next mark was reached; it is the base from then on."""
        mark, base = self._next, self._base
        if mark is None or self.at is None or parse_id(self.at.encode()) < parse_id(mark.at.encode()):
            return []
        gone: list[Gone] = []
        if base is not None and mark.added - base.added != self._seen:
            gone = [(max(0, mark.added - base.added - self._seen), self._span(base.at, mark.at, self._since_ns))]
        self._base, self._next, self._since_ns = mark, None, now_ns()
        self._seen = 0
        return gone

    def _trimmed(self, told: dict[bytes, Any], end: str, at: str | None) -> list[Gone]:
        """What may lie between a place and the oldest entry there is, or the end where there is none."""
        if at is None or parse_id(at.encode()) >= parse_id(end.encode()):
            return []
        first = told.get(b"first-entry")
        first_id = first[0].decode() if first else end
        if parse_id(first_id.encode()) <= parse_id(at.encode()):
            return []  # older ones are there, so nothing behind it was trimmed
        return [(0, self._span(at, first_id, self._since_ns))]

    def went_back(self, info: Sequence[Any]) -> tuple[str, tuple[int, int]] | None:
        """Return the end of a stream that ends before it was read to, and the span that is missing; else None.

        Its server lost data, or it was made anew: what it held is not told apart.
        """
        end: bytes = facts(info)[b"last-generated-id"]
        if self.at is None or parse_id(end) >= parse_id(self.at.encode()):
            return None
        return end.decode(), self._span(end.decode(), None, self._since_ns)

    def _span(self, start: str | None, end: str | None, since_ns: int) -> tuple[int, int]:
        start_ns = None if start is None else id_ns(start)
        end_ns = None if end is None else id_ns(end)
        first = since_ns if start_ns is None else start_ns
        last = now_ns() if end_ns is None else end_ns
        return min(first, last), max(last, first + 1_000_000)
