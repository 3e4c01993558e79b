"""The channel: one symbol's bars of one interval, as all clients that look at them share it.

It keeps what changed lately, each with the version at which it did, so what a client has not seen yet is one question:
what is newer than its version. A slow client needs no queue; it asks later.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import msgspec

from onetape.web.rows import BarRow, Last

if TYPE_CHECKING:
    from onetape.web.fanout import Group

#: Changed bars remembered; a client that missed more is given the bars anew.
_ROWS_MAX = 1024
#: How many of the last changes say how many ticks there were until then.
_COUNTS_MAX = 512

_encode = msgspec.json.encode


class Channel:
    """What changed of one symbol's bars of one interval. `lost`: changes up to that version are forgotten."""

    def __init__(self, symbol: str, interval: str, version: int) -> None:
        self.symbol, self.interval = symbol, interval
        self.groups: set[Group] = set()
        self.changed = self.lost = version
        self.position: int | None = None
        self.last = Last()
        self._name = _encode(symbol)
        self._rows: OrderedDict[int, tuple[int, bytes, int]] = OrderedDict()
        self._revisions: dict[int, int] = {}
        self._count = 0
        self._counts: deque[tuple[int, int]] = deque([(version, 0)], _COUNTS_MAX)
        self._made: dict[int, bytes] = {}
        self.users = 0

    def tick(self, version: int, count: int, last: Last) -> None:
        """Take new ticks."""
        self._count += count
        self._counts.append((version, self._count))
        self.last.join(last)
        self._change(version)

    def bars(self, version: int, rows: list[BarRow]) -> None:
        """Take changed bars."""
        for row in rows:
            start, revision = row[0], row[6]
            before = self._revisions.get(start, 0)
            self._revisions[start] = revision
            kept = self._rows.get(start)
            revised_at = version if revision > before else 0 if kept is None else kept[2]
            self._rows[start] = (version, _encode(row), revised_at)
            self._rows.move_to_end(start)
        while len(self._rows) > _ROWS_MAX:
            start, (changed, _, _) = self._rows.popitem(last=False)
            self._revisions.pop(start, None)
            self.lost = max(self.lost, changed)
        self._change(version)

    def _change(self, version: int) -> None:
        self.changed = version
        self._made.clear()

    def since(self, version: int) -> bytes:
        """Return what changed after a version, as a member of a delta's `symbols`. Each version is encoded once."""
        made = self._made.get(version)
        if made is None:
            rows: list[bytes] = []
            revised: list[int] = []
            for start in reversed(self._rows):
                changed, row, revised_at = self._rows[start]
                if changed <= version:
                    break
                rows.append(row)
                if revised_at > version:
                    revised.append(start)
            rows.reverse()
            told = _encode(self.last.row())
            at = max(0, bisect_left(self._counts, (version + 1, 0)) - 1)
            count = self._count - self._counts[at][1]
            made = b'%b:{"bars":[%b],"last":%b,"n":%d,"revised":%b}' % (
                self._name, b",".join(rows), told, count, _encode(sorted(revised)),
            )  # fmt: skip
            self._made[version] = made
        return made
