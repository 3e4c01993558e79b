"""Opening: every path that is not a good tape gets one clear line, and nothing is touched."""

import os
import sqlite3
import stat
from typing import ClassVar

import apsw
import pytest

import onetape
from onetape import Tick
from onetape.store import layout, sqlite

T0 = 1_700_000_000_000_000_000


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


def test_an_older_tape_is_backed_up_and_upgraded_in_one_transaction(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path) as tape:
        tape.append(Tick("A", T0, price=1.0))
    raw = apsw.Connection(str(path))
    raw.pragma("user_version", 0)

    def broken(connection):
        connection.execute("CREATE TABLE half(done)")
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        sqlite.upgrade(raw, path, {0: broken}, 1)
    assert raw.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").get == 0
    sqlite.upgrade(raw, path, {0: lambda connection: connection.execute("CREATE TABLE more(x)")}, 1)
    raw.close()
    with onetape.open(path) as tape:
        assert tape.latest("A").price == 1.0
    backup = apsw.Connection(str(layout.backup_path(path, 0)), flags=apsw.SQLITE_OPEN_READONLY)
    assert backup.pragma("user_version") == 0
    assert backup.execute("SELECT count(*) FROM journal").get == 2
    backup.close()


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
        tape.append([Tick("A", T0 + i, price=1.0) for i in range(100)])
        tape.append([Tick("B", T0 + i, price=1.0) for i in range(100)])
        tape.seal()
    raw = apsw.Connection(str(path))
    chunk_id, payload = raw.execute("SELECT id, payload FROM chunk WHERE symbol_id = 1").fetchone()
    flipped = bytearray(payload)
    flipped[len(flipped) // 2] ^= 4
    raw.execute("UPDATE chunk SET payload = ? WHERE id = ?", (bytes(flipped), chunk_id))
    raw.close()
    with onetape.open(path) as tape:
        with pytest.raises(onetape.ChunkCorrupt, match=f"chunk {chunk_id} fails its checksum") as caught:
            tape.read("A")
        _one_line(caught.value)
        assert tape.read("B").num_rows == 100


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
