"""Market hours: whether a market is open at a moment, and how far its next or last opening or close is."""

from __future__ import annotations

import re
from typing import NamedTuple

from onetape.store.sessions import Sessions, find, overlapping

_NS_A_MIN = 60_000_000_000
_NS_A_DAY = 86_400_000_000_000
#: No weekend and holidays together are longer.
_LOOK_DAYS = 12
#: Hours before their time zone, as people write them: "09:15-15:30 Asia/Kolkata mon-fri".
_HOURS_FIRST = re.compile(r"(\d[\d:]* ?- ?\d[\d:]*) +(\S*[A-Za-z]\S*)((?: .*)?)")


class Moment(NamedTuple):
    """A moment as a market sees it. Minutes to the next opening or close and since the last, None if far away."""

    is_open: bool
    to_next_min: float | None
    since_last_min: float | None


class MarketHours:
    """The hours of a market, from text.

    "09:15-15:30 Asia/Kolkata", with days if need be ("mon-fri" if none are given), the same with the time zone first,
    or the name of an exchange calendar such as XNSE or CMES, with its holidays. Raises ConfigInvalid.
    """

    def __init__(self, text: str) -> None:
        written = _HOURS_FIRST.fullmatch(text.strip())
        self._sessions: Sessions = find(f"{written[2]} {written[1]}{written[3]}" if written else text)
        self.text = text
        self._edges: list[tuple[int, bool]] = []
        self._known = (0, 0)

    def at(self, now_ns: int) -> Moment:
        """Return how it stands at a moment, ns since the epoch. Raises ConfigInvalid beyond a calendar's end."""
        if not self._known[0] <= now_ns < self._known[1]:
            self._look(now_ns)
        before = [edge for edge in self._edges if edge[0] <= now_ns]
        after = next((edge for edge in self._edges if edge[0] > now_ns), None)
        return Moment(
            bool(before) and before[-1][1],
            None if after is None else (after[0] - now_ns) / _NS_A_MIN,
            (now_ns - before[-1][0]) / _NS_A_MIN if before else None,
        )

    def _look(self, now_ns: int) -> None:
        start_ns, end_ns = now_ns - _LOOK_DAYS * _NS_A_DAY, now_ns + _LOOK_DAYS * _NS_A_DAY
        windows = overlapping(self._sessions, max(0, start_ns), end_ns)
        edges: list[tuple[int, bool]] = []
        for opens, closes in zip(windows.opens.tolist(), windows.closes.tolist(), strict=True):
            if edges and edges[-1] == (opens, False):  # one session goes over into the next
                edges.pop()
            else:
                edges.append((opens, True))
            edges.append((closes, False))
        self._edges = edges
        self._known = (now_ns - _NS_A_DAY, now_ns + _NS_A_DAY)
