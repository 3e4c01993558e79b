"""Growth: what an append, an hour's read and the opening cost as a tape grows: 1, 10 and (--full) 100 million ticks."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from functools import partial
from typing import Any

from bench import day
from bench.measure import Line, Setting, alone, beside, take_turns
from bench.peers.field import ROOT, field

#: Flat means: at most a fifth dearer than on the small tape.
_FLAT = round(1 / 1.2, 2)
_OPEN_MS = 100


def measure(setting: Setting) -> list[Line]:
    """Return, for each size, the lines beside the smallest one."""
    entered = field(setting)
    whole = entered.total
    sizes = [whole // 10, whole] + ([10 * whole] if setting.full else [])
    for size in sizes:
        entered.ours.ask("grow", path=entered.paths["time"], name=f"grown-{size}", count=size)
    hour = {"start": day.START_NS + day.HOUR_NS, "end": day.START_NS + 2 * day.HOUR_NS}
    ways: dict[str, Any] = {}
    for size in sizes:
        name = f"grown-{size}"
        ways[f"append {size}"] = partial(entered.ours.ask, "grow_on", path=entered.paths["time"], name=name)
        ways[f"read {size}"] = partial(_read_ms, entered.ours, name, hour, setting.scaled(15, 2))
    figures = take_turns(ways, setting.runs)
    opened = {
        size: [_opened(entered.ours.ask("path", name=f"grown-{size}")) for _ in range(setting.runs)] for size in sizes
    }
    lines = []
    least = sizes[0]
    for size in sizes[1:]:
        beside_least = partial(beside, ratio_at_least=_FLAT, more_is_better=False)
        peer = f"ours at {least:,}"
        lines += [
            beside_least(
                f"append_table of 50,000 on a tape of {size:,}",
                "µs/tick",
                figures[f"append {size}"],
                peer,
                figures[f"append {least}"],
            ),
            beside_least(
                f"read() of an hour on a tape of {size:,}",
                "ms",
                figures[f"read {size}"],
                peer,
                figures[f"read {least}"],
            ),
            alone(
                f"open a tape of {size:,} and first latest()", "ms", [one["ms"] for one in opened[size]], below=_OPEN_MS
            ),
            beside_least(
                f"memory of a process that opened a tape of {size:,}",
                "MB",
                [one["rss"] / 1e6 for one in opened[size]],
                peer,
                [one["rss"] / 1e6 for one in opened[least]],
            ),
        ]
    for size in sizes:
        entered.ours.ask("drop", name=f"grown-{size}")
    return lines


def _read_ms(ours: Any, name: str, hour: dict[str, int], repeat: int) -> float:
    return statistics.median(ours.ask("read", symbol=day.BUSIEST, repeat=repeat, name=name, **hour)["ms"])


def _opened(path: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.opened", path, day.BUSIEST]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    return dict(json.loads(done.stdout))
