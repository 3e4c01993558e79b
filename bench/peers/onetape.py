"""onetape, as a process that answers what the peers answer, so that nothing differs but the store.

bulk     `tape.append_table(arrow)`, one call
fed      the same day in time order, 50,000 rows a call, as a feed's minutes arrive
compact  a copy of the fed tape after `tape.compact()`
read     `tape.read(symbol, start, end, columns=...)`
bars     `tape.bars(all symbols, "1min", start, end)`, kept; with `as_of` its head they are folded from the ticks
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

import onetape
from bench import day
from bench.peers import worker
from onetape import Tick

_FED_ROWS = 50_000


class Onetape:
    """Ours, with its tapes in one folder: each a file of its own name."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tapes: dict[str, onetape.Tape] = {}
        self._next: dict[str, int] = {}

    def version(self) -> str:
        return "onetape"

    def _fresh(self, name: str, durability: Literal["process", "power"] = "process") -> onetape.Tape:
        if name in self._tapes:
            self._tapes.pop(name).close()
        for path in self._folder.glob(f"{name}.db*"):
            path.unlink()
        self._tapes[name] = tape = onetape.open(self._folder / f"{name}.db", durability=durability, retention_days=None)
        return tape

    def fill(
        self, path: str, order: str, name: str = "bulk", durability: Literal["process", "power"] = "process"
    ) -> float:
        """Make a tape anew and return the seconds of one bulk append."""
        feed = worker.feed(path)
        tape = self._fresh(name, durability)
        return worker.seconds(lambda: tape.append_table(feed))

    def fed(self, path: str, name: str = "fed") -> float:
        """Make a tape anew from many smaller appends and return the seconds."""
        feed = worker.feed(path)
        tape = self._fresh(name)

        def act() -> None:
            for start in range(0, feed.num_rows, _FED_ROWS):
                tape.append_table(feed.slice(start, _FED_ROWS))
            tape.seal()

        return worker.seconds(act)

    def compact(self, source: str = "fed", name: str = "compact") -> float | None:
        """Copy a tape, compact the copy and return the seconds; None where a tape cannot be compacted."""
        if not hasattr(onetape.Tape, "compact"):
            return None
        self.settle(source)
        if name in self._tapes:
            self._tapes.pop(name).close()
        shutil.copyfile(self._folder / f"{source}.db", self._folder / f"{name}.db")
        self._tapes[name] = tape = onetape.open(self._folder / f"{name}.db", retention_days=None)
        found = worker.seconds(tape.compact)
        self.settle(name)
        return found

    def settle(self, name: str = "bulk") -> float:
        """Close and open a tape, so that its log is in its file; return the bytes it takes on the disk."""
        self._tapes[name].seal()
        self._tapes[name].close()
        self._tapes[name] = onetape.open(self._folder / f"{name}.db", retention_days=None)
        return sum(path.stat().st_blocks * 512 for path in self._folder.glob(f"{name}.db*"))

    def drop(self, name: str) -> None:
        """Remove a tape."""
        self._tapes.pop(name).close()
        for path in self._folder.glob(f"{name}.db*"):
            path.unlink()

    def copy(self, source: str, name: str) -> None:
        """Make a copy of a tape under another name."""
        self.settle(source)
        shutil.copyfile(self._folder / f"{source}.db", self._folder / f"{name}.db")
        self._tapes[name] = onetape.open(self._folder / f"{name}.db", retention_days=None)

    def grow(self, path: str, name: str, count: int) -> float:
        """Make a tape of `count` ticks anew: the day's, then the same day after day. Return the seconds."""
        feed = worker.feed(path)
        tape = self._fresh(name)
        self._next[name] = 0
        return worker.seconds(lambda: self._go_on(tape, feed, name, count, 1_000_000))

    def grow_on(self, path: str, name: str) -> float:
        """Append a few tables more to a grown tape and return the microseconds a tick."""
        tape, feed = self._tapes[name], worker.feed(path)
        count = min(4 * _FED_ROWS, feed.num_rows // 10)
        return 1e6 * worker.seconds(lambda: self._go_on(tape, feed, name, count, _FED_ROWS)) / count

    def _go_on(self, tape: onetape.Tape, feed: pa.Table, name: str, count: int, rows: int) -> None:
        """Append the feed's next `count` ticks; a feed that is over begins again a day later."""
        until = self._next[name] + count
        while (done := self._next[name]) < until:
            days, start = divmod(done, feed.num_rows)
            part = feed.slice(start, min(rows, until - done))
            if days:
                later = pc.add(part["ts_event_ns"], days * day.DAY_NS)
                part = part.set_column(1, "ts_event_ns", later)
            tape.append_table(part)
            self._next[name] += part.num_rows

    def paced_reads(self, symbol: str, start: int, end: int, seconds: float, a_second: int, name: str) -> list[float]:
        """Return the milliseconds of each of many reads, begun at a steady pace."""
        tape, clock = self._tapes[name], time.perf_counter
        tape.read(symbol, start, end, columns=day.FIELDS)
        found = []
        begin = clock()
        for number in range(int(seconds * a_second)):
            wait = begin + number / a_second - clock()
            if wait > 0:
                time.sleep(wait)
            asked = clock()
            tape.read(symbol, start, end, columns=day.FIELDS)
            found.append((clock() - asked) * 1000)
        return found

    def read(self, symbol: str, start: int, end: int, repeat: int, name: str = "bulk") -> dict[str, Any]:
        tape = self._tapes[name]
        return worker.timed(lambda: tape.read(symbol, start, end, columns=day.FIELDS), repeat)

    def bars(self, repeat: int, name: str = "bulk") -> dict[str, Any]:
        """Return the times of all symbols' 1-minute bars as they are kept."""
        tape = self._tapes[name]
        return worker.timed(lambda: tape.bars(day.SYMBOLS, "1min", *day.spans()["day"]), repeat)

    def bars_anew(self, repeat: int, name: str = "bulk") -> dict[str, Any]:
        """Return the times of the same bars, folded from all ticks, and fail where they are not the same."""
        tape = self._tapes[name]
        span, head = day.spans()["day"], tape.stats().head
        found = worker.timed(lambda: tape.bars(day.SYMBOLS, "1min", *span, as_of=head), repeat)
        if not tape.bars(day.SYMBOLS, "1min", *span).equals(tape.bars(day.SYMBOLS, "1min", *span, as_of=head)):
            raise RuntimeError("kept bars are not those of the ticks")
        return found

    def small(self, path: str, batches: int, durability: Literal["process", "power"] = "process") -> list[float]:
        """Return the milliseconds of each of several durable appends of 1,000 records."""
        parts = worker.busiest(path, batches)
        tape = self._fresh("small", durability)
        return [1000 * worker.seconds(lambda part=part: tape.append_table(part)) for part in parts]

    def single(self, path: str, count: int, durability: Literal["process", "power"] = "process") -> float:
        """Return how many ticks a second are appended one by one, each durable before the next."""
        ticks = _ticks(worker.feed(path).slice(0, count))
        tape = self._fresh("single", durability)
        tape.append(ticks[0])
        append = tape.append
        start = time.perf_counter()
        for tick in ticks:
            append(tick)
        return count / (time.perf_counter() - start)

    def awaited(
        self, path: str, count: int, at_risk: int, durability: Literal["process", "power"] = "process"
    ) -> float | None:
        """Return how many awaited appends a second there are with at most `at_risk` ticks not durable yet."""
        if not hasattr(onetape.Tape, "awriter"):
            return None
        ticks = _ticks(worker.feed(path).slice(0, count))
        tape = self._fresh("awaited", durability)
        tape.append(ticks[0])

        async def act() -> float:
            start = time.perf_counter()
            async with tape.awriter(max_at_risk=at_risk) as writer:
                append = writer.append
                for tick in ticks:
                    await append(tick)
            return time.perf_counter() - start

        found = count / asyncio.run(act())
        stored = tape.stats().ticks
        if stored != count + 1:
            raise RuntimeError(f"{stored} of {count + 1} ticks are on the tape")
        return found

    def path(self, name: str = "bulk") -> str:
        return str(self._tapes[name].path)


def _ticks(table: pa.Table) -> list[Tick]:
    columns = [table[name].to_pylist() for name in ("symbol", *day.FIELDS)]
    return [Tick(*row) for row in zip(*columns, strict=True)]


if __name__ == "__main__":
    worker.serve(Onetape(sys.argv[1]))
