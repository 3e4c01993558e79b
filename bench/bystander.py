"""The bystander: what another client feels of a live backfill: full speed, steady rate, throttle on."""

from __future__ import annotations

import time
from pathlib import Path

from bench import keys, moves
from bench.measure import Line, Setting, alone, beside, percentile
from onetape.embedded import EmbeddedServer

#: Keys a second of the backfill that a bystander is to feel little of.
_STEADY_PER_S = 120_000
#: What the throttle is asked for: the goal is twice, and it finds its rate by feeling more now and then.
_TIMES = 1.5
_GENTLE_S = 10
#: With so many keys in the target it has begun.
_FIRST = 200


def measure(setting: Setting) -> list[Line]:
    """Return the lines, of a server of its own with mixed keys."""
    idle: list[list[float]] = []
    felt: dict[str, list[list[float]]] = {"full": [], "steady": [], "gentle": []}
    rates: dict[str, list[float]] = {"full": [], "steady": [], "gentle": []}
    with EmbeddedServer() as server:
        keys.fill(server.url, setting.scaled(1_000_000, 4_000))
        for _ in range(1 if setting.quick else setting.runs):
            with moves.visitor(server) as found:
                time.sleep(setting.scaled(40, 2) / 10)
            idle.append(found)
            for way, number in (("full", 0), ("steady", _STEADY_PER_S)):
                with setting.scratch() as folder:
                    moves.live(server, folder)
                    with moves.visitor(server) as found:
                        run = moves.run("live", server, folder, number)
                felt[way].append(found)
                rates[way].append(run.per_s)
            with setting.scratch() as folder:
                rate, found = _gentle(setting, server, folder)
            felt["gentle"].append(found)
            rates["gentle"].append(rate)
    lines = []
    for way, name in _NAMES.items():
        for told, share in (("p50", 0.50), ("p99", 0.99)):
            quiet = [percentile(found, share) for found in idle]
            during = [percentile(found, share) for found in felt[way]]
            measured = f"a client's GET at 1,000/s during {name}, {told}"
            line = beside(measured, "ms", during, "the same, idle server", quiet, more_is_better=False)
            if (way, told) == ("steady", "p99"):
                line.target, line.reached = "< 3", line.ours < 3
            if (way, told) == ("gentle", "p99") and line.ratio is not None:
                line.target, line.reached = ">= 0.5 x", line.ratio >= 0.5
            lines.append(line)
        lines.append(alone(f"the rate of {name}", "keys/s", rates[way]))
    return lines


_NAMES = {
    "full": "a live backfill",
    "steady": f"a live backfill of {_STEADY_PER_S:,} keys/s",
    "gentle": f"a live backfill throttled to {_TIMES:g} x quiet",
}


def _gentle(setting: Setting, server: EmbeddedServer, folder: Path) -> tuple[float, list[float]]:
    """Feel a backfill with the throttle on, from its first key until it ends, for some seconds at most."""
    moves.live(server, folder)
    with moves.begun("gentle", server, folder, _TIMES) as child:
        while child.poll() is None and keys.target_size(server.url) < _FIRST:
            time.sleep(0.01)
        began_s = time.monotonic()
        limit_s = began_s + setting.scaled(_GENTLE_S, 1)
        with moves.visitor(server) as found:
            while child.poll() is None and time.monotonic() < limit_s:
                time.sleep(0.02)
        rate = (keys.target_size(server.url) - _FIRST) / (time.monotonic() - began_s)
    return rate, found
