"""Faults of healing: killed at every step, several at once, a live writer, a full disk. Nothing lost or doubled."""

import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

import onetape
from onetape import Tick
from onetape.healing import TapeSource, heal

S = 10**9
HOUR = 3600 * S
T = onetape.to_ns("2026-03-02T10:00:00")


def _python(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def _make(folder):
    """A tape with a hole of half an hour, in which one late tick stands, and another tape that has all of it."""
    with onetape.open(folder / "whole.db", retention_days=None) as whole:
        whole.append([Tick(s, T + n * S, price=float(n), size=1.0) for n in range(3600) for s in ("A", "B")])
        for symbol in "AB":
            whole.cover(symbol, T, T + HOUR, source="x")
    with onetape.open(folder / "holed.db", retention_days=None) as tape:
        for symbol in "AB":
            for start, end in ((0, 900), (2700, 3600)):
                tape.append([Tick(symbol, T + n * S, price=float(n), size=1.0) for n in range(start, end)])
                tape.cover(symbol, T + start * S, T + end * S, source="feed")
        tape.append(Tick("A", T + 1500 * S, price=1500.0, size=1.0))
    return folder / "holed.db", folder / "whole.db"


def _content(path):
    with onetape.open(path, mode="r") as tape:
        columns = ["ts_event_ns", "price", "size"]
        return {
            symbol: (tape.read(symbol, columns=columns).to_pydict(), tape.coverage(symbol), tape.gaps(symbol))
            for symbol in "AB"
        }


HEALER = """
import os, signal, sys
from onetape import open
from onetape.healing import TapeSource, heal
from onetape.tape import Tape

path, other, die_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
step = 0

def mark():
    global step
    step += 1
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

def around(name):
    real = getattr(Tape, name)
    def wrapped(self, *arguments, **named):
        mark()
        done = real(self, *arguments, **named)
        mark()
        return done
    setattr(Tape, name, wrapped)

around("_in_coverage")
around("_append")

class Source(TapeSource):
    def fetch(self, *asked):
        for found in super().fetch(*asked):
            mark()
            yield found.slice(0, found.num_rows // 2)
            mark()
            yield found.slice(found.num_rows // 2)

with open(path, retention_days=None) as tape, Source(other) as source:
    heal(tape, source, ["A"], piece_s=float(sys.argv[4]))
print(step)
"""


@pytest.mark.slow
def test_a_heal_killed_at_every_step_and_run_again_equals_one_that_was_not(tmp_path):
    holed, whole = _make(tmp_path)
    clean = tmp_path / "clean.db"
    shutil.copy(holed, clean)
    with onetape.open(clean, retention_days=None) as tape, TapeSource(whole) as source:
        heal(tape, source, ["A"], piece_s=1000)
    expected = _content(clean)
    assert expected["A"][0]["ts_event_ns"] == [T + n * S for n in range(3600)]
    step, died = 0, 0
    while True:
        step += 1
        path = tmp_path / f"{step}.db"
        shutil.copy(holed, path)
        healer = _python(HEALER, path, whole, step, 1000)
        healer.communicate(timeout=60)
        if healer.returncode == 0:
            break
        assert healer.returncode == -signal.SIGKILL
        died += 1
        with onetape.open(path, retention_days=None) as tape, TapeSource(whole) as source:
            heal(tape, source, ["A"], piece_s=1000)
            assert heal(tape, source, ["A"], piece_s=1000).asked == 0
        assert _content(path) == expected, f"killed at step {step}"
    assert died > 10


def test_several_that_heal_one_tape_at_once_store_everything_once(tmp_path):
    holed, whole = _make(tmp_path)
    healers = [_python(HEALER, holed, whole, -1, 60) for _ in range(3)]
    assert [healer.wait(60) for healer in healers] == [0, 0, 0]
    for healer in healers:
        healer.stdout.close()
    columns, _, gaps = _content(holed)["A"]
    assert columns["ts_event_ns"] == [T + n * S for n in range(3600)]
    assert gaps == []


LIVE = """
import sys, time, onetape
with onetape.open(sys.argv[1], retention_days=None) as tape:
    beat = tape.heartbeat("feed", ["A", "B"])
    n, end = 0, time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        now = onetape.now_ns()
        tape.append([onetape.Tick(s, now, price=float(n), size=1.0) for s in "AB"])
        n += 1
        beat.alive(now + 1)
        if n == 1:
            print("live", flush=True)
        time.sleep(0.001)
print(n)
"""


def test_healing_while_live_data_flows_moves_latest_only_forward_and_loses_no_live_tick(tmp_path):
    holed, whole = _make(tmp_path)
    live = _python(LIVE, holed, 4)
    assert live.stdout.readline() == "live\n"
    seen, wrong, begun, stop = [], [], threading.Event(), threading.Event()

    def watch():
        with onetape.open(holed, mode="r") as reader:
            follower = reader.follow(["A"])
            newest, found = 0, []
            begun.set()
            while found or not stop.is_set():
                tick = reader.latest("A")
                if tick.ts_event_ns < newest:
                    wrong.append(tick)
                newest = tick.ts_event_ns
                found = follower.take(0.001)
                seen.extend(found)
            follower.close()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert begun.wait(60)
    try:
        with onetape.open(holed, retention_days=None) as tape, TapeSource(whole) as source:
            before = tape.latest("A")
            done = heal(tape, source, ["A", "B"], T, T + HOUR, piece_s=60)
            after = tape.latest("A")
    finally:
        count = int(live.communicate(timeout=60)[0])
        stop.set()
        watcher.join()
    assert done.stored == 2 * 1800 - 1 and not done.failures
    assert wrong == [] and after.ts_event_ns >= before.ts_event_ns > T + HOUR
    with onetape.open(holed, mode="r") as tape:
        for symbol in "AB":
            times = tape.read(symbol, columns=["ts_event_ns"]).column(0).to_pylist()
            assert times[:3600] == [T + n * S for n in range(3600)]
            assert len(times) == 3600 + count
            assert tape.gaps(symbol, T, T + HOUR) == []
    healed = [tick for tick in seen if tick.ts_event_ns < T + HOUR]
    assert len(healed) == 1799, "who follows is told of what was healed"


def test_a_disk_that_is_full_in_the_middle_of_a_heal_stops_it_and_the_next_run_goes_on(tmp_path):
    holed, whole = _make(tmp_path)
    with onetape.open(holed, retention_days=None) as tape, TapeSource(whole) as source:
        connection = tape._writer_connection
        connection.pragma("max_page_count", connection.pragma("page_count") + 40)
        with pytest.raises(onetape.TapeFull):
            heal(tape, source, piece_s=300)
        connection.pragma("max_page_count", 10**9)
        heal(tape, source, piece_s=300)
    for symbol, (columns, _, gaps) in _content(holed).items():
        assert columns["ts_event_ns"] == [T + n * S for n in range(3600)], symbol
        assert gaps == []


def test_a_source_tape_that_is_damaged_fails_its_piece_with_a_reason_and_stores_nothing_of_it(tmp_path):
    holed, whole = _make(tmp_path)
    with onetape.open(whole, retention_days=None) as tape:
        tape.seal()
        connection = tape._writer_connection
        rows = connection.execute("SELECT id, payload FROM chunk WHERE kind = 0").fetchall()
        for row_id, payload in rows:
            spoilt = bytearray(payload)
            spoilt[len(spoilt) // 2] ^= 1
            connection.execute("UPDATE chunk SET payload = ? WHERE id = ?", (bytes(spoilt), row_id))
    with onetape.open(holed, retention_days=None) as tape, TapeSource(whole) as source:
        done = heal(tape, source, sleep=lambda _: None)
        assert done.stored == 0 and done.failures
        assert "chunk" in done.failures[0].why
