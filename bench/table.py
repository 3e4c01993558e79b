"""The table: every line in one picture, for a terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence

from bench.measure import Line

_HEAD = ("measured", "ours", "unit", "beside", "theirs", "ratio", "target", "reached")


def render(lines: Sequence[Line]) -> str:
    """Return a Markdown table that also reads well as it is."""
    rows = [_HEAD, *[_cells(line) for line in lines]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    text = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.name,
        number(line.ours),
        line.unit,
        line.peer,
        "" if line.theirs is None else number(line.theirs),
        "" if line.ratio is None else f"{line.ratio:.2f}",
        line.target,
        "" if line.reached is None else "yes" if line.reached else "NO",
    )


def number(value: float) -> str:
    """Return three digits that count: 63,700 and 0.125."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"
