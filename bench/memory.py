"""Memory: of a tape's recent records, and of four services with a copy each beside the same four on one tape."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import onetape
from bench import feed
from bench.measure import Line, Setting, alone, beside
from bench.peers.field import ROOT
from bench.resident import RECENT
from onetape import Tick

_MB = 1_000_000
_SERVICES = 4
#: What the recent records may take above an empty tape.
_REACH_MB = 4


def measure(setting: Setting) -> list[Line]:
    """Return the lines of one process's recent records, and of the four services."""
    runs = 1 if setting.quick else min(setting.runs, 3)
    with setting.scratch() as folder:
        ticks = _ticks(setting.scaled(RECENT, 20))
        rows = folder / "ticks.csv"
        rows.write_text("".join(f"{','.join(map(str, feed.row(tick)[:8]))}\n" for tick in ticks))
        few = ticks[: len(feed.SYMBOLS)]
        full, empty, one, system, system_few = (
            _tape(folder / name, held)
            for name, held in (
                ("full", ticks),
                ("empty", []),
                ("one", ticks[:1]),
                ("system", ticks),  # of their own: the services add what they find
                ("system few", few),
            )
        )
        weighed: dict[str, list[list[dict[str, int]]]] = {}
        for _ in range(runs):
            for name, kind, path, count in (
                ("empty", "tape", empty, 1),
                ("one", "tape", one, 1),
                ("full", "tape", full, 1),
                ("copies", "copies", rows, _SERVICES),
                ("tapes", "tape", full, _SERVICES),
                ("no copies", "alone", rows, _SERVICES),
                ("empty tapes", "tape", empty, _SERVICES),
                ("services", "services", system, 1),
                ("services of few", "services", system_few, 1),
                ("four copies", "four", rows, 1),
                ("no copy", "alone", rows, 1),
            ):
                weighed.setdefault(name, []).append(_weigh(kind, path, count))
    held = f"{len(feed.SYMBOLS)} symbols x {len(ticks) // len(feed.SYMBOLS):,} recent"
    rss = {name: [_total(run, "rss") for run in found] for name, found in weighed.items()}
    pss = {name: [_total(run, "pss") for run in found] for name, found in weighed.items()}
    lines = [
        alone(f"memory of {held}, above an empty tape", "MB", _above(rss, "full", "empty"), at_most=_REACH_MB),
        alone(f"memory of {held}, above a tape of one tick", "MB", _above(rss, "full", "one")),
    ]
    peer = f"{_SERVICES} services, a copy each"
    services = f"{_SERVICES} services on one tape, {held}"
    for kind, found in (("RSS", rss), ("PSS", pss)):
        lines.append(beside(f"{services}, {kind}", "MB", found["tapes"], peer, found["copies"], more_is_better=False))
    lines.append(
        beside(
            f"{services}, RSS of the data alone",
            "MB",
            _above(rss, "tapes", "empty tapes"),
            peer,
            _above(rss, "copies", "no copies"),
            more_is_better=False,
        )
    )
    peer = f"{_SERVICES} copies in one process, without services"
    services = f"the real {_SERVICES} services in one process on one steady tape, {held}"
    return [
        *lines,
        beside(f"{services}, RSS", "MB", rss["services"], peer, rss["four copies"], more_is_better=False),
        beside(
            f"{services}, RSS of the data alone",
            "MB",
            _above(rss, "services", "services of few"),
            peer,
            _above(rss, "four copies", "no copy"),
            more_is_better=False,
        ),
    ]


def _total(run: list[dict[str, int]], kind: str) -> float:
    return sum(one[kind] for one in run) / _MB


def _above(found: dict[str, list[float]], what: str, base: str) -> list[float]:
    """Return what each run has above the median of another; never nothing, so that a ratio can be told."""
    least = statistics.median(found[base])
    return [max(0.01, value - least) for value in found[what]]


def _ticks(each: int) -> list[Tick]:
    """Return `each` ticks of each symbol."""
    made = feed.ticks(len(feed.SYMBOLS) * each)
    return [
        Tick(feed.SYMBOLS[index % len(feed.SYMBOLS)], tick.ts_event_ns, *feed.row(tick)[2:])
        for index, tick in enumerate(made)
    ]


def _tape(path: Path, ticks: list[Tick]) -> Path:
    with onetape.open(path, retention_days=None) as tape:
        for start in range(0, len(ticks), 1000):
            tape.append(ticks[start : start + 1000])
        tape.seal()
    return path


def _weigh(kind: str, path: Path, count: int) -> list[dict[str, int]]:
    """Return what each of `count` processes weighs while all of them hold their data."""
    command = [sys.executable, "-m", "bench.resident", kind, str(path)]
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(child)
            stack.callback(child.kill)
            started.append(child)
        for child in started:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                raise RuntimeError(f"a service of the kind {kind} did not start")
        found = []
        for child in started:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write("weigh\n")
            child.stdin.flush()
            found.append(json.loads(child.stdout.readline()))
        for child in started:
            assert child.stdin is not None
            child.stdin.close()
            child.wait(20)
        return found
