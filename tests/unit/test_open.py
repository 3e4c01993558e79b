"""Opening: every path that is not a good tape gets one clear line, and nothing is touched."""

import os
import sqlite3
import stat
import subprocess
import sys
from typing import ClassVar

import apsw
import numpy as np
import pytest

import onetape
from onetape import Tick
from onetape.store import bars, block, layout, sqlite

T0 = 1_700_000_000_000_000_000
MINUTE, DAY = 60_000_000_000, 86_400_000_000_000


def make_format_1(path):
    """Write a tape as the first format did; return its path, its ticks, and the (start, close) of A's minutes."""
    raw = apsw.Connection(str(path))
    raw.pragma("page_size", 1024)
    raw.pragma("auto_vacuum", "INCREMENTAL")
    raw.pragma("journal_mode", "wal")
    raw.execute(layout.SCHEMA)
    raw.execute("INSERT INTO state VALUES (0, 406, 5, 0, ?)", (T0,))
    raw.execute(
        "INSERT INTO symbol VALUES (1, 'A', 200, 0, ?1, ?2, ?2, ?1), (2, 'B', 200, 1, ?1, ?2, ?2, 0)",
        (T0, T0 + 399 * 10**9),
    )
    raw.execute("INSERT INTO source VALUES (1, 'vendor')")
    ticks, closes = [], {}
    for i in range(406):
        symbol, ts, source = "AB"[i % 2], T0 + i * 10**9, "vendor" if i % 3 == 0 else None
        seq = i + 6 + (i >= 400)
        ticks.append(Tick(symbol, ts, i / 4, None if i % 5 == 0 else 1.0, seq=seq, source=source))
        if symbol == "A":
            closes[ts // MINUTE * MINUTE] = i / 4
    for first, last in ((0, 150), (150, 400)):  # two seals; the second holds a given bar, too
        for which, symbol in ((1, "A"), (2, "B")):
            mine = [tick for tick in ticks[first:last] if tick.symbol == symbol]
            raw.execute(
                "INSERT INTO chunk VALUES (NULL, 0, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (which, 155 if last == 150 else 406, mine[0].ts_event_ns, mine[-1].ts_event_ns, mine[-1].seq, len(mine),
                 T0, block.encode(0, _columns(mine))),
            )  # fmt: skip
    day = T0 // DAY * DAY
    given = {
        "ts_event_ns": np.array([day]),
        "open": np.array([1.0]),
        "high": np.array([2.0]),
        "low": np.array([0.5]),
        "close": np.array([1.5]),
        "interval_ns": np.array([DAY]),
        "seq": np.array([406]),
        "source": np.array([1], "<u4"),
        "complete": np.array([1], "<i1"),
    }
    raw.execute(
        "INSERT INTO chunk VALUES (NULL, 1, 2, 406, ?1, ?1, 406, 1, ?2, 0, ?3)", (day, T0, block.encode(1, given))
    )
    bar = f"INSERT INTO bar VALUES ({','.join('?' * 20)})"
    raw.execute(bar, (2, DAY, 1, day, 1.0, 2.0, 0.5, 1.5, *[None] * 6, 1, 0, *[None] * 3, 406))
    old = T0 // MINUTE * MINUTE - DAY
    raw.execute(
        bar, (1, MINUTE, 0, old, 5.0, 6.0, 5.0, 6.0, 7.0, 40.0, None, 3, None, None, None, 2, old, 1, old + 5, 4)
    )
    for which, symbol in ((1, "A"), (2, "B")):
        mine = [tick for tick in ticks[:400] if tick.symbol == symbol]
        for made in bars.of_history({**_columns(mine), "symbol": np.full(len(mine), which, "<u4")}):
            sums = (made.volume, made.notional, None, made.trades, made.bid_volume, made.ask_volume)
            raw.execute(bar, (which, MINUTE, 0, *made[1:6], *sums, None, made.revision, *made[-4:]))
    raw.execute("INSERT INTO journal VALUES (406, 0, 0, x'')")
    for tick in ticks[400:]:
        columns = {name: values for name, values in _columns([tick]).items() if name != "seq"}
        blob = block.encode(0, {**columns, "symbol": np.array([1 + (tick.symbol == "B")], "<u4")})
        raw.execute("INSERT INTO journal VALUES (?, 1, 0, ?)", (tick.seq, blob))
    raw.pragma("application_id", layout.APPLICATION_ID)
    raw.pragma("user_version", 1)
    raw.close()
    return path, ticks, sorted(closes.items())


def _columns(ticks):
    return {
        "ts_event_ns": np.array([tick.ts_event_ns for tick in ticks]),
        "price": np.array([tick.price for tick in ticks]),
        "size": np.array([np.nan if tick.size is None else tick.size for tick in ticks]),
        "seq": np.array([tick.seq for tick in ticks]),
        "source": np.array([0 if tick.source is None else 1 for tick in ticks], "<u4"),
    }


def _one_line(error: onetape.OnetapeError) -> None:
    assert "\n" not in str(error)
    assert error.hint


def test_a_directory(tmp_path):
    with pytest.raises(onetape.TapeUnusable, match="is a directory") as caught:
        onetape.open(tmp_path)
    _one_line(caught.value)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(onetape.TapeUnusable, match="no folder") as caught:
        onetape.open(tmp_path / "no" / "t.db")
    _one_line(caught.value)


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(onetape.TapeMissing, match="no tape at") as caught:
        onetape.open(tmp_path / "t.db", mode="r")
    _one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "t.db"
    path.write_bytes(b"time,price\n1,2\n" * 500)
    before = path.read_bytes()
    for mode in ("rw", "r"):
        with pytest.raises(onetape.TapeUnusable, match="not a") as caught:
            onetape.open(path, mode=mode)
        _one_line(caught.value)
    assert path.read_bytes() == before


def test_another_programs_database_is_not_touched(tmp_path):
    path = tmp_path / "market_data.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE market_data(id INTEGER PRIMARY KEY, symbol TEXT)")
        other.execute("INSERT INTO market_data VALUES (1, 'NQ')")
    other.close()
    before = path.read_bytes()
    with pytest.raises(onetape.TapeUnusable, match="not a tape") as caught:
        onetape.open(path)
    _one_line(caught.value)
    assert path.read_bytes() == before


def test_a_tape_of_a_newer_version(tmp_path):
    path = tmp_path / "t.db"
    onetape.open(path).close()
    with apsw.Connection(str(path)) as raw:
        raw.pragma("user_version", layout.FORMAT_VERSION + 1)
    raw.close()
    for mode in ("rw", "r"):
        with pytest.raises(onetape.TapeTooNew, match=f"format {layout.FORMAT_VERSION + 1}") as caught:
            onetape.open(path, mode=mode)
        _one_line(caught.value)


@pytest.fixture
def format_1(tmp_path):
    """A tape as the first format wrote it: sealed ticks and bars, pruned history, a journal; and what it holds."""
    return make_format_1(tmp_path / "old.db")


def test_a_tape_of_the_first_format_is_backed_up_upgraded_and_reads_back_the_same(format_1):
    path, ticks, minutes = format_1
    with onetape.open(path, retention_days=None) as tape:
        for symbol in "AB":
            expected = [tick for tick in ticks if tick.symbol == symbol]
            assert tape.recent(symbol, 10_000) == expected
            assert tape.read(symbol).column("seq").to_pylist() == [tick.seq for tick in expected]
        followed = list(tape.follow(symbols=["A", "B"], from_seq=5, idle_s=0))
        assert [record for record in followed if isinstance(record, Tick)] == ticks
        [pruned, *rest] = tape.bar_list("A")
        assert (pruned.ts_start_ns, pruned.open, pruned.close) == (T0 // MINUTE * MINUTE - DAY, 5.0, 6.0)
        assert (pruned.volume, pruned.vwap, pruned.bid_volume, pruned.revision) == (7.0, 40.0 / 7.0, None, 2)
        assert [(bar.ts_start_ns, bar.close) for bar in rest] == minutes
        assert tape.bar_list("B", "1d", source="vendor")[0].close == 1.5
        assert [info.ticks for info in tape.symbols()] == [203, 203]
        assert tape.append(Tick("A", T0 + 10**12, price=9.0)).first == ticks[-1].seq + 1
        tape.seal()
        assert tape.latest("A").price == 9.0
    told = onetape.doctor(path, full=True)
    assert told.healthy, told.problems
    backup = apsw.Connection(str(layout.backup_path(path, 1)), flags=apsw.SQLITE_OPEN_READONLY)
    assert backup.pragma("user_version") == 1
    assert backup.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'span'").get == 0
    assert backup.execute("SELECT sum(count) FROM chunk").get == 401
    backup.close()


def test_an_upgrade_says_what_it_takes_and_changes_nothing_until_it_is_told_to(format_1):
    path, ticks, _ = format_1
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    plan = onetape.upgrade(path)
    assert (plan.version, plan.to_version, plan.done) == (1, layout.FORMAT_VERSION, False)
    assert plan.bytes_needed >= path.stat().st_size
    assert plan.backup == str(layout.backup_path(path, 1))
    assert plan.changes
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    with pytest.raises(onetape.TapeUnusable, match="older format 1") as caught:
        onetape.open(path, mode="r")
    _one_line(caught.value)
    assert onetape.upgrade(path, execute=True).done
    again = onetape.upgrade(path, execute=True)
    assert (again.version, again.backup, again.done) == (layout.FORMAT_VERSION, None, False)
    with onetape.open(path, mode="r", retention_days=None) as tape:
        assert len(tape.recent("A", 10_000)) == sum(tick.symbol == "A" for tick in ticks)


def test_the_doctor_says_of_an_older_format_how_to_go_on(format_1):
    path, _, _ = format_1
    told = onetape.doctor(path)
    assert told.healthy
    assert [finding.hint for finding in told.findings if finding.weight == "warning"] == [
        "onetape upgrade brings it here"
    ]
    assert onetape.upgrade(path).version == 1


def test_an_upgrade_that_is_cut_off_leaves_the_old_format_whole(format_1, monkeypatch):
    path, ticks, _ = format_1
    change = sqlite.UPGRADES[1]

    def broken(connection):
        change(connection)
        raise RuntimeError("power")

    with monkeypatch.context() as patched:
        patched.setitem(sqlite.UPGRADES, 1, broken)
        with pytest.raises(RuntimeError, match="power"):
            onetape.open(path)
    assert onetape.upgrade(path).version == 1
    with onetape.open(path, retention_days=None) as tape:
        assert len(tape.recent("B", 10_000)) == sum(tick.symbol == "B" for tick in ticks)


def test_an_upgrade_of_what_is_no_tape_or_is_newer_is_refused(tmp_path):
    text = tmp_path / "notes.db"
    text.write_text("not a database " * 50)
    with pytest.raises(onetape.TapeUnusable, match="not a tape"):
        onetape.upgrade(text, execute=True)
    with pytest.raises(onetape.TapeMissing):
        onetape.upgrade(tmp_path / "no.db")
    path = tmp_path / "t.db"
    onetape.open(path).close()
    with apsw.Connection(str(path)) as raw:
        raw.pragma("user_version", layout.FORMAT_VERSION + 1)
    raw.close()
    with pytest.raises(onetape.TapeTooNew):
        onetape.upgrade(path, execute=True)


def test_an_older_tape_that_cannot_be_upgraded_says_so(tmp_path):
    path = tmp_path / "t.db"
    onetape.open(path).close()
    raw = apsw.Connection(str(path))
    raw.pragma("user_version", 0)
    raw.close()
    with pytest.raises(onetape.TapeUnusable, match="format 0"):
        onetape.open(path)
    with pytest.raises(onetape.TapeUnusable, match="older format"):
        onetape.open(path, mode="r")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written(tmp_path):
    path = tmp_path / "t.db"
    onetape.open(path).close()
    path.chmod(stat.S_IREAD)
    with pytest.raises(onetape.TapeReadOnly):
        onetape.open(path)


def test_a_file_marked_read_only_by_sqlite_is_refused_for_writing_and_read(tmp_path, monkeypatch):
    path = tmp_path / "t.db"
    with onetape.open(path) as tape:
        tape.append(Tick("A", T0, price=1.0))
    real = apsw.Connection

    def readonly(name, flags=0, **more):
        if flags & apsw.SQLITE_OPEN_READWRITE:
            flags = flags & ~apsw.SQLITE_OPEN_READWRITE & ~apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_READONLY
        return real(name, flags=flags, **more)

    monkeypatch.setattr(sqlite.apsw, "Connection", readonly)
    with pytest.raises(onetape.TapeReadOnly, match="may not be written") as caught:
        onetape.open(path)
    _one_line(caught.value)
    with onetape.open(path, mode="r") as tape:
        assert tape.latest("A").price == 1.0


def test_a_read_only_tape_reads_and_follows_but_does_not_write(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path) as writer, onetape.open(path, mode="r") as tape:
        writer.append(Tick("A", T0, price=1.0))
        assert tape.latest("A").price == 1.0
        assert tape.stats().ticks == 1
        for act in (
            lambda: tape.append(Tick("A", T0, price=1.0)),
            lambda: tape.append([]),
            lambda: tape.writer(),
            lambda: tape.seal(),
            lambda: tape.prune(),
        ):
            with pytest.raises(onetape.TapeReadOnly) as caught:
                act()
            _one_line(caught.value)


def test_a_damaged_tape(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path) as tape:
        tape.append([Tick(f"S{i % 40}", T0 + i, price=1.0) for i in range(20_000)])
    raw = bytearray(path.read_bytes())
    for page in range(2, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(raw)
    with pytest.raises((onetape.TapeDamaged, onetape.ChunkCorrupt)) as caught, onetape.open(path) as tape:
        tape.read("S1")
    _one_line(caught.value)


def test_a_cut_off_tape(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path) as tape:
        tape.append([Tick(f"S{i % 40}", T0 + i, price=1.0) for i in range(20_000)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 4096 * 4096])
    with pytest.raises((onetape.TapeDamaged, onetape.ChunkCorrupt)) as caught, onetape.open(path) as tape:
        tape.read("S1")
    _one_line(caught.value)


def test_one_flipped_bit_in_a_chunk_is_found_and_named(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path) as tape:
        tape.append([Tick("A", T0 + i, price=i / 7) for i in range(4000)])
        tape.append([Tick("B", T0 + i, price=i / 7) for i in range(4000)])
        tape.seal()
    raw = apsw.Connection(str(path))
    chunk_id, payload = raw.execute("SELECT id, payload FROM chunk WHERE symbol_id = 1").fetchone()
    flipped = bytearray(payload)
    flipped[len(flipped) // 2] ^= 4
    raw.execute("UPDATE chunk SET payload = ? WHERE id = ?", (bytes(flipped), chunk_id))
    raw.close()
    with onetape.open(path) as tape:
        with pytest.raises(onetape.ChunkCorrupt, match=rf"chunk {chunk_id} .*fails its checksum") as caught:
            tape.read("A")
        _one_line(caught.value)
        assert tape.read("B").num_rows == 4000


def test_use_after_close_says_so(tmp_path):
    tape = onetape.open(tmp_path / "t.db")
    tape.append(Tick("A", T0, price=1.0))
    tape.latest("A")
    tape.close()
    tape.close()
    for act in (
        lambda: tape.append(Tick("A", T0, price=1.0)),
        lambda: tape.latest("A"),
        lambda: tape.recent("A"),
        lambda: tape.read("A"),
        lambda: tape.stats(),
        lambda: tape.follow(),
        lambda: tape.subscribe(print),
    ):
        with pytest.raises(onetape.TapeClosed, match="closed") as caught:
            act()
        _one_line(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_told_to_open_its_own(tmp_path):
    with onetape.open(tmp_path / "t.db") as tape:
        tape.append(Tick("A", T0, price=1.0))
        child = os.fork()
        if child == 0:
            try:
                tape.append(Tick("A", T0, price=2.0))
            except onetape.TapeClosed as error:
                os._exit(7 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        tape.append(Tick("A", T0 + 1, price=3.0))
        assert tape.latest("A").price == 3.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"durability": "maybe"},
        {"mode": "w"},
        {"recent_per_symbol": 0},
        {"retention_days": 0},
        {"busy_timeout_ms": -1},
    ],
)
def test_a_wrong_option_is_refused(tmp_path, wrong):
    with pytest.raises(onetape.ConfigInvalid):
        onetape.open(tmp_path / "t.db", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_held_too_long_is_busy_and_stores_nothing(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path, busy_timeout_ms=50) as tape:
        tape.append(Tick("A", T0, price=1.0))
        holder = apsw.Connection(str(path))
        holder.execute("BEGIN IMMEDIATE")
        for records in (Tick("A", T0, price=2.0), [Tick("B", T0, price=2.0)]):
            with pytest.raises(onetape.TapeBusy, match="cannot append") as caught:
                tape.append(records)
            _one_line(caught.value)
        holder.execute("ROLLBACK")
        holder.close()
        tape.append(Tick("A", T0 + 1, price=3.0))
        assert [tick.price for tick in tape.recent("A")] == [1.0, 3.0]
        assert [info.symbol for info in tape.symbols()] == ["A"]


class _CountingFile(apsw.VFSFile):
    syncs: ClassVar[list[str]] = []

    def __init__(self, filename, flags):
        name = filename.filename() if isinstance(filename, apsw.URIFilename) else filename
        self._name = str(name)
        super().__init__("", filename, flags)

    def xSync(self, flags):
        self.syncs.append(self._name)
        return super().xSync(flags)


class _CountingVFS(apsw.VFS):
    def __init__(self):
        super().__init__("counting", "")

    def xOpen(self, name, flags):
        return _CountingFile(name, flags)


@pytest.mark.parametrize("durability,syncs_a_commit", [("process", 0), ("power", 1)])
def test_power_durability_syncs_the_log_at_every_commit_and_process_durability_does_not(
    tmp_path, monkeypatch, durability, syncs_a_commit
):
    vfs = _CountingVFS()
    real = apsw.Connection
    monkeypatch.setattr(sqlite.apsw, "Connection", lambda name, flags=0: real(name, flags=flags, vfs="counting"))
    with onetape.open(tmp_path / "t.db", durability=durability) as tape:
        tape.append(Tick("A", T0, price=1.0))
        for act in (
            lambda i: tape.append(Tick("A", T0 + i, price=1.0)),
            lambda i: tape.append([Tick("A", T0 + i, price=1.0), Tick("B", T0 + i, price=1.0)]),
        ):
            act(0)
            _CountingFile.syncs.clear()
            for i in range(10):
                act(i)
            assert len([name for name in _CountingFile.syncs if name.endswith("-wal")]) == 10 * syncs_a_commit
    vfs.unregister()


def test_a_reader_that_opens_while_the_file_is_locked_for_a_moment_waits(tmp_path):
    path = tmp_path / "t.db"
    onetape.open(path).close()
    code = (
        "import apsw, sys, time\n"
        "locker = apsw.Connection(sys.argv[1])\n"
        "locker.pragma('journal_mode', 'delete')\n"  # what the last one to close does to the log, held for longer
        "locker.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "time.sleep(0.3)\n"
        "locker.execute('ROLLBACK')\n"
    )
    locker = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert locker.stdout.readline() == "locked\n"
        with onetape.open(path, mode="r") as tape:
            assert tape.symbols() == []
    finally:
        locker.kill()
        locker.wait()
