"""The system: from a source's hands through its feed to a subscriber, in process and in another one.

A source of this module delivers what is due once a millisecond, as a bridge or a DTC server does; each tick carries
the time at which it was delivered (`ts_recv_ns`, CLOCK_MONOTONIC, one clock for all processes of the machine). The
figures end in the subscriber's callback, or in another process's hands (`bench.follow`). What reaches a WebSocket
client is of topic `web`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench import feed, follow
from bench.measure import Line, Setting, alone, percentile
from onetape import Tick
from onetape.record import Bar, Cancel
from onetape.sources.feed import Feed
from onetape.sources.source import Delivery, Source
from onetape.steady import SteadyTape

RATE = 20_000
#: How often the source delivers, s: 20 ticks at once.
STEP_S = 0.001


class Paced(Source):
    """A live source of `count` ticks of 50 symbols at `rate`; each delivery has a cursor, so commits are fenced."""

    kind = "paced"

    def __init__(self, rate: int, count: int) -> None:
        super().__init__("paced")
        self._rate, self._ticks = rate, feed.ticks(count)

    def _deliveries(self) -> Iterator[Delivery]:
        clock, ticks, rate = time.perf_counter_ns, self._ticks, self._rate
        begin, sent = clock(), 0
        self._tell(state="live")
        while sent < len(ticks) and not self.stopped:
            due = min(len(ticks), (clock() - begin) * rate // 1_000_000_000)
            if due > sent:
                now = clock()
                found = [_at(tick, now) for tick in ticks[sent:due]]
                sent = due
                yield Delivery(found, cursor=str(sent))
            time.sleep(STEP_S)


def measure(setting: Setting) -> list[Line]:
    """Return p50 and p99 of a feed at 20,000 ticks/s, to a subscriber in process and to a follower in another one."""
    count = setting.scaled(10 * RATE, RATE // 4)
    runs = 1 if setting.quick else min(setting.runs, 3)
    places: tuple[tuple[str, Callable[[Setting, int], list[float]], float], ...] = (
        ("a subscriber in process", to_subscriber, 1.0),
        ("another process", to_process, 5.0),
    )
    lines = []
    for place, run, limit in places:
        found = [run(setting, count) for _ in range(runs)]
        name = f"feed to {place}, {RATE:,} ticks/s"
        lines += [
            alone(f"{name}, p50", "ms", [percentile(one, 0.5) for one in found]),
            alone(f"{name}, p99", "ms", [percentile(one, 0.99) for one in found], below=limit),
        ]
    return lines


def to_subscriber(setting: Setting, count: int) -> list[float]:
    """Return how many ms each tick took from its delivery to the callback. Fails where one did not come."""
    clock = time.perf_counter_ns
    found: list[float] = []
    done = threading.Event()

    def take(record: Tick | Bar | Cancel) -> None:
        found.append((clock() - record.ts_recv_ns) / 1e6)  # type: ignore[operator, union-attr]
        if len(found) == count:
            done.set()

    with setting.scratch() as folder, _tape(folder) as tape:
        subscription = tape.subscribe(take, when_slow="block")
        _run(tape, count)
        if not done.wait(30):
            raise RuntimeError(f"{len(found)} of {count} ticks came")
        subscription.close()
    return found


def to_process(setting: Setting, count: int) -> list[float]:
    """Return how many ms each tick took from its delivery to a follower in another process."""
    with setting.scratch() as folder, _tape(folder) as tape, follow.reader(tape.path, str(count)) as child:
        _run(tape, count)
        return list(json.loads(child.communicate(timeout=60)[0]))


def _tape(folder: Path) -> SteadyTape:
    tape = SteadyTape(folder / "tape.db", retention_days=None)
    tape.append([Tick(symbol, feed.START_NS, price=1.0) for symbol in feed.SYMBOLS])
    return tape


def _run(tape: SteadyTape, count: int) -> None:
    """Feed `count` ticks; return when all are stored."""
    made = Feed(Paced(RATE, count), tape)
    made.run()
    if made.stats.stored != count:
        raise RuntimeError(f"{made.stats.stored} of {count} ticks stored: {made.stats.last_error}")


def _at(tick: Tick, now_ns: int) -> Tick:
    return Tick(
        tick.symbol,
        tick.ts_event_ns,
        tick.price,
        tick.size,
        tick.bid,
        tick.ask,
        tick.bid_size,
        tick.ask_size,
        tick.side,
        ts_recv_ns=now_ns,
    )


def percentiles(values: Sequence[float]) -> str:
    """Return the percentiles of a run in words, for a look at its shape."""
    return "  ".join(f"p{100 * share:g} {percentile(values, share):.2f}" for share in (0.5, 0.9, 0.99, 0.999, 1.0))
