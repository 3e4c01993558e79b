"""Single durable appends: one tick, one commit, beside a bare SQLite insert with a commit each."""

from __future__ import annotations

from typing import Literal

import onetape
from bench import bare, feed
from bench.measure import Line, Setting, beside, rate, take_turns
from onetape import Tick


def measure(setting: Setting) -> list[Line]:
    """Return the lines for both durabilities, without and with recent ticks kept in memory."""
    # A whole number of seals either way, so that their cost is in every figure at its true share.
    lines = _compare(setting, "process", setting.scaled(49_152, 4_096), 0.8)
    lines += _compare(setting, "power", setting.scaled(8_192, 200), 0.8)
    return lines


def _compare(setting: Setting, durability: Literal["process", "power"], count: int, target: float) -> list[Line]:
    ticks = feed.ticks(count)
    synchronous = "NORMAL" if durability == "process" else "FULL"
    figures = take_turns(
        {
            "ours": lambda: _ours(setting, ticks, durability, False),
            "bare": lambda: _bare(setting, ticks, synchronous),
            "recent": lambda: _ours(setting, ticks, durability, True),
        },
        setting.runs,
    )
    peer = f"SQLite insert + commit, {synchronous}"
    name = f'append(Tick), "{durability}"'
    return [
        beside(name, "ticks/s", figures["ours"], peer, figures["bare"], ratio_at_least=target),
        beside(f"{name}, recent in memory", "ticks/s", figures["recent"], peer, figures["bare"]),
    ]


def _ours(setting: Setting, ticks: list[Tick], durability: Literal["process", "power"], recent: bool) -> float:
    with setting.scratch() as folder, onetape.open(folder / "tape.db", durability=durability) as tape:
        tape.append(ticks[: len(feed.SYMBOLS)])
        if recent:
            for symbol in feed.SYMBOLS:
                tape.latest(symbol)
        append = tape.append

        def act() -> None:
            for tick in ticks:
                append(tick)

        return rate(len(ticks), act)


def _bare(setting: Setting, ticks: list[Tick], synchronous: str) -> float:
    rows = [feed.row(tick) for tick in ticks]
    with setting.scratch() as folder:
        connection = bare.connect(folder / "bare.db", synchronous)
        execute = connection.cursor().execute

        def act() -> None:
            for row in rows:
                execute(bare.INSERT, row)

        figure = rate(len(rows), act)
        connection.close()
        return figure
