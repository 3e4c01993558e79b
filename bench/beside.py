"""Reads beside a writer: how long one takes while another process appends 50,000 ticks a second, and while nobody does.

`python -m bench.beside PATH RATE SECONDS` is the writer: it says "ready", begins when it is told to, appends at its
steady pace through tape.writer(), and prints the rate it kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench import day
from bench.measure import Line, Setting, alone, beside, percentile
from bench.peers.field import ROOT, Field, field

if TYPE_CHECKING:
    from collections.abc import Iterator

_RATE = 50_000
_READS_A_SECOND = 200
#: The p99 while somebody writes is at most so many times the quiet one.
_REACH = 2.0


def measure(setting: Setting) -> list[Line]:
    """Return p50 and p99 of hour reads, quiet and beside the writer, and the rate that the writer kept."""
    entered = field(setting)
    entered.tape("bulk")
    entered.ours.ask("copy", source="bulk", name="beside")
    seconds = setting.scaled(5, 1)
    hour = day.spans()["hour"]
    lines: list[Line] = []
    rates: list[float] = []
    for symbol, which in ((day.BUSIEST, "busiest"), (day.MIDDLE, "middle")):
        asked = {"symbol": symbol, "start": hour[0], "end": hour[1], "a_second": _READS_A_SECOND, "name": "beside"}
        quiet: list[list[float]] = []
        busy: list[list[float]] = []
        for _ in range(1 if setting.quick else min(setting.runs, 3)):
            entered.ours.ask("settle", name="beside")
            quiet.append(entered.ours.ask("paced_reads", seconds=seconds, **asked))
            with _writer(entered, seconds + 1.0) as writer:
                time.sleep(0.5)
                busy.append(entered.ours.ask("paced_reads", seconds=seconds - 0.5, **asked))
                rates.append(float(writer.communicate(timeout=60)[0]))
        told = f"read() of the {which} symbol's hour while another process writes {_RATE:,} ticks/s"
        for share, name in ((0.5, "p50"), (0.99, "p99")):
            lines.append(
                beside(
                    f"{told}, {name}",
                    "ms",
                    [percentile(run, share) for run in busy],
                    "ours while nobody writes",
                    [percentile(run, share) for run in quiet],
                    ratio_at_least=1 / _REACH if name == "p99" else None,
                    more_is_better=False,
                )
            )
    kept = alone("ticks written beside those reads", "ticks/s", rates)
    kept.peer = _duckdb(entered)
    entered.ours.ask("drop", name="beside")
    return [*lines, kept]


def _duckdb(entered: Field) -> str:
    """Return what DuckDB says to a second process, asked here and now."""
    if not entered.named("DuckDB"):
        return ""
    told = entered.ready("DuckDB").ask("second_reader")
    return "DuckDB lets no second process read" if told else "DuckDB lets a second process read"


@contextmanager
def _writer(entered: Field, seconds: float) -> Iterator[subprocess.Popen[str]]:
    path = entered.ours.ask("path", name="beside")
    command = [sys.executable, "-m", "bench.beside", path, str(_RATE), str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("the writer did not start")
        child.stdin.write("go\n")
        child.stdin.flush()
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def _main(path: str, rate: int, seconds: float) -> None:
    import onetape
    from bench import feed

    shift_ns = 30 * feed.DAY_NS  # after all that is on the tape: a feed goes on
    columns: dict[str, Any] = feed.columns(int(rate * seconds))
    columns["ts_event_ns"] = columns["ts_event_ns"] + shift_ns + time.time_ns() % feed.DAY_NS
    rows = zip(*[column.tolist() for column in columns.values()], strict=True)
    ticks = [onetape.Tick(*row) for row in rows]
    with onetape.open(path, retention_days=None) as tape, tape.writer() as writer:
        print("ready", flush=True)
        sys.stdin.readline()
        append = writer.append
        step = rate // 1000
        begin = time.perf_counter()
        for number, first in enumerate(range(0, len(ticks), step)):
            for tick in ticks[first : first + step]:
                append(tick)
            wait = begin + number / 1000 - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
        writer.flush()
        print(json.dumps(len(ticks) / (time.perf_counter() - begin)))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
