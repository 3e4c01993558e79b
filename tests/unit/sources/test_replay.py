"""Replay: the same records in the same order at any speed, on time, and moved as the viewer says."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.waiting import waited_for

import onetape
from onetape.clock import now_ns
from onetape.errors import ConfigInvalid
from onetape.record import Bar, Tick
from onetape.sources import registry, replay
from onetape.sources.feed import Feed
from onetape.sources.replay import ReplaySource

T0 = 1_700_000_000_000_000_000
S = 1_000_000_000
PATIENCE_S = 60.0


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Ten seconds of two symbols: a tick a second each, three at one time, one that arrived late."""
    path = tmp_path / "recorded.db"
    with onetape.open(path) as tape:
        tape.append([Tick("B", T0, 0.5), Tick("A", T0, 0.1), Tick("B", T0, 0.6)])
        tape.append([Tick("A", T0 + n * S, float(n), 1.0, ts_recv_ns=T0 + n * S + 5) for n in range(1, 10)])
        tape.append(Tick("B", T0 + 3 * S, 3.5))
    return path


class Clock:
    """Time that passes only in waits; `drag` ns more a wait, as on a slow machine."""

    def __init__(self, drag: int = 0) -> None:
        self.ns, self._drag, self.waits = 10**15, drag, 0

    def __call__(self) -> int:
        return self.ns

    def wait(self, seconds: float) -> None:
        self.waits += 1
        self.ns += math.ceil(seconds * 1e9) + self._drag


def made(**options: Any) -> ReplaySource:
    source = registry.make({"kind": "replay", **{name: str(v) if name == "tape" else v for name, v in options.items()}})
    assert isinstance(source, ReplaySource)
    return source


def clocked(clock: Clock, **options: Any) -> ReplaySource:
    source = made(**options)
    source._pace_ns, source._sleep, source._clock = clock, clock.wait, clock
    return source


def given(source: ReplaySource) -> list[Tick | Bar]:
    return [record for delivery in source for record in delivery.records]


def test_every_speed_gives_the_same_records_in_the_tapes_order(recorded: Path) -> None:
    fastest = given(made(tape=recorded, speed="max"))
    with onetape.open(recorded) as tape:
        rows = tape.read(None).to_pylist()
    assert [(tick.symbol, tick.price) for tick in fastest[:3]] == [("B", 0.5), ("A", 0.1), ("B", 0.6)]
    assert [msgspec.structs.asdict(tick) | {"seq": None} for tick in fastest] == [row | {"seq": None} for row in rows]
    for speed in (0.5, 1, 7, 1000):
        assert given(clocked(Clock(), tape=recorded, speed=speed)) == fastest


@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
def test_a_record_is_given_when_it_is_due_and_lateness_does_not_add_up(recorded: Path, speed: float) -> None:
    clock = Clock(drag=30_000_000)
    source = clocked(clock, tape=recorded, symbols=["A"], speed=speed)
    start, late = clock.ns, []
    for delivery in source:
        for record in delivery.records:
            late.append(clock.ns - start - int((record.ts_event_ns - T0) / speed))
    assert len(late) == 10
    assert all(0 <= one <= 60_000_000 for one in late)


def test_a_waiting_replay_says_every_second_that_it_is_there(recorded: Path) -> None:
    clock = Clock()
    last = clock.ns
    for _delivery in clocked(clock, tape=recorded, speed=0.1):
        assert clock.ns - last <= S
        last = clock.ns


def test_a_span_has_its_symbols_its_start_and_not_its_end(recorded: Path) -> None:
    ticks = given(made(tape=recorded, symbols=["A"], start=T0 + S, end=T0 + 3 * S, speed=0))
    assert [tick.price for tick in ticks] == [1.0, 2.0]


def test_moved_times_begin_now_and_keep_their_intervals(recorded: Path) -> None:
    clock = Clock()
    begin = clock.ns
    plain = given(made(tape=recorded, speed=0))
    moved = given(clocked(clock, tape=recorded, restamp=True))
    assert [tick.ts_event_ns - begin for tick in moved] == [tick.ts_event_ns - T0 for tick in plain]
    received = [(a.ts_recv_ns - a.ts_event_ns) for a in moved if a.ts_recv_ns is not None]
    assert received == [5] * 9


def test_a_loop_of_moved_times_never_goes_back(recorded: Path) -> None:
    source = clocked(Clock(), tape=recorded, restamp=True, loop=True, speed=0)
    times: list[int] = []
    for delivery in source:
        times += [tick.ts_event_ns for tick in delivery.records]
        if len(times) >= 39:
            source.close()
    assert times == sorted(times) and len(times) == 39
    assert times[13] > times[12]


def test_a_loop_of_nothing_is_an_error_and_not_a_busy_wait(recorded: Path) -> None:
    with pytest.raises(ConfigInvalid, match="nothing to play"):
        given(made(tape=recorded, symbols=["none"], loop=True, speed=0))


def test_symbols_can_be_renamed(recorded: Path) -> None:
    ticks = given(made(tape=recorded, speed=0, rename={"A": "ESZ6", "*": "demo:{symbol}"}))
    assert {tick.symbol for tick in ticks} == {"ESZ6", "demo:B"}


@pytest.mark.parametrize("ended", [1, 2, 3, 4, 9])
def test_a_replay_that_was_ended_anywhere_goes_on_behind_what_is_stored(
    recorded: Path, tmp_path: Path, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_AT_ONCE", 1)
    whole = given(made(tape=recorded, speed=0))
    first, cursor, got = made(tape=recorded, speed=0), None, []
    for delivery in first:
        got += delivery.records
        cursor = delivery.cursor
        if len(got) == ended:
            break
    with onetape.open(recorded) as tape:  # what comes later is not in a replay that has begun
        tape.append(Tick("A", T0 + 5 * S, 99.0))
    again = made(tape=recorded, speed=0)
    again.resume(cursor)
    assert got + given(again) == whole


def test_a_fed_replay_is_on_the_tape_once(recorded: Path, tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db") as tape:
        for _ in range(2):
            Feed(made(tape=recorded, speed=0), tape).run()
        assert tape.read(None).num_rows == 13
        assert not any(span.by for span in tape.coverage("A", T0, now_ns()))


def test_pause_play_seek_and_speed_from_another_thread(recorded: Path) -> None:
    source, got = made(tape=recorded, symbols=["A"], paused=True, speed=1), []

    def run() -> None:
        for delivery in source:
            got.extend(tick.price for tick in delivery.records)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        time.sleep(0.1)
        assert got == [] and source.stats.facts["paused"]
        source.seek(T0 + 7 * S)
        source.play()
        waited_for(lambda: got == [7.0])
        source.pause()
        source.seek(T0 + 5 * S)
        source.speed = 0
        assert source.speed == 0
        time.sleep(0.1)
        assert got == [7.0]
        source.play()
        thread.join(PATIENCE_S)
        assert got == [7.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    finally:
        source.close()
        thread.join(PATIENCE_S)
    assert not thread.is_alive() and source.stats.state == "ended"


def test_closing_ends_a_paused_replay(recorded: Path) -> None:
    source = made(tape=recorded, paused=True)
    thread = threading.Thread(target=lambda: list(source))
    thread.start()
    source.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_file_is_played_as_the_kind_file_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("time,price,size\n" + "".join(f"{T0 + n * S},{n}.5,\n" for n in (0, 1, 3, 2, 4)))
    source = made(path=str(path), symbol="X", speed=0)
    ticks = given(source)
    assert [(tick.symbol, tick.price, tick.size) for tick in ticks] == [
        ("X", price, None) for price in (0.5, 1.5, 3.5, 2.5, 4.5)
    ]
    again = made(path=str(path), symbol="X", speed=0)
    again.seek(T0 + 3 * S)
    assert [tick.price for tick in given(again)] == [3.5, 2.5, 4.5]


def test_a_bar_is_played_at_its_end(tmp_path: Path) -> None:
    path, start = tmp_path / "x.jsonl", T0 - T0 % (60 * S)
    bar = Bar("X", "1min", start, 1.0, 2.0, 0.5, 1.5)
    ticks = [Tick("X", start + 59 * S, 1.0), bar, Tick("X", start + 61 * S, 2.0)]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, ticks)))
    clock = Clock()
    begin, seen = clock.ns, []
    for delivery in clocked(clock, path=str(path)):
        seen += [(type(record), clock.ns - begin) for record in delivery.records]
    assert seen == [(Tick, 0), (Bar, S), (Tick, 2 * S)]


def test_what_cannot_be_played_is_said(recorded: Path) -> None:
    for options in (
        {},
        {"tape": recorded, "path": "x"},
        {"tape": recorded, "symbol": "x"},
        {"tape": recorded, "end": 0},
    ):
        with pytest.raises(ConfigInvalid):
            made(**options)
    source = made(tape=recorded)
    for wrong in (-1, float("nan"), True):
        with pytest.raises(ConfigInvalid):
            source.speed = wrong
    with pytest.raises(ConfigInvalid):
        source.seek(-1)
    with pytest.raises(ConfigInvalid, match="no cursor of a replay"):
        source.resume("file:1")


def test_a_long_replay_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "long.db") as tape:
        tape.append_table({"symbol": "X", "ts_event_ns": list(range(T0, T0 + 50_000)), "price": 1.0})
    most = 0

    def counted() -> Iterator[int]:
        nonlocal most
        for delivery in made(tape=tmp_path / "long.db", speed=0):
            most = max(most, delivery.count)
            yield delivery.count

    assert sum(counted()) == 50_000 and most <= replay._AT_ONCE
