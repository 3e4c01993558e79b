"""Defects that were found once: each of these lost, changed or hid a record, or told an engineer the wrong thing."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from datetime import datetime

import apsw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xxhash
from tests.waiting import waited_for

import onetape
from onetape import Bar, InvalidRecord, Tick
from onetape.live.waker import Waker
from onetape.store import layout, sqlite

T0 = 1_700_000_000_000_000_000
DAY = 86_400 * 10**9


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db") as opened:
        yield opened


@pytest.mark.parametrize(
    "act",
    [
        lambda tape: tape.append(Tick("A", T0, 1.0, [7.0, 8.0])),
        lambda tape: tape.append([Tick("A", T0, 1.0, [7.0, 8.0])]),
        lambda tape: tape.append_table({"symbol": "A", "ts_event_ns": np.arange(4), "price": np.ones((4, 2))}),
        lambda tape: tape.append_table({"symbol": "A", "ts_event_ns": np.arange(4), "price": np.ones((4, 1))}),
        lambda tape: tape.append_table({"symbol": "A", "ts_event_ns": [1, 2], "price": [[1.0], [2.0]]}),
    ],
)
def test_a_list_where_a_number_belongs_is_refused_and_the_tape_stays_readable(tape, act):
    tape.append(Tick("A", T0, 1.0))
    with pytest.raises(InvalidRecord):
        act(tape)
    assert tape.read("A").num_rows == 1


def test_a_chunk_that_is_cut_is_found_though_its_checksum_is_right(tape):
    tape.append([Tick("A", T0 + i, 1.0) for i in range(4)])
    tape.seal()
    raw = apsw.Connection(str(tape.path))
    payload = raw.execute("SELECT payload FROM chunk").get
    body = payload[:-20]
    raw.execute("UPDATE chunk SET payload = ?", (body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little"),))
    raw.close()
    with pytest.raises(onetape.ChunkCorrupt, match="cannot be decoded"):
        tape.read("A")


def _pruned(tape):
    """A tape on which retention has left a bar and old ticks before the gap."""
    tape.append(Bar("A", "1d", 0, 1.0, 1.0, 1.0, 1.0))
    tape.append([Tick("new", onetape.now_ns(), 1.0)])
    tape.seal()
    tape.append([Tick("old", T0 + i, 1.0) for i in range(100)])
    tape.seal()
    tape.append([Tick("new", onetape.now_ns(), 2.0)])
    raw = apsw.Connection(str(tape.path))
    raw.execute("UPDATE chunk SET sealed_ns = 0")
    raw.close()
    assert tape.prune(retention_days=30) == 100


def test_following_all_that_is_left_goes_on_over_what_retention_removed(tape):
    _pruned(tape)
    assert [record.seq for record in tape.follow(from_seq=0, idle_s=0)] == [1, 2, 103]
    assert [record.seq for record in tape.follow(from_time=T0 + DAY, idle_s=0)] == [2, 103]
    with pytest.raises(onetape.TapeError, match="retention has removed"):
        tape.follow(from_seq=2).take()


def test_memory_goes_on_over_what_retention_removed(tape):
    with onetape.open(tape.path) as other:
        assert other.latest("new") is None
        with other._recent._lock:  # as if this process had been stopped meanwhile
            _pruned(tape)
        deadline = time.monotonic() + 60
        while other.latest("new") is None or other.latest("new").price != 2.0:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_closing_a_waker_never_lets_its_waiter_read_what_is_not_its_own(tmp_path):
    taken = 0
    for _ in range(150):
        waker = Waker(tmp_path / "none")
        waiter = threading.Thread(target=waker.wait, args=(1.0,))
        waiter.start()
        time.sleep(0.0005)
        waker.close()
        pipes = [os.pipe() for _ in range(3)]
        for _, write in pipes:
            os.write(write, b"mine")
        waiter.join()
        for read, write in pipes:
            os.set_blocking(read, False)
            with contextlib.suppress(BlockingIOError):
                taken += os.read(read, 10) != b"mine"
            os.close(read)
            os.close(write)
    assert taken == 0


def test_an_append_that_is_stored_never_raises_because_sealing_failed(tape, monkeypatch):
    monkeypatch.setattr(layout, "SEAL_RECORDS", 10)
    tape.append([Tick("A", T0 + i, 1.0) for i in range(5)])
    raw = apsw.Connection(str(tape.path))
    raw.execute("UPDATE journal SET payload = zeroblob(40) WHERE count > 0")
    raw.close()
    for i in range(20):
        assert tape.append(Tick("A", T0 + i, 1.0)).stored == 1
    assert "checksum" in (tape._seal_error or "")
    with tape.writer() as writer:
        writer.append(Tick("A", T0, 1.0))
        writer.flush()
        assert writer.pending == []


def test_followers_come_and_go_while_records_are_appended(tape):
    tape.append(Tick("A", T0, 1.0))
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            tape.follow().close()

    churners = [threading.Thread(target=churn) for _ in range(3)]
    for churner in churners:
        churner.start()
    for i in range(500):
        tape.append(Tick("A", T0 + i, 1.0))
    stop.set()
    for churner in churners:
        churner.join()
    assert tape.read("A").num_rows == 501


def test_a_damaged_chunk_does_not_leave_later_reads_in_the_past(tape):
    tape.append([Tick("A", T0 + i, 1.0) for i in range(100)])
    tape.seal()
    tape.append([Tick("A", T0 + 100 + i, 1.0) for i in range(100)])
    tape.seal()
    raw = apsw.Connection(str(tape.path))
    raw.execute("UPDATE chunk SET payload = zeroblob(100) WHERE id = 1")
    raw.close()
    kept = []
    for read in (lambda: tape.read("A"), lambda: tape.recent("A", 5000)):
        with pytest.raises(onetape.ChunkCorrupt) as caught:
            read()
        kept.append(caught.value)
    tape.append(Tick("B", T0, 1.0))
    assert tape.stats().head == 201
    assert tape.read("B").num_rows == 1
    assert kept


def test_processes_that_make_new_tapes_at_the_same_moment_never_fail(tmp_path):
    code = """
    import sys, onetape
    for n in range(25):
        onetape.open(f"{sys.argv[1]}/{n}.db").close()
    """
    makers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), tmp_path]) for _ in range(4)]
    assert [maker.wait(120) for maker in makers] == [0] * 4


def test_overlapping_readers_do_not_let_the_log_grow_without_end(tape, monkeypatch):
    monkeypatch.setattr(sqlite, "_WAL_BYTES_KEPT", 2**20)
    tape.append([Tick("A", T0 + i, 1.0) for i in range(20_000)])
    stop = threading.Event()

    def read():
        while not stop.is_set():
            tape.read("A", T0, T0 + 5000)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    sizes = []
    for i in range(12):
        for k in range(3000):
            tape.append(Tick("A", T0 + i * 3000 + k, 1.0))
        sizes.append(tape.stats().wal_bytes)
    stop.set()
    for reader in readers:
        reader.join()
    assert min(sizes[3:]) < 16 * 2**20, sizes


def test_a_tape_in_a_folder_that_may_not_be_written_is_read_anew_when_somebody_writes(tmp_path, monkeypatch):
    path = tmp_path / "t.db"
    with onetape.open(path) as writer:
        writer.append([Tick("A", T0 + i, 1.0) for i in range(10)])
    real = sqlite._open

    def cannot_make_a_log(where, mode, *patience):
        if mode == "r" and not layout.wal_path(where).exists():
            uri = where.as_uri() + "?immutable=1"
            return sqlite.FrozenConnection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        return real(where, mode, *patience)

    monkeypatch.setattr(sqlite, "_open", cannot_make_a_log)
    with onetape.open(path, mode="r") as reader:
        assert reader.read("A").num_rows == 10
        assert reader.latest("A").ts_event_ns == T0 + 9
        with pytest.raises(onetape.TapeUnusable, match="cannot be followed"):
            reader.follow()
        with onetape.open(path) as writer:
            writer.append([Tick("A", T0 + 10 + i, 1.0) for i in range(20_000)])
            assert reader.read("A").num_rows == 20_010
            assert reader.latest("A").ts_event_ns == T0 + 20_009
        assert reader.read("A").num_rows == 20_010


def test_a_link_to_a_tape_is_the_tape(tape, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(tape.path)
    tape.append(Tick("A", T0, 1.0))
    with onetape.open(link) as other:
        assert other.path == tape.path
        assert other.stats().wal_bytes == tape.stats().wal_bytes > 0


BAD = [
    {"price": "x"},
    {"price": 1.0, "ts_event_ns": 2**63},
    {"price": 1.0, "side": 300},
    {"price": 1.0, "flags": -1},
    {"price": 1.0, "ts_event_ns": 1.5},
    {"price": 1.0, "source": 5},
    {"price": 1.0, "source": "\ud800"},
    {"price": 1.0, "source": ["x"]},
    {"price": 1.0, "symbol": "\ud800"},
    {"price": 1.0, "symbol": object()},
    {"price": 1.0, "symbol": ["A"]},
    {"price": float("inf")},
    {"price": float("nan")},
    {"price": 1.0, "trades": 2**70},
]


@pytest.mark.parametrize("fields", BAD, ids=[repr(bad)[:40] for bad in BAD])
def test_quarantine_takes_whatever_is_wrong_keeps_its_value_and_takes_it_once(tape, fields):
    good, bad = Tick("A", T0, 2.0), Tick(**{"symbol": "A", "ts_event_ns": T0, **fields})
    for _ in range(2):
        tape.append([good, bad], ids=[b"good", b"bad"], on_invalid="quarantine")
    assert [tick.price for tick in tape.recent("A")] == [2.0]
    (refused,) = tape.quarantined()
    assert refused.index == 1
    assert refused.record[refused.field], "the value that was wrong is kept"
    tape.append(bad, on_invalid="quarantine")
    assert len(tape.quarantined()) == 2
    with pytest.raises(InvalidRecord):
        tape.append(bad)
    with pytest.raises(InvalidRecord):
        tape.append([good, bad])
    assert tape.stats().head == 1


def test_a_writer_takes_ticks_only_and_never_gets_stuck_on_one(tape):
    writer = tape.writer(max_delay_ms=60_000)
    for wrong in (Bar("A", "1d", 0, 1.0, 1.0, 1.0, 1.0), "tick", None):
        with pytest.raises(InvalidRecord):
            writer.append(wrong)
    writer.append(Tick("A", 5, 1.0, trades=3))
    writer.append(Tick("A", 6, 1.0, trades=np.uint64(1)))
    writer.append(Tick("A", datetime(2025, 1, 1), 1.0))
    writer.close()
    assert writer.pending == []
    assert tape.read("A").num_rows == 3


def test_nothing_is_changed_on_its_way_in(tape):
    stamp = pd.Timestamp("2025-03-14T09:30:00.123456789Z")
    tape.append(Tick("A", stamp.value, 1.0))
    tape.append_table({"symbol": "B", "ts_event_ns": [stamp], "price": [1.0]})
    tape.append_table({"symbol": "B", "ts_event_ns": pd.Series([stamp]), "price": pd.Series([1.0])})
    assert set(tape.read("B").column("ts_event_ns").to_pylist()) == {stamp.value}
    assert tape.read("A", stamp, stamp + pd.Timedelta(1)).num_rows == 1
    assert tape.read("A", None, stamp).num_rows == 0
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    tape.append_table({"symbol": "C", "ts_event_ns": [1, 2], "price": masked, "bid": [1.0, 1.0]})
    assert tape.read("C").column("price").to_pylist() == [1.0, None]
    series = pd.Series([1.0, None])
    tape.append_table({"symbol": "D", "ts_event_ns": [1, 2], "price": series, "bid": pl.Series([1.0, 1.0])})
    assert tape.read("D").column("price").to_pylist() == [1.0, None]
    tape.append_table({"symbol": "E", "ts_event_ns": [1, 2], "price": 1.0, "ts_recv_ns": [datetime(2025, 1, 1), None]})
    assert tape.read("E").column("ts_recv_ns").to_pylist() == [1_735_689_600_000_000_000, None]
    tape.latest("A")
    for price in (5, 2**53 + 1, True):
        tape.append(Tick("A", stamp.value + 1, price))
        assert tape.latest("A") == tape.recent("A", 5000)[-1]
        assert type(tape.latest("A").price) is float


@pytest.mark.parametrize(
    "column,values",
    [
        ("ts_event_ns", np.array(["2600-01-01"], "datetime64[s]")),
        ("ts_event_ns", np.array(["1000-01-01"], "datetime64[s]")),
        ("ts_event_ns", pa.array([datetime(2300, 1, 1)], pa.timestamp("s"))),
        ("price", np.array(["2025-01-01"], "datetime64[s]")),
        ("flags", np.array(["2025-01-01"], "datetime64[s]")),
    ],
)
def test_times_out_of_range_or_out_of_place_are_refused(tape, column, values):
    with pytest.raises((InvalidRecord, onetape.ConfigInvalid)):
        tape.append_table({"symbol": "A", "ts_event_ns": [1], "price": [1.0], column: values})
    assert tape.stats().head == 0


def test_spans_beyond_all_time_are_empty_or_everything_not_errors(tape):
    tape.append(Tick("A", T0, 1.0))
    assert tape.read("A", -(2**70), 2**70).num_rows == 1
    assert tape.read("A", 2**70).num_rows == 0
    assert tape.read("A", datetime(9999, 1, 1)).num_rows == 0
    assert tape.bars("A", "1min", -(2**70), 2**70).num_rows == 1
    assert tape.follow(from_time=2**70).take() == []
    for wrong in (
        lambda: tape.follow(from_seq=2**70),
        lambda: tape.bars("A", "999999d"),
        lambda: tape.append(None),
        lambda: tape.read("\ud800"),
        lambda: tape.has_ids(["a"]),
        lambda: tape.append([Tick("A", 1, 1.0)], batch=5),
        lambda: tape.append([Tick("A", 1, 1.0)], cursor=("a", "b")),
    ):
        with pytest.raises(onetape.ConfigInvalid):
            wrong()
    with pytest.raises(InvalidRecord):
        tape.append(Bar("A", "999999d", 0, 1.0, 1.0, 1.0, 1.0))
    assert tape.stats().head == 1


@pytest.mark.parametrize("path", ["x" * 300, "a\0b"])
def test_a_path_that_cannot_be_is_one_clear_line(tmp_path, path):
    for mode in ("rw", "r"):
        with pytest.raises(onetape.TapeError) as caught:
            onetape.open(f"{tmp_path}/{path}", mode=mode)
        assert "\n" not in str(caught.value)


def test_an_idle_subscriber_is_not_taken_for_a_slow_one(tape):
    got: list[int] = []
    ended = [
        tape.subscribe(lambda record: got.append(record.seq), when_slow=policy, queue_records=10)
        for policy in ("drop_oldest", "disconnect")
    ]
    tape.append([Tick("A", T0 + i, 1.0) for i in range(1000)])
    waited_for(lambda: len(got) == 2000, "all is heard")
    assert [one.dropped for one in ended] == [0, 0]


def test_subscriptions_that_ended_by_themselves_do_not_pile_up(tape):
    for _ in range(15):
        stuck, called = threading.Event(), threading.Event()
        stick = lambda record, stuck=stuck, called=called: (called.set(), stuck.wait(60))  # noqa: E731
        one = tape.subscribe(stick, when_slow="disconnect", queue_records=1)
        tape.append(Tick("A", T0, 1.0))
        assert called.wait(60)
        tape.append([Tick("A", T0 + i, 1.0) for i in range(50)])
        time.sleep(0.02)
        stuck.set()
        waited_for(lambda one=one: not one.active and not one._queue, "the slow one is ended")
    assert len(tape.stats().subscriptions) <= 8


def test_bars_before_and_after_sealing_agree_on_a_negative_zero(tape):
    tape.append(Tick("A", T0, -0.0, 1.0))
    before = tape.bars("A").to_pylist()
    tape.seal()
    assert repr(tape.bars("A").to_pylist()) == repr(before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_never_answers_from_its_parents_memory(tape):
    tape.append(Tick("A", T0, 1.0))
    tape.latest("A")
    follower, writer = tape.follow(from_seq=0), tape.writer()
    child = os.fork()
    if child == 0:
        refused = 0
        for act in (
            lambda: tape.latest("A"),
            lambda: tape.recent("A"),
            follower.take,
            lambda: writer.append(Tick("A", T0, 1.0)),
        ):
            try:
                act()
            except onetape.TapeClosed:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert len(follower.take()) == 1


def test_a_late_trade_is_exact_where_only_another_symbol_was_pruned(tape):
    minute = T0 // (60 * 10**9) * 60 * 10**9
    tape.append([Tick("B", minute + i, 1.0, 0.1) for i in range(3)])
    tape.seal()
    raw = apsw.Connection(str(tape.path))
    raw.execute("UPDATE chunk SET sealed_ns = 2 * ?", (T0,))
    raw.close()
    tape.append([Tick("A", minute + DAY, 1.0, 1.0)])
    tape.seal()
    raw = apsw.Connection(str(tape.path))
    raw.execute("UPDATE chunk SET sealed_ns = 0 WHERE ? BETWEEN symbol_min AND symbol_max", (2,))
    raw.close()
    assert tape.prune(retention_days=30) == 1
    tape.append([Tick("B", minute + 1, 5.0, 1e16)])
    tape.seal()
    expected = ((0.0 + 0.1) + 0.1 + 1e16) + 0.1
    assert tape.bar_list("B")[0].volume == expected
