"""Appending beside the peers: the whole day at once, a thousand records at a time, tick by tick, and awaited."""

from __future__ import annotations

import statistics
from typing import Any

from bench import day
from bench.measure import Line, Setting, against, alone, beside, take_turns
from bench.peers.field import Field, field

#: Peers that fsync what they append, as "power" does.
_FSYNC = ("DuckDB", "ArcticDB")
_SORTED = {"symbol": "sorted by symbol, time", "time": "in time order"}


def measure(setting: Setting) -> list[Line]:
    """Return the lines of bulk, 1,000 records, single ticks, and awaited ones."""
    entered = field(setting)
    runs = min(setting.runs, 3)
    lines: list[Line] = []
    for order in day.ORDERS:
        lines += _bulk(entered, order, runs)
    return [
        *lines,
        *_small(setting, entered, runs),
        *_single(setting, entered, runs),
        *_awaited(setting, entered, runs),
    ]


def _bulk(entered: Field, order: str, runs: int) -> list[Line]:
    peers = entered.named("DuckDB", "ArcticDB", "chDB")

    def ours(durability: str) -> float:
        seconds = entered.ours.ask("fill", path=entered.paths[order], order=order, name="filled", durability=durability)
        entered.ours.ask("drop", name="filled")
        return entered.total / float(seconds)

    ways: dict[str, Any] = {"process": lambda: ours("process"), "power": lambda: ours("power")}
    for name in peers:
        ways[name] = lambda name=name: entered.total / entered.fill(name, order)
    figures = take_turns(ways, runs)
    told = f"bulk append of {entered.total:,}, {_SORTED[order]}"
    lines = against(
        f'{told}, "process"', "ticks/s", figures["process"], {name: figures[name] for name in peers}, ratio_at_least=1.2
    )
    fsyncs = {name: figures[name] for name in peers if name in _FSYNC}
    return lines + against(f'{told}, "power"', "ticks/s", figures["power"], fsyncs)


def _small(setting: Setting, entered: Field, runs: int) -> list[Line]:
    batches = setting.scaled(100, 3)
    path = entered.paths["symbol"]
    peers = entered.named("DuckDB", "ArcticDB", "chDB")
    ways: dict[str, Any] = {
        durability: lambda durability=durability: statistics.median(
            entered.ours.ask("small", path=path, batches=batches, durability=durability)
        )
        for durability in ("process", "power")
    }
    for name, one in peers.items():
        ways[name] = lambda one=one: statistics.median(one.ask("small", path=path, batches=batches))
    figures = take_turns(ways, runs)
    targets = {"DuckDB": 3, "ArcticDB": 5}
    lines = [
        beside(
            'append_table of 1,000, "process"',
            "ms",
            figures["process"],
            name,
            figures[name],
            ratio_at_least=targets.get(name),
            more_is_better=False,
        )
        for name in peers
    ] or [alone('append_table of 1,000, "process"', "ms", figures["process"])]
    fsyncs = {name: figures[name] for name in peers if name in _FSYNC}
    return lines + against('append_table of 1,000, "power"', "ms", figures["power"], fsyncs, more_is_better=False)


def _single(setting: Setting, entered: Field, runs: int) -> list[Line]:
    path = entered.paths["time"]
    peers = entered.named("DuckDB")
    # A whole number of seals, so that their cost is in the figure at its true share.
    counts = {"process": setting.scaled(98_304, 4_096), "power": setting.scaled(8_192, 200)}
    ways: dict[str, Any] = {
        durability: lambda durability=durability: entered.ours.ask(
            "single", path=path, count=counts[durability], durability=durability
        )
        for durability in counts
    }
    for name, one in peers.items():
        ways[name] = lambda one=one: one.ask("single", path=path, count=setting.scaled(500, 20))
    figures = take_turns(ways, runs)
    theirs = {name: figures[name] for name in peers}
    return [
        *against('single ticks, each durable, "process"', "ticks/s", figures["process"], theirs, ratio_at_least=50),
        *against('single ticks, each durable, "power"', "ticks/s", figures["power"], theirs),
    ]


def _awaited(setting: Setting, entered: Field, runs: int) -> list[Line]:
    path = entered.paths["time"]
    count = setting.scaled(491_520, 8_192)
    found: dict[str, list[float | None]] = {}
    for _ in range(runs):
        for durability in ("process", "power"):
            figure = entered.ours.ask("awaited", path=path, count=count, at_risk=100, durability=durability)
            found.setdefault(durability, []).append(figure)
    return [
        alone(
            f'awaited appends, at most 100 at risk, "{durability}"',
            "ticks/s",
            [float(figure) for figure in figures if figure is not None],
            at_least=400_000 if durability == "process" else None,
        )
        for durability, figures in found.items()
        if None not in figures
    ]
