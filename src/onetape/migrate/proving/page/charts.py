"""Charts of the proof's page: SVG written by hand, no script, colours by class so that light and dark both work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onetape import clock
from onetape.migrate.proving.page.text import number, shown

_WIDTH = 720
_LABEL = 150
_BARS_MAX = 120
#: Outcomes of keys in the order in which they are drawn, and the class that colours each.
OUTCOMES = {
    "copied": "good",
    "unchanged": "calm",
    "newer_target_kept": "note",
    "skipped": "dim",
    "expired": "dim2",
    "intended": "warn",
    "changed_while_copying": "warn",
    "failed": "bad",
}


def outcomes(steps: Mapping[str, Mapping[str, int]]) -> str:
    """Return bars of outcomes by step; each is as long as its share of the step with the most keys."""
    rows = [(step, {name: count for name, count in counts.items() if count}) for step, counts in steps.items()]
    most = max((sum(counts.values()) for _step, counts in rows), default=0)
    if not most:
        return ""
    parts, height = [], 34 * len(rows) + 8
    room = _WIDTH - _LABEL - 90
    for at, (step, counts) in enumerate(rows):
        y, x = 34 * at + 8, float(_LABEL)
        parts.append(_text(_LABEL - 8, y + 16, step, "end"))
        for name in sorted(counts, key=_order):
            wide = max(1.0, room * counts[name] / most)
            parts.append(_rect(x, y, wide, 22, OUTCOMES.get(name, "dim"), f"{step}: {counts[name]:,} {name}"))
            x += wide
        parts.append(_text(x + 6, y + 16, number(sum(counts.values())), "start", "num"))
    names = sorted({name for _step, counts in rows for name in counts}, key=_order)
    key = legend([(OUTCOMES.get(name, "dim"), name.replace("_", " ")) for name in names])
    return _svg(height, "".join(parts), "Keys by step and outcome") + key


def ticks_by_day(days: Sequence[tuple[str, int, int, int | None]]) -> str:
    """Return bars of ticks a day, old, new and tape one within the other; equal ones have one height.

    A day: its name, ticks of old, of new, of the tape (None: no tape). More than 120 days are joined to 120 bars.
    """
    groups = _joined(days)
    most = max((max(old, new, tape or 0) for _name, old, new, tape in groups), default=0)
    if not most:
        return ""
    height, base, left = 220, 180, 64
    step = (_WIDTH - left - 8) / len(groups)
    bar = min(step * 0.86, 72.0)
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = base - share * 160
        parts.append(f'<line class="grid" x1="{left}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, number(round(most * share)), "end", "num"))
    for at, (name, old, new, tape) in enumerate(groups):
        middle = left + step * (at + 0.5)
        told = f"{name}: old {old:,}, new {new:,}" + ("" if tape is None else f", tape {tape:,}")
        for count, wide, kind in ((old, bar, "old"), (new, bar * 0.62, "new"), (tape, bar * 0.26, "tape")):
            if count:
                tall = max(1.0, 160 * count / most)
                parts.append(_rect(middle - wide / 2, base - tall, wide, tall, kind, told))
        if at % max(1, -(-len(groups) // 6)) == 0:
            parts.append(_text(middle, base + 20, name[5:10], "middle", "num"))
    sides = [("old", "old keys"), ("new", "new keys"), ("tape", "tape")]
    if all(tape is None for *_rest, tape in groups):
        sides.pop()
    span = f"<figcaption>{shown(days[0][0])} to {shown(days[-1][0])}</figcaption>"
    return _svg(height, "".join(parts), "Ticks a day in old keys, new keys and tape") + legend(sides) + span


def _joined(days: Sequence[tuple[str, int, int, int | None]]) -> list[tuple[str, int, int, int | None]]:
    many = -(-len(days) // _BARS_MAX) if days else 1
    found = []
    for at in range(0, len(days), many):
        part = days[at : at + many]
        tapes = [tape for *_rest, tape in part if tape is not None]
        name = part[0][0] if len(part) == 1 else f"{part[0][0]} to {part[-1][0]}"
        old, new = sum(one[1] for one in part), sum(one[2] for one in part)
        found.append((name, old, new, sum(tapes) if tapes else None))
    return found


def phases(rows: Sequence[Mapping[str, Any]], made: str) -> str:
    """Return the phases as a line of time, each as long as it lasted, the last one up to when the report was made."""
    if not rows:
        return ""
    marks = [clock.to_ns(row["from"]) for row in rows] + [clock.to_ns(made)]
    marks = [max(marks[: at + 1]) for at in range(len(marks))]
    whole = max(1, marks[-1] - marks[0])
    parts, height = [], 30 * len(rows) + 34
    room = _WIDTH - _LABEL - 110
    for at, row in enumerate(rows):
        y = 30 * at + 8
        x = _LABEL + room * (marks[at] - marks[0]) / whole
        wide = max(2.0, room * (marks[at + 1] - marks[at]) / whole)
        lasted = duration((marks[at + 1] - marks[at]) / 1e9)
        kind = "warn" if row.get("forced") else "phase"
        told = f"{row['phase']} from {row['from']}: {lasted}"
        parts.append(_text(_LABEL - 8, y + 14, str(row["phase"]).replace("_", " "), "end"))
        parts.append(_rect(x, y, wide, 18, kind, told))
        parts.append(_text(min(x + wide + 6, _WIDTH - 100), y + 14, lasted, "start", "num"))
    y = 30 * len(rows) + 22
    parts.append(_text(_LABEL, y, str(rows[0]["from"])[:19].replace("T", " "), "start", "num"))
    parts.append(_text(_WIDTH - 4, y, made[:19].replace("T", " "), "end", "num"))
    return _svg(height, "".join(parts), "Phases over time")


def progress(points: Sequence[tuple[float, int]]) -> str:
    """Return keys done over seconds as a line."""
    if len(points) < 2 or points[-1][0] <= points[0][0] or not points[-1][1]:
        return ""
    start, (end, most) = points[0][0], (points[-1][0], max(keys for _seconds, keys in points))
    left, base = 80, 150
    every = points[:: max(1, len(points) // 400)]
    if every[-1] != points[-1]:
        every = [*every, points[-1]]
    places = [
        (left + (_WIDTH - left - 8) * (seconds - start) / (end - start), base - 130 * keys / most)
        for seconds, keys in every
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<line class="grid" x1="{left}" x2="{_WIDTH - 8}" y1="{base}" y2="{base}"/>']
    parts.append(f'<polyline class="line" points="{line}"/>')
    parts.append(_text(left - 6, 24, number(most), "end", "num") + _text(left - 6, base + 4, "0", "end", "num"))
    parts.append(_text(left, base + 20, "0 s", "start", "num"))
    parts.append(_text(_WIDTH - 8, base + 20, duration(end - start), "end", "num"))
    return _svg(180, "".join(parts), "Keys done over time")


def seconds_by_reason(reasons: Mapping[str, float]) -> str:
    """Return bars of seconds by reason, the longest first."""
    rows = sorted(((why, s) for why, s in reasons.items() if s > 0), key=lambda row: -row[1])[:12]
    if not rows:
        return ""
    parts, room = [], _WIDTH - 260 - 90
    for at, (why, seconds) in enumerate(rows):
        y = 30 * at + 6
        wide = max(1.0, room * seconds / rows[0][1])
        parts.append(_text(252, y + 15, why if len(why) <= 36 else why[:35] + "…", "end"))
        parts.append(_rect(260, y, wide, 20, "note", f"{why}: {duration(seconds)}"))
        parts.append(_text(266 + wide, y + 15, duration(seconds), "start", "num"))
    return _svg(30 * len(rows) + 6, "".join(parts), "Time that copying stood still, by reason")


def legend(items: Sequence[tuple[str, str]]) -> str:
    """Return what the colours mean: (class, word) pairs."""
    return '<p class="legend">' + " ".join(
        f'<span><i class="swatch {kind}"></i>{shown(word)}</span>' for kind, word in items
    ) + "</p>"  # fmt: skip


def duration(seconds: float) -> str:
    """Return a span of time in words that suit its length."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _order(name: str) -> tuple[int, str]:
    names = list(OUTCOMES)
    return (names.index(name) if name in OUTCOMES else len(names), name)


def _svg(height: float, inside: str, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{shown(title)}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{shown(title)}</title>{inside}</svg>'
    )


def _rect(x: float, y: float, wide: float, tall: float, kind: str, told: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="2">'
        f"<title>{shown(told)}</title></rect>"
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "word") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{shown(text)}</text>'


__all__ = ["OUTCOMES", "duration", "legend", "outcomes", "phases", "progress", "seconds_by_reason", "ticks_by_day"]
