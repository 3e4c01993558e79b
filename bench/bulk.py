"""Many ticks a commit: the writer, lists, and tables, beside a bare SQLite executemany with a commit a batch."""

from __future__ import annotations

from collections.abc import Callable

import onetape
from bench import bare, feed
from bench.measure import Line, Setting, beside, rate, take_turns

_TARGET = 200_000


def measure(setting: Setting) -> list[Line]:
    """Return the lines of group commit and bulk, in ticks a second."""
    count = setting.scaled(200_000, 5_000)
    records = feed.ticks(count)
    rows = [feed.row(tick) for tick in records]
    tables = setting.scaled(50, 2)
    parts = feed.columns(tables * 10_000)
    starts = range(0, tables * 10_000, 10_000)
    small = [{name: column[start : start + 10_000] for name, column in parts.items()} for start in starts]
    large = feed.columns(setting.scaled(1_000_000, 20_000))

    def writer(tape: onetape.Tape) -> None:
        with tape.writer() as group:
            append = group.append
            for tick in records:
                append(tick)
            group.flush()

    def lists(tape: onetape.Tape) -> None:
        for start in range(0, count, 1000):
            tape.append(records[start : start + 1000])

    def small_tables(tape: onetape.Tape) -> None:
        for part in small:
            tape.append_table(part)

    def ours(total: int, act: Callable[[onetape.Tape], object]) -> float:
        with setting.scratch() as folder, onetape.open(folder / "tape.db") as tape:
            return rate(total, lambda: act(tape))

    def theirs() -> float:
        with setting.scratch() as folder:
            connection = bare.connect(folder / "bare.db")

            def act() -> None:
                for start in range(0, count, 1000):
                    with connection:
                        connection.executemany(bare.INSERT, rows[start : start + 1000])

            figure = rate(count, act)
            connection.close()
            return figure

    figures = take_turns(
        {
            "writer": lambda: ours(count, writer),
            "lists": lambda: ours(count, lists),
            "bare": theirs,
            "small": lambda: ours(tables * 10_000, small_tables),
            "large": lambda: ours(len(large["price"]), lambda tape: tape.append_table(large)),
        },
        setting.runs,
    )
    names = {
        "writer": "writer(), one tick a call",
        "lists": "append([1,000 ticks])",
        "small": "append_table, 10,000 rows a call",
        "large": "append_table, 1,000,000 rows in one call",
    }
    lines = []
    for way, name in names.items():
        line = beside(name, "ticks/s", figures[way], "SQLite executemany of 1,000 + commit", figures["bare"])
        if way != "lists":
            line.target, line.reached = f">= {_TARGET:,}", line.ours >= _TARGET
        lines.append(line)
    return lines
