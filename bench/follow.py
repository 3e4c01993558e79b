"""Following: from before append() to the record in the follower's hands, and what waiting costs.

The clock is CLOCK_MONOTONIC, one for all processes of the machine; each tick carries the time of its append in
ts_recv_ns. `python -m bench.follow PATH COUNT` is the follower of another process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onetape
from bench import feed
from bench.child import bind_to_parent
from bench.measure import Line, Setting, alone, percentile
from onetape import Tick

_IDLE_S = 5.0


def measure(setting: Setting) -> list[Line]:
    """Return p50 and p99 at two rates, in process and across processes, and the idle follower's CPU."""
    seconds = setting.scaled(3, 1)
    lines = []
    for rate in (1000, 5000):
        places = (("in process", _in_process, 1.0), ("across processes", _across, 5.0))
        runs: dict[str, list[list[float]]] = {place: [] for place, _, _ in places}
        for _ in range(1 if setting.quick else setting.runs):
            for place, run, _ in places:
                runs[place].append(run(setting, rate, rate * seconds // (10 if setting.quick else 1)))
        for place, _, limit in places:
            name = f"follow {place}, {rate:,} ticks/s"
            p50 = [percentile(run, 0.50) for run in runs[place]]
            p99 = [percentile(run, 0.99) for run in runs[place]]
            lines += [alone(f"{name}, p50", "ms", p50), alone(f"{name}, p99", "ms", p99, below=limit)]
    idle = [_idle(setting, 0.5 if setting.quick else _IDLE_S) for _ in range(1 if setting.quick else setting.runs)]
    lines.append(alone("a waiting follower", "% of a core", idle, below=2))
    return lines


def _in_process(setting: Setting, rate: int, count: int) -> list[float]:
    with setting.scratch() as folder, _tape(folder) as tape:
        found: list[float] = []
        follower = tape.follow()
        thread = threading.Thread(target=lambda: found.extend(_receive(follower, count)))
        thread.start()
        _append_paced(tape.append, rate, count)
        thread.join(30)
        follower.close()
        return found


def _across(setting: Setting, rate: int, count: int) -> list[float]:
    with setting.scratch() as folder, _tape(folder) as tape, reader(tape.path, str(count)) as child:
        _append_paced(tape.append, rate, count)
        return list(json.loads(child.communicate(timeout=60)[0]))


def _idle(setting: Setting, seconds: float) -> float:
    with setting.scratch() as folder, _tape(folder) as tape, reader(tape.path, "0", str(seconds)) as child:
        return float(json.loads(child.communicate(timeout=60)[0]))


@contextmanager
def _tape(folder: Path) -> Iterator[onetape.Tape]:
    with onetape.open(folder / "tape.db") as tape:
        tape.append(feed.ticks(len(feed.SYMBOLS)))
        tape.append([Tick(symbol, feed.START_NS, price=1.0) for symbol in feed.SYMBOLS])
        yield tape


@contextmanager
def reader(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.follow", str(path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("the follower did not start")
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def _append_paced(append: Callable[[Tick], object], rate: int, count: int) -> None:
    """Append at a steady rate. A tick that is late is sent at once; its own latency starts when it is sent."""
    clock = time.perf_counter_ns
    ticks = feed.ticks(count)
    begin = clock() + 50_000_000
    for index, tick in enumerate(ticks):
        wait = begin + index * 1_000_000_000 // rate - clock()
        if wait > 0:
            time.sleep(wait / 1e9)
        append(
            Tick(
                tick.symbol,
                tick.ts_event_ns,
                tick.price,
                tick.size,
                tick.bid,
                tick.ask,
                tick.bid_size,
                tick.ask_size,
                tick.side,
                ts_recv_ns=clock(),
            )
        )


def _receive(follower: onetape.Follower, count: int) -> list[float]:
    """Return the latencies of the next `count` records, in ms."""
    clock = time.perf_counter_ns
    found: list[float] = []
    for record in follower:
        found.append((clock() - record.ts_recv_ns) / 1e6)  # type: ignore[operator, union-attr]
        if len(found) == count:
            break
    return found


def _main(path: str, count: int, idle_s: float) -> None:
    with onetape.open(path, mode="r") as tape, tape.follow(idle_s=idle_s or 30) as follower:
        print("ready", flush=True)
        if count:
            print(json.dumps(_receive(follower, count)))
            return
        follower.take(0.5)  # the start is not what waiting costs
        spent = time.process_time()
        start = time.perf_counter()
        follower.take(idle_s)
        print(json.dumps(100 * (time.process_time() - spent) / (time.perf_counter() - start)))


if __name__ == "__main__":
    bind_to_parent()
    _main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
