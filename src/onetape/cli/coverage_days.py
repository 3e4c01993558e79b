"""Days of coverage as text: a line a UTC day, a column a part of it, plain ASCII where there is no UTF-8."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from onetape.store.partition import STATES, Span, State

DAY_NS = 86_400_000_000_000
#: A column shows the worst of its time, so that no gap is too short to be seen.
_WORST: tuple[State, ...] = ("missing", "unknown", "covered", "quiet", "closed", "pruned")
_UNICODE: dict[State, str] = {
    "covered": "█",
    "quiet": "░",
    "missing": "×",
    "closed": "-",
    "pruned": "~",
    "unknown": "?",
}
_ASCII: dict[State, str] = {**_UNICODE, "covered": "#", "quiet": ".", "missing": "x"}


def legend(*, ascii_only: bool = False) -> dict[State, str]:
    """Return state → glyph."""
    glyphs = _ASCII if ascii_only else _UNICODE
    return {state: glyphs[state] for state in STATES}


def days(spans: Sequence[Span], columns: int, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield a head with the hours (UTC), then a line for each day of which the spans say anything but unknown.

    A column stands for 24 hours / `columns` and shows the worst of it; time outside of the spans is blank. Days
    without anything that is known are left out, and counted.
    """
    glyphs = legend(ascii_only=ascii_only)
    cells: dict[int, dict[int, int]] = defaultdict(dict)
    for span in spans:
        rank = _WORST.index(span.state)
        first, last = span.start_ns // DAY_NS, (span.end_ns - 1) // DAY_NS
        for day in range(first, last + 1) if span.state != "unknown" else sorted({first, last}):
            low, high = max(span.start_ns - day * DAY_NS, 0), min(span.end_ns - day * DAY_NS, DAY_NS)
            row = cells[day]
            for column in range(low * columns // DAY_NS, -(-high * columns // DAY_NS)):
                row[column] = min(row.get(column, rank), rank)
    yield " " * 11 + _hours(columns)
    before: int | None = None
    for day in sorted(cells):
        if before is not None and day - before > 1:
            yield f"{'':11}({day - before - 1:,} days of which nothing is known)"
        before = day
        ranks = [cells[day].get(at) for at in range(columns)]
        text = "".join(" " if rank is None else glyphs[_WORST[rank]] for rank in ranks)
        yield f"{datetime.fromtimestamp(day * 86400, UTC):%Y-%m-%d} {text}".rstrip()


def _hours(columns: int) -> str:
    step = next(hours for hours in (1, 2, 3, 4, 6, 12) if columns * hours // 24 >= 4 or hours == 12)
    text = ""
    for hour in range(0, 24, step):
        text = text.ljust(hour * columns // 24) + f"{hour:02d}"
    return text
