"""Look-ups in memory: the latest tick of a symbol, and its newest thousand."""

from __future__ import annotations

import time
from collections.abc import Callable

import onetape
from bench import feed
from bench.measure import Line, Setting, alone


def measure(setting: Setting) -> list[Line]:
    """Return the time of one call, averaged over many, for each of several runs."""
    with setting.scratch() as folder, onetape.open(folder / "tape.db") as tape:
        tape.append_table(feed.columns(setting.scaled(400_000, 60_000)))
        symbol = feed.SYMBOLS[0]
        assert len(tape.recent(symbol, 1000)) == 1000
        latest = [_each(setting.scaled(500_000, 20_000), lambda: tape.latest(symbol)) for _ in range(setting.runs)]
        recent = [_each(setting.scaled(20_000, 1_000), lambda: tape.recent(symbol, 1000)) for _ in range(setting.runs)]
    return [
        alone("latest(symbol)", "µs", latest, below=1),
        alone("recent(symbol, 1000)", "µs", recent, below=50),
    ]


def _each(calls: int, act: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        act()
    return (time.perf_counter() - start) / calls * 1e6
