"""Sealing beside the appending: the same bytes as the appender's own seal, whoever else seals, prunes or fails."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import apsw
import pytest

import onetape
from onetape import Bar, Tick
from onetape.store import beside, layout, minutes, seal, sqlite
from onetape.tape import care, sealing

MINUTE = 60 * 10**9
T0 = 1_700_000_040_000_000_000
#: A machine much slower than this one still seals so few records within it, s.
_PATIENCE_S = 60.0


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every appender have time: whatever is due is sealed beside it, at 20 rows."""
    monkeypatch.setattr(sealing, "_HURRY_S", 0.0)
    monkeypatch.setattr(sealing, "_SHORT_RECORDS", 0)
    monkeypatch.setattr(layout, "SEAL_RECORDS", 20)


def trades(count: int, first: int = 0, symbol: str = "A") -> list[Tick]:
    return [Tick(symbol, T0 + i * 10**9, price=i / 4, size=float(i), side=1) for i in range(first, first + count)]


def append_each(tape: onetape.Tape, ticks: list[Tick]) -> None:
    for tick in ticks:
        tape.append(tick)


def await_seal(tape: onetape.Tape) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while tape._sealer is not None:
        assert time.monotonic() < deadline, "the seal never ended"
        time.sleep(0.001)


def content(connection: apsw.Connection) -> list[list[object]]:
    """Return what a seal writes, but for the times at which it was done."""
    return [
        connection.execute(statement).fetchall()
        for statement in (
            "SELECT kind, symbol_id, symbol_min, symbol_max, seal, ts_min, ts_max, seq_min, seq_max, count, encoding,"
            " payload FROM chunk ORDER BY seal, kind, symbol_id, ts_min",
            "SELECT * FROM minute ORDER BY id",
            "SELECT seal, first, level FROM span ORDER BY seal",
            "SELECT * FROM symbol ORDER BY id",
            "SELECT * FROM bar ORDER BY symbol_id, interval_ns, source_id, ts_start_ns",
            "SELECT seq_last, count FROM journal ORDER BY seq_last",
            "SELECT seal FROM state",
        )
    ]


def filled(path: Path) -> onetape.Tape:
    """Return a tape whose journal has trades of a kept minute, late ones, quotes, several symbols and given bars."""
    tape = onetape.open(path, retention_days=None)
    tape.append([*trades(90), *trades(30, symbol="B")])
    tape.seal()
    append_each(tape, [*trades(50, 90), *trades(45, 30, "B")])
    tape.append([Tick("C", T0, bid=1.0, ask=2.0), Bar("A", "1min", T0, 1.0, 2.0, 0.5, 1.5, source="v"), *trades(7)])
    return tape


def each_way(tmp_path: Path, change: object = None) -> tuple[apsw.Connection, apsw.Connection, beside.Ready]:
    """Return two tapes filled alike, of which the first is made ready, and both then changed by the same act."""
    connections = []
    for name in ("beside.db", "own.db"):
        filled(tmp_path / name).close()
        connections.append(sqlite.connect(tmp_path / name, mode="rw"))
    ready = beside.prepare(connections[0], 1)
    assert ready is not None
    if change is not None:
        for connection in connections:
            change(connection)  # type: ignore[operator]
    return connections[0], connections[1], ready


def both_sealed(first: apsw.Connection, second: apsw.Connection, ready: beside.Ready) -> None:
    for connection in (first, second):
        connection.execute("BEGIN IMMEDIATE")
    assert beside.put(first, ready) is not None
    seal.seal(second)
    for connection in (first, second):
        connection.execute("COMMIT")
    assert content(first) == content(second)
    for connection in (first, second):
        connection.close()


def test_what_is_sealed_beside_is_the_bytes_of_the_appenders_own_seal(tmp_path: Path) -> None:
    both_sealed(*each_way(tmp_path))


def test_trades_in_order_are_folded_beforehand_and_give_the_same_bars(tmp_path: Path) -> None:
    for name in ("beside.db", "own.db"):
        with onetape.open(tmp_path / name, retention_days=None) as tape:
            tape.append([*trades(90), *trades(30, symbol="B")])
            tape.seal()
            append_each(tape, [*trades(50, 90), *trades(45, 30, "B")])
    first, second = (sqlite.connect(tmp_path / name, mode="rw") for name in ("beside.db", "own.db"))
    ready = beside.prepare(first, 1)
    assert ready is not None
    assert ready.foreseen is not None
    both_sealed(first, second, ready)


def test_bars_that_change_meanwhile_are_folded_again(tmp_path: Path) -> None:
    def drop_a_kept_hour(connection: apsw.Connection) -> None:
        connection.execute("DELETE FROM minute WHERE id = (SELECT min(id) FROM minute)")

    for name in ("beside.db", "own.db"):
        with onetape.open(tmp_path / name, retention_days=None) as tape:
            tape.append(trades(90))
            tape.seal()
            append_each(tape, trades(50, 90))
    first, second = (sqlite.connect(tmp_path / name, mode="rw") for name in ("beside.db", "own.db"))
    ready = beside.prepare(first, 1)
    assert ready is not None
    assert ready.foreseen is not None
    for connection in (first, second):
        drop_a_kept_hour(connection)
    assert not ready.foreseen.holds(first)
    both_sealed(first, second, ready)


def test_a_day_of_bars_that_is_packed_meanwhile_changes_nothing(tmp_path: Path) -> None:
    def packed(connection: apsw.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        minutes.pack(connection, minutes.to_pack(connection, T0 + 10 * layout.DAY_NS))
        connection.execute("COMMIT")

    both_sealed(*each_way(tmp_path, packed))


def test_what_was_appended_meanwhile_stays_in_the_journal(tmp_path: Path) -> None:
    with filled(tmp_path / "t.db") as tape:
        before = tape.stats().head
        connection = sqlite.connect(tape.path, mode="rw")
        ready = beside.prepare(connection, 1)
        assert ready is not None
        append_each(tape, trades(3, 500))
        connection.execute("BEGIN IMMEDIATE")
        assert beside.put(connection, ready) == (before + 3, 3)
        connection.execute("COMMIT")
        connection.close()
        assert (tape.stats().seal, tape.stats().head) == (before, before + 3)
        assert [record.seq for record in tape.follow(from_seq=0, idle_s=0)] == list(range(1, before + 4))


def test_who_comes_second_drops_what_it_made_ready(tmp_path: Path) -> None:
    with filled(tmp_path / "t.db") as tape:
        connection = sqlite.connect(tape.path, mode="rw")
        ready = beside.prepare(connection, 1)
        assert ready is not None
        tape.seal()
        append_each(tape, trades(30, 500))
        before = content(connection)
        connection.execute("BEGIN IMMEDIATE")
        assert beside.put(connection, ready) is None
        connection.execute("COMMIT")
        assert content(connection) == before
        connection.close()


def test_a_short_tail_is_left_alone(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db") as tape:
        tape.append(trades(5))
        with tape._reading() as connection:
            assert beside.prepare(connection, 6) is None
            assert beside.prepare(connection, 5) is not None
            assert not connection.in_transaction


def test_a_long_tail_is_made_ready_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with onetape.open(tmp_path / "t.db") as tape:
        append_each(tape, trades(50))
        for module in (beside, seal):
            monkeypatch.setattr(module, "SEAL_RECORDS_MAX", 16)
        with tape._reading() as connection:
            ready = beside.prepare(connection, 1)
        assert ready is not None
        assert ready.packed.end == 16


def test_a_steady_appender_is_sealed_by_a_thread(tmp_path: Path, calm: None) -> None:
    threads = set()
    real = sealing.Sealing._put_now

    def put(self: sealing.Sealing, *told: object) -> bool:
        threads.add(threading.current_thread().name)
        return real(self, *told)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        patch.setattr(sealing.Sealing, "_put_now", put)
        for start in range(0, 200, 20):
            append_each(tape, trades(20, start))
            await_seal(tape)
        assert threads == {"onetape-sealer"}
        assert tape.stats().seal == 200
        assert tape.read("A")["price"].to_pylist() == [i / 4 for i in range(200)]
        assert sum(bar.trades for bar in tape.bar_list("A")) == 200
    assert care.doctor(tmp_path / "t.db").healthy


def test_the_log_begins_anew_so_that_no_append_has_to_move_it(tmp_path: Path, calm: None) -> None:
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        append_each(tape, trades(20))
        await_seal(tape)
        tape.append(trades(1, 20)[0])
        raw = apsw.Connection(str(tape.path))
        frames, _ = raw.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        raw.close()
        assert frames < 10


def test_an_appender_in_a_hurry_seals_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SEAL_RECORDS", 20)
    monkeypatch.setattr(sealing, "_SHORT_RECORDS", 0)
    monkeypatch.setattr(sealing, "_HURRY_S", 1e9)
    with onetape.open(tmp_path / "t.db") as tape:
        append_each(tape, trades(20))
        assert tape._sealer is None
        assert tape.stats().seal == 20


def test_a_few_records_are_sealed_by_the_appender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SEAL_RECORDS", 20)
    monkeypatch.setattr(sealing, "_HURRY_S", 0.0)
    with onetape.open(tmp_path / "t.db") as tape:
        append_each(tape, trades(20))
        assert tape._sealer is None
        assert tape.stats().seal == 20


def test_a_thread_that_hangs_leaves_the_sealing_to_the_appender(
    tmp_path: Path, calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, real = threading.Event(), beside.prepare

    def slow(*told: object) -> object:
        ready = real(*told)  # type: ignore[arg-type]
        free.wait(_PATIENCE_S)
        return ready

    monkeypatch.setattr(beside, "prepare", slow)
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        longest = 0
        for tick in trades(500):
            tape.append(tick)
            longest = max(longest, tape.stats().unsealed)
        assert longest <= sealing._ALONE_FROM * layout.SEAL_RECORDS
        free.set()
        await_seal(tape)
        assert tape.read("A")["price"].to_pylist() == [i / 4 for i in range(500)]
        assert sum(bar.trades for bar in tape.bar_list("A")) == 500
    assert care.doctor(tmp_path / "t.db").healthy


def test_where_no_thread_can_be_started_the_appender_seals(
    tmp_path: Path, calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with onetape.open(tmp_path / "t.db") as tape:

        def refused(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refused)
        append_each(tape, trades(20))
        monkeypatch.undo()
        assert tape.stats().seal == 20


def test_after_a_seal_beside_has_failed_the_next_append_seals(
    tmp_path: Path, calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*told: object) -> None:
        raise apsw.FullError("database or disk is full")

    with onetape.open(tmp_path / "t.db") as tape:
        monkeypatch.setattr(beside, "put", fails)
        append_each(tape, trades(20))
        await_seal(tape)
        assert tape.stats().seal == 0
        assert tape.read("A").num_rows == 20
        tape.append(trades(1, 20)[0])
        assert tape.stats().seal == 21
        monkeypatch.undo()
        assert not tape._seal_alone


def test_a_damaged_row_is_told_and_stops_no_append(tmp_path: Path, calm: None) -> None:
    with onetape.open(tmp_path / "t.db") as tape:
        append_each(tape, trades(5))
        raw = apsw.Connection(str(tape.path))
        raw.execute("UPDATE journal SET payload = zeroblob(40) WHERE count > 0")
        raw.close()
        for tick in trades(60, 5):
            tape.append(tick)
            await_seal(tape)
        with tape._reading() as connection:
            assert connection.execute("SELECT max(seq_last) FROM journal").get == 65
            assert seal.seal_position(connection) == 0
        assert "checksum" in (tape._seal_error or "")


def test_closing_waits_for_the_seal(tmp_path: Path, calm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, real = threading.Event(), beside.prepare

    def slow(*told: object) -> object:
        begun.set()
        time.sleep(0.2)
        return real(*told)  # type: ignore[arg-type]

    monkeypatch.setattr(beside, "prepare", slow)
    with onetape.open(tmp_path / "t.db") as tape:
        append_each(tape, trades(20))
        assert begun.wait(_PATIENCE_S)
    with onetape.open(tmp_path / "t.db", mode="r") as tape:
        assert tape.stats().seal == 20


def test_a_seal_waits_for_another_process_without_holding_up_the_appends_of_its_own(
    tmp_path: Path, calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = threading.Event(), beside.prepare

    def prepare(*told: object) -> object:
        ready = real(*told)  # type: ignore[arg-type]
        made.set()
        return ready

    monkeypatch.setattr(beside, "prepare", prepare)
    with onetape.open(tmp_path / "t.db") as tape:
        other = sqlite.connect(tape.path, mode="rw")
        append_each(tape, trades(19))
        tape.append(trades(1, 19)[0])
        other.execute("BEGIN IMMEDIATE")
        assert made.wait(_PATIENCE_S)
        for _ in range(20):
            assert tape._write_lock.acquire(timeout=_PATIENCE_S)
            tape._write_lock.release()
        other.execute("COMMIT")
        other.close()
        await_seal(tape)
        assert tape.stats().seal == 20
        append_each(tape, trades(5, 20))  # the connection is as patient as before
        assert tape.stats().head == 25


def test_a_process_forked_during_seals_opens_a_tape_of_its_own(tmp_path: Path, calm: None) -> None:
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        for number in range(5):
            append_each(tape, trades(20, 20 * number))
            child = os.fork()
            if child == 0:
                done = 1
                try:
                    with onetape.open(tmp_path / "t.db", retention_days=None) as mine:
                        mine.append([Tick("F", T0, price=float(number))])
                        done = 0
                finally:
                    os._exit(done)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        await_seal(tape)
        assert tape.read("A").num_rows == 100
        assert tape.read("F").num_rows == 5
    assert care.doctor(tmp_path / "t.db").healthy
