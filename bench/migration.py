"""Migration: the whole backfill beside a blind copy and one command a round trip; verify; memory; a bystander."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import keys
from bench.measure import Line, Setting, alone, beside, percentile, take_turns
from onetape.embedded import EmbeddedServer

#: Keys a second of the backfill that a bystander is to feel little of.
_STEADY_PER_S = 120_000


def measure(setting: Setting) -> list[Line]:
    """Return the lines of the migrator, on a server of its own with mixed keys."""
    count = setting.scaled(200_000, 4_000)
    with EmbeddedServer() as server:
        total = keys.fill(server.url, count)
        lines = _speed(setting, server, total)
        lines += _bystander(setting, server)
        lines += _memory(setting, server, [count, *([1_000_000] if setting.full else [])])
    return lines


def _speed(setting: Setting, server: EmbeddedServer, total: int) -> list[Line]:
    sample = setting.scaled(5_000, 200)
    again: list[float] = []
    verified: list[float] = []
    sealed: list[float] = []
    whole: list[float] = []

    def moved(way: str, folder: Path) -> dict[str, Any]:
        keys.empty_target(server.url)
        first = _run(way, server, folder)
        if first["keys"] != total or keys.copied(server.url) != total:
            raise RuntimeError(f"{first['keys']} of {total} keys were copied")
        return first

    def ours() -> float:
        with setting.scratch() as folder:
            first = moved("backfill", folder)
            again.append(_rate(_run("backfill", server, folder)))
            verified.append(_rate(_run("verify", server, folder)))
        return _rate(first)

    def bulk() -> float:
        with setting.scratch() as folder:
            first = moved("bulk", folder)
            proof = _run("verify", server, folder)
        sealed.append(_rate(proof))
        whole.append(1e6 * (first["seconds"] + proof["seconds"]) / total)
        return _rate(first)

    def peer(way: str, number: int = 0) -> float:
        keys.empty_target(server.url)
        with setting.scratch() as folder:
            return _rate(_run(way, server, folder, number))

    figures = take_turns(
        {"ours": ours, "bulk": bulk, "blind": lambda: peer("blind"), "single": lambda: peer("single", sample)},
        setting.runs,
    )
    live = f"backfill, both sides being written, {total:,} mixed keys"
    name, blind = f"backfill, {total:,} mixed keys", "redis-py, pipelined blind COPY"
    one = "redis-py, one command a round trip"
    return [
        beside(name, "keys/s", figures["ours"], blind, figures["blind"], ratio_at_least=1.0),
        beside(name, "keys/s", figures["ours"], one, figures["single"], ratio_at_least=30),
        beside("second backfill, nothing to do", "keys/s", again, blind, figures["blind"]),
        beside(live, "keys/s", figures["bulk"], blind, figures["blind"], ratio_at_least=2),
        beside(live, "keys/s", figures["bulk"], one, figures["single"], ratio_at_least=80),
        alone("verify, both directions", "keys/s", verified, at_least=100_000),
        alone("verify that takes the digests", "keys/s", sealed, at_least=100_000),
        alone("moved and verified, both sides being written, a million keys", "s", whole, at_most=15),
    ]


def _bystander(setting: Setting, server: EmbeddedServer) -> list[Line]:
    idle: list[list[float]] = []
    busy: dict[str, list[list[float]]] = {"backfill": [], "bulk": []}
    rates: list[float] = []
    runs = 1 if setting.quick else max(3, setting.runs // 2)
    for _ in range(runs):
        with _visitor(server) as found:
            time.sleep(setting.scaled(20, 2) / 10)
        idle.append(found)
        for way, felt in busy.items():
            keys.empty_target(server.url)
            with setting.scratch() as folder, _visitor(server) as found:
                run = _run(way, server, folder, _STEADY_PER_S if way == "bulk" else 0)
            felt.append(found)
            if way == "bulk":
                rates.append(_rate(run))
    lines = []
    steady = f"a backfill of {_STEADY_PER_S:,} keys/s, both sides being written"
    for name, share, limits in (("p50", 0.50, (None, None)), ("p99", 0.99, (5, 3))):
        quiet = [percentile(found, share) for found in idle]
        for (way, during), limit in zip((("backfill", "a backfill"), ("bulk", steady)), limits, strict=True):
            felt_now = [percentile(found, share) for found in busy[way]]
            measured = f"a client's GET at 1,000/s during {during}, {name}"
            line = beside(measured, "ms", felt_now, "the same, idle server", quiet, more_is_better=False)
            if limit is not None:
                line.target, line.reached = f"< {limit}", line.ours < limit
            lines.append(line)
    return [*lines, alone("the rate of that backfill", "keys/s", rates)]


def _memory(setting: Setting, server: EmbeddedServer, counts: list[int]) -> list[Line]:
    lines = []
    for number, count in enumerate(counts):
        if number:
            keys.fill(server.url, count)
        keys.empty_target(server.url)
        with setting.scratch() as folder:
            peaks = {way: _run(way, server, folder)["peak_mib"] for way in ("backfill", "verify")}
        for way, peak in peaks.items():
            lines.append(alone(f"memory of a {way}, {count:,} keys", "MiB peak", [peak], below=100))
    return lines


def _run(way: str, server: EmbeddedServer, folder: Path, number: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.mover", way, str(server.port), str(folder), str(number)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def _rate(run: dict[str, Any]) -> float:
    return float(run["keys"] / run["seconds"])


@contextmanager
def _visitor(server: EmbeddedServer) -> Iterator[list[float]]:
    """Have the visitor ask while the body runs; the list given is filled with its latencies afterwards."""
    found: list[float] = []
    command = [sys.executable, "-m", "bench.visitor", str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("the visitor did not start")
        yield found
        found += json.loads(child.communicate("\n", timeout=60)[0])
