"""The steady tape: through every outage each record is stored once, given once, and readable meanwhile."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from tests.waiting import waited_for

import onetape
from onetape import Bar, InvalidRecord, Tick
from onetape.errors import ConfigInvalid, CursorConflict, TapeFull
from onetape.steady import SteadyTape
from onetape.steady.back import Back
from onetape.steady.ring import Ring

T0 = 1_763_740_800_000_000_000
S = 1_000_000_000


def tick(i, symbol="A", **more):
    return Tick(symbol, T0 + i * S, float(i), 1.0, **more)


@pytest.fixture
def steady(tmp_path):
    with SteadyTape(tmp_path / "t.db", retry_s=0.02, retention_days=None, ring_records=1000) as made:
        yield made


@pytest.fixture
def away(tmp_path):
    """One whose folder is not there yet."""
    with SteadyTape(tmp_path / "later" / "t.db", retry_s=0.02, retention_days=None, ring_records=1000) as made:
        yield made


def prices(path):
    with onetape.open(path, mode="r") as tape:
        return tape.read("A", columns=["price"])["price"].to_pylist()


def test_on_the_tape_it_is_a_tape(steady):
    assert steady.status.on_tape and steady.tape is not None
    assert steady.append([tick(1), tick(2)]) == (1, 2, 2)
    assert steady.latest("A").price == 2.0 and [t.price for t in steady.recent("A")] == [1.0, 2.0]
    assert steady.head == 2 and steady.symbol_names() == ["A"]
    assert steady.append(tick(3), cursor=("s", None, "x")) == (3, 3, 1) and steady.cursor("s") == "x"


def test_a_tape_that_is_missing_at_the_start_is_written_when_its_folder_comes(away):
    assert not away.status.on_tape and "folder" in away.status.reason
    assert away.append([tick(1), tick(2)]) is None
    assert away.append(tick(3), cursor=("s", None, "x")) is None
    assert away.status.held == 3 and away.cursor("s") == "x" and away.head is None
    away.path.parent.mkdir()
    waited_for(lambda: away.status.on_tape)
    assert prices(away.path) == [1.0, 2.0, 3.0]
    assert away.tape.cursor("s") == "x" and away.status.written_back == 3 and away.status.held == 0


def test_what_is_held_is_read_as_if_it_were_on_the_tape(away):
    away.append([tick(0), tick(30), tick(70), tick(10, symbol="B", bid=1.0)])
    away.append(tick(20))  # late
    assert away.latest("A").price == 70.0 and set(away.latest()) == {"A", "B"}
    assert [t.price for t in away.recent("A", 3)] == [20.0, 30.0, 70.0]
    assert [(b.open, b.high, b.close, b.volume) for b in away.bar_list("A")] == [(0, 30, 30, 3), (70, 70, 70, 1)]
    assert away.read("A", T0, T0 + 31 * S)["price"].to_pylist() == [0.0, 20.0, 30.0]
    info = {info.symbol: info for info in away.symbols()}["A"]
    assert (info.ticks, info.ts_first_ns, info.ts_last_ns) == (4, T0, T0 + 70 * S)
    assert away.bars("A").num_rows == 2


def test_reads_join_what_is_on_the_tape_and_what_is_held(steady, tmp_path):
    steady.append([tick(0), tick(10)])
    with locked(steady.path):
        assert steady.append([tick(20), tick(30)]) is None
        assert "locked" in steady.status.reason
        assert steady.latest("A").price == 30.0
        assert [t.price for t in steady.recent("A", 10)] == [0.0, 10.0, 20.0, 30.0]
        assert steady.read("A")["price"].to_pylist() == [0.0, 10.0, 20.0, 30.0]
        (bar,) = steady.bar_list("A")
        assert (bar.open, bar.high, bar.close, bar.volume, bar.trades) == (0.0, 30.0, 30.0, 4.0, 4)
    waited_for(lambda: steady.status.on_tape)
    (again,) = steady.bar_list("A")
    assert (again.open, again.close, again.volume) == (0.0, 30.0, 4.0)


class locked:
    """Another process holds the write lock."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        code = (
            "import sqlite3, sys\n"
            "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "c.execute('BEGIN IMMEDIATE')\nprint('locked', flush=True)\nsys.stdin.read()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "locked\n"

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def test_a_locked_tape_holds_records_for_later(tmp_path):
    with SteadyTape(tmp_path / "t.db", retry_s=0.02, busy_timeout_ms=50, retention_days=None) as steady:
        steady.append(tick(1))
        with locked(steady.path):
            assert [steady.append(tick(i)) for i in range(2, 50)] == [None] * 48
        waited_for(lambda: steady.status.on_tape)
        steady.append(tick(50))
        assert prices(steady.path) == [float(i) for i in range(1, 51)]


def test_subscribers_get_each_record_once_and_in_order_through_outages(tmp_path):
    with SteadyTape(tmp_path / "t.db", retry_s=0.02, busy_timeout_ms=20, retention_days=None) as steady:
        got = []
        subscription = steady.subscribe(lambda record: got.append(record.price), "A", "block")
        number = 0
        for _ in range(4):
            for _ in range(20):
                number += 1
                steady.append(tick(number))
            with locked(steady.path):
                for _ in range(20):
                    number += 1
                    steady.append(tick(number))
                    steady.append(tick(number, symbol="B"))
                waited_for(lambda number=number: got and got[-1] == number)
            waited_for(lambda: steady.status.on_tape)
        steady.append(tick(number + 1))
        waited_for(lambda: got[-1] == number + 1)
        time.sleep(0.2)
        assert got == [float(i) for i in range(1, number + 2)]
        assert prices(steady.path) == got
        subscription.close()
        assert subscription.error is None


def test_a_subscriber_that_comes_after_an_outage_gets_what_is_written_back_from_the_tape(away):
    away.append(tick(1))
    got = []
    away.subscribe(lambda record: got.append((record.price, record.seq)), when_slow="block")
    away.append(tick(2))
    waited_for(lambda: got == [(2.0, None)])
    away.path.parent.mkdir()
    waited_for(lambda: away.status.on_tape)
    away.append(tick(3))
    waited_for(lambda: (3.0, 3) in got)
    assert (2.0, 2) not in got


def test_what_other_processes_append_is_given_too(steady):
    got = []
    steady.subscribe(lambda record: got.append(record.price))
    with onetape.open(steady.path) as other:
        other.append(tick(7))
    waited_for(lambda: got == [7.0])


def test_the_ring_drops_the_oldest_and_counts_it(tmp_path):
    with SteadyTape(tmp_path / "no" / "t.db", ring_records=10, retry_s=0.02, retention_days=None) as steady:
        for i in range(25):
            steady.append(tick(i))
        assert (steady.status.held, steady.status.dropped) == (10, 15)
        steady.append([tick(i) for i in range(100, 130)])
        assert (steady.status.held, steady.status.dropped) == (10, 45)
        assert steady.latest("A").price == 129.0
        steady.path.parent.mkdir()
        waited_for(lambda: steady.status.on_tape)
        assert prices(steady.path) == [float(i) for i in range(120, 130)]
        assert steady.status.dropped == 45


def test_what_a_source_can_give_again_is_never_dropped_it_waits(tmp_path):
    with SteadyTape(tmp_path / "no" / "t.db", ring_records=10, retry_s=0.02, retention_days=None) as steady:
        steady.append([tick(i) for i in range(8)], cursor=("s", None, "8"))
        with pytest.raises(TapeFull, match="wait for it"):
            steady.append([tick(i) for i in range(8, 12)], cursor=("s", "8", "12"))
        with pytest.raises(TapeFull):
            steady.append_table({"symbol": "A", "ts_event_ns": [T0] * 20, "price": [1.0] * 20}, cursor=("s", "8", "28"))
        steady.append([tick(90), tick(91), tick(92)])  # of a source that cannot: the oldest of its kind goes
        steady.append([tick(93)])
        assert steady.cursor("s") == "8"
        steady.path.parent.mkdir()
        waited_for(lambda: steady.status.on_tape)
        assert prices(steady.path)[:8] == [float(i) for i in range(8)]
        assert steady.append([tick(i) for i in range(8, 12)], cursor=("s", "8", "12")) is not None


def test_an_invalid_record_is_refused_while_the_tape_is_away_too(away):
    with pytest.raises(InvalidRecord, match="record 1: price"):
        away.append([tick(1), Tick("A", T0, float("nan"))])
    assert away.status.held == 0
    assert away.append([tick(1), Tick("A", T0, float("nan"))], on_invalid="quarantine") is None
    away.path.parent.mkdir()
    waited_for(lambda: away.status.on_tape)
    assert prices(away.path) == [1.0] and len(away.tape.quarantined()) == 1


@pytest.mark.parametrize(
    "how",
    [
        {"batch": "b", "ids": [b"x"]},
        {"batch": ""},
        {"ids": [b"x", b"y"]},
        {"ids": ["text"]},
        {"cursor": ("s", None, 5)},
        {"on_invalid": "skip"},
    ],
)
def test_what_no_tape_takes_is_refused_at_once_and_does_not_keep_the_tape_away(away, tmp_path, how):
    with pytest.raises(ConfigInvalid):
        away.append(tick(1), **how)
    with pytest.raises(ConfigInvalid):
        away.append_table({"symbol": ["A"], "ts_event_ns": [T0], "price": [1.0]}, **how)
    assert away.append(tick(2)) is None
    (tmp_path / "later").mkdir()
    waited_for(lambda: away.status.on_tape)
    assert prices(tmp_path / "later" / "t.db") == [2.0]


def test_a_table_that_is_larger_than_the_ring_is_counted_where_it_is_cut(tmp_path):
    table = {"symbol": ["A"] * 25, "ts_event_ns": [T0 + i for i in range(25)], "price": [float(i) for i in range(25)]}
    with SteadyTape(tmp_path / "later" / "t.db", retry_s=0.02, retention_days=None, ring_records=10) as steady:
        assert steady.append_table(table) is None
        assert (steady.status.held, steady.status.dropped) == (10, 15)
        (tmp_path / "later").mkdir()
        waited_for(lambda: steady.status.on_tape)
    assert prices(tmp_path / "later" / "t.db") == [float(i) for i in range(15, 25)]


def test_a_forked_process_is_told_to_open_its_own_instead_of_holding_for_ever(tmp_path):
    code = (
        "import os, sys, onetape\n"
        "from onetape.steady import SteadyTape\n"
        "steady = SteadyTape(sys.argv[1])\n"
        "steady.append(onetape.Tick('A', 10**18, 1.0))\n"
        "if os.fork() == 0:\n"
        "    try: steady.append(onetape.Tick('A', 10**18, 2.0))\n"
        "    except onetape.TapeClosed as error: os._exit(0 if 'forked' in str(error) else 2)\n"
        "    os._exit(1)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 0\n"
        "assert steady.append(onetape.Tick('A', 10**18, 3.0)) is not None\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "t.db")], check=True, timeout=120)


def test_identities_hold_across_an_outage(away):
    for _ in range(2):
        away.append([tick(1), tick(2)], batch="b")
        away.append([tick(3), tick(4)], ids=[b"3", b"4"])
    away.append(Bar("A", "1d", T0 // 86_400_000_000_000 * 86_400_000_000_000, 1, 2, 1, 2, source="v"))
    away.path.parent.mkdir()
    waited_for(lambda: away.status.on_tape)
    assert prices(away.path) == [1.0, 2.0, 3.0, 4.0]
    assert away.tape.symbols()[0].bars == 1


def test_a_cursor_that_somebody_else_moved_meanwhile_stores_nothing_twice(tmp_path):
    path = tmp_path / "t.db"
    with SteadyTape(path, retry_s=0.02, busy_timeout_ms=20, retention_days=None) as steady:
        steady.append(tick(1), cursor=("s", None, "1"))
        with locked(path):
            steady.append(tick(2), cursor=("s", "1", "2"))
            steady.append(tick(9))
            steady._closed.wait(0.05)
            # what the lost answer of a write would look like, and a second feed of the same name
        waited_for(lambda: steady.status.on_tape)
        assert prices(path) == [1.0, 2.0, 9.0]
        with onetape.open(path) as other:
            other.append(tick(3), cursor=("s", "2", "3"))
        with pytest.raises(CursorConflict):
            steady.append(tick(3), cursor=("s", "2", "3"))


def test_a_file_that_is_removed_while_it_is_open_is_noticed_and_not_made_anew(steady):
    steady.append(tick(1))
    kept = steady.path.with_suffix(".kept")
    steady.path.rename(kept)
    assert steady.append(tick(2)) is None
    assert "gone" in steady.status.reason
    assert steady.latest("A").price == 2.0
    time.sleep(0.2)
    assert not steady.path.exists()
    steady.append(tick(3))
    kept.rename(steady.path)
    waited_for(lambda: steady.status.on_tape)
    assert prices(steady.path) == [1.0, 2.0, 3.0]


def test_a_damaged_file_is_not_written_to_before_it_is_whole_again(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        tape.append([tick(i) for i in range(5000)])
        tape.seal()
    whole = path.read_bytes()
    path.write_bytes(b"not a tape at all" + whole[17:])
    with SteadyTape(path, retry_s=0.02, retention_days=None) as steady:
        assert not steady.status.on_tape
        damaged = path.read_bytes()
        assert steady.append(tick(9999)) is None
        time.sleep(0.2)
        assert path.read_bytes() == damaged and steady.status.held == 1
        path.write_bytes(whole)
        waited_for(lambda: steady.status.on_tape)
        assert prices(path)[-1] == 9999.0


def test_a_disk_that_is_full_holds_records_until_there_is_room(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        with SteadyTape(disk / "t.db", retry_s=0.02, retention_days=None) as steady:
            steady.append(tick(0))
            ballast = disk / "ballast"
            with open(ballast, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            number = 0
            while steady.status.on_tape:
                number += 1
                steady.append(tick(number))
            for _ in range(50):
                number += 1
                assert steady.append(tick(number)) is None
            assert "full" in steady.status.reason
            assert steady.latest("A").price == number
            ballast.unlink()
            waited_for(lambda: steady.status.on_tape)
            assert prices(disk / "t.db") == [float(i) for i in range(number + 1)]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_disk_that_turns_read_only_holds_records_until_it_can_be_written(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    try:
        with onetape.open(disk / "t.db", retention_days=None) as tape:
            tape.append(tick(0))
        if subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode:
            pytest.skip("no right to mount a disk read-only")
        with SteadyTape(disk / "t.db", retry_s=0.02, retention_days=None) as steady:
            assert not steady.status.on_tape
            assert steady.append(tick(1)) is None
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            waited_for(lambda: steady.status.on_tape)
            assert prices(disk / "t.db") == [0.0, 1.0]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_killed_while_it_writes_back_nothing_is_doubled(tmp_path):
    path = tmp_path / "later" / "t.db"
    code = (
        "import sys, onetape\n"
        "from onetape.steady import SteadyTape\n"
        "s = SteadyTape(sys.argv[1], retry_s=0.01, retention_days=None).start()\n"
        "for i in range(3000):\n"
        "    s.append(onetape.Tick('A', 10**18 + i, float(i)), cursor=('s', None if i == 0 else str(i - 1), str(i)))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    path.parent.mkdir()

    def some():
        try:
            return (
                sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("SELECT max(rowid) FROM journal").fetchone()
            )
        except sqlite3.Error:
            return None

    waited_for(lambda: (some() or (0,))[0])
    process.kill()
    process.wait()
    with onetape.open(path, retention_days=None) as tape:
        stored = tape.read("A", columns=["price"])["price"].to_pylist()
        at = int(tape.cursor("s"))
        assert stored == [float(i) for i in range(at + 1)]


def test_many_threads_append_through_outages_and_nothing_is_lost_or_doubled(tmp_path):
    path = tmp_path / "t.db"
    with SteadyTape(path, retry_s=0.01, busy_timeout_ms=30, retention_days=None) as steady:
        stop = threading.Event()
        counts = [0, 0, 0]

        def write(which):
            while not stop.is_set():
                steady.append(Tick(f"W{which}", T0 + counts[which], float(counts[which])))
                counts[which] += 1
                time.sleep(0.0005)

        threads = [threading.Thread(target=write, args=(which,)) for which in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            time.sleep(0.1)
            with locked(path):
                waited_for(lambda: not steady.status.on_tape)
                time.sleep(0.05)
            waited_for(lambda: steady.status.on_tape)
        stop.set()
        for thread in threads:
            thread.join()
        waited_for(lambda: steady.status.on_tape)
        for which, count in enumerate(counts):
            table = steady.tape.read(f"W{which}", columns=["price"])
            assert table["price"].to_pylist() == [float(i) for i in range(count)]


def test_coverage_is_not_claimed_for_an_outage(tmp_path):
    with SteadyTape(tmp_path / "no" / "t.db", retry_s=0.02, retention_days=None) as steady:
        beat = steady.heartbeat("feed", ["A"])
        beat.alive()
        steady.cover("A", T0, T0 + S)
        steady.append(tick(1))
        steady.path.parent.mkdir()
        waited_for(lambda: steady.status.on_tape)
        beat.alive()
        time.sleep(0.05)
        beat.alive()
        said = [span for span in steady.tape.coverage("A") if "feed" in span.by]
        assert said and all(span.start_ns > T0 + S for span in said)


def test_wrong_limits_are_refused(tmp_path):
    with pytest.raises(ConfigInvalid):
        SteadyTape(tmp_path / "t.db", ring_records=0)


def test_who_appends_or_asks_while_what_was_held_is_written_does_not_wait_and_order_stays(away):
    big = SteadyTape(away.path, retry_s=0.02, retention_days=None, ring_records=100_000).start()
    for i in range(3000):  # two sources in turn: none of these can be stored together
        big.append(tick(i, symbol="AB"[i % 2]), ids=[b"%d" % i])
    away.path.parent.mkdir()
    number, during = 3000, 0
    while not big.status.on_tape:
        big.append(tick(number, symbol="AB"[number % 2]))
        number += 1
        during += big.append(tick(number, symbol="AB"[number % 2])) is None
        number += 1
        newest = [t.price for t in big.recent("B", 50)]
        assert newest == [float(i) for i in range(number - 99, number, 2)], "a tick twice, or none"
    assert during > 3
    with onetape.open(away.path, mode="r") as tape:
        follower = tape.follow(from_seq=0)
        found = []
        while len(found) < number:
            found += [record.price for record in follower.take(1.0)]
    assert found == [float(i) for i in range(number)]
    big.close()


def test_a_file_that_is_replaced_while_the_tape_is_locked_gets_what_was_held(tmp_path):
    path = tmp_path / "t.db"
    with SteadyTape(path, retry_s=0.02, busy_timeout_ms=20, retention_days=None) as steady:
        steady.append(tick(1))
        with locked(path):
            assert steady.append(tick(2)) is None
            with onetape.open(tmp_path / "new.db", retention_days=None) as other:
                other.append(tick(0))
            for end in ("-wal", "-shm"):
                (tmp_path / f"t.db{end}").rename(tmp_path / f"old.db{end}")
            (tmp_path / "new.db").replace(path)
        steady.append(tick(3))
        waited_for(lambda: steady.status.on_tape and not steady.status.held and prices(path) == [0.0, 2.0, 3.0])


def test_an_append_that_waited_for_a_file_that_was_replaced_is_in_the_new_one_and_given(tmp_path):
    path, given = tmp_path / "t.db", []
    with SteadyTape(path, retry_s=0.02, busy_timeout_ms=60_000, retention_days=None) as steady:
        steady.append(tick(1))
        steady.subscribe(lambda record: given.append(record.price), from_seq=0)
        waited_for(lambda: given == [1.0])
        with locked(path):
            waiting = threading.Thread(target=steady.append, args=(tick(2),))
            waiting.start()
            time.sleep(0.3)  # (it waits for the lock; where it does not yet, the file is found replaced before)
            with onetape.open(tmp_path / "new.db", retention_days=None) as other:
                other.append(tick(0))
            for end in ("-wal", "-shm"):
                (tmp_path / f"t.db{end}").rename(tmp_path / f"old.db{end}")
            (tmp_path / "new.db").replace(path)
        waiting.join(60)
        steady.append(tick(3))
        waited_for(lambda: steady.status.on_tape and not steady.status.held and prices(path) == [0.0, 2.0, 3.0])
        waited_for(lambda: 3.0 in given)
        assert list(dict.fromkeys(given)) == [1.0, 2.0, 3.0]  # a follower that just read the old file gives it twice


def test_what_may_have_been_stored_is_stored_again_as_the_same_whatever_came_meanwhile():
    ring = Ring(10)
    for i in range(3):
        ring.add([tick(i)], None, None, None, "raise")
    turn = ring.first()
    assert [held.number for held in turn] == [1, 2, 3] and len({held.batch for held in turn}) == 3
    for i in range(3, 20):
        ring.add([tick(i)], None, None, None, "raise")
    assert ring.first() == turn and ring.records == 10 and ring.dropped == 10
    ring.remove(turn)
    assert [held.records[0].price for held in ring.first()] == [13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0]


def test_what_is_stored_together_is_of_one_source_without_a_step_left_out():
    ring = Ring(100)
    ring.add([tick(1)], None, None, ("s", None, "1"), "raise")
    ring.add([tick(2)], None, None, ("s", "1", "2"), "raise")
    ring.add([tick(3)], None, None, ("s", "7", "8"), "raise")
    ring.add([tick(4)], None, None, ("t", "8", "9"), "raise")
    ring.add([tick(5)], "b", None, None, "raise")
    ring.add([tick(6)], None, [b"6"], None, "raise")
    for i in range(7, 10):
        ring.add([tick(i)], None, None, None, "raise")
    numbers = []
    while turn := ring.first(apart=[8]):
        numbers.append([held.number for held in turn])
        ring.remove(turn)
    assert numbers == [[1, 2], [3], [4], [5], [6], [7, 8], [9]]


def test_what_was_held_is_not_forgotten_between_a_look_at_the_tape_and_what_is_given_of_it(away, tmp_path):
    follower = away.follow("A")
    away.append([tick(1), tick(2)])
    assert [t.price for t in follower.take(30)] == [1.0, 2.0]
    leave_out = follower._again

    def interrupted(found, held_from):
        away.look()  # the thread that keeps the tape comes just here
        return leave_out(found, held_from)

    follower._again = interrupted
    (tmp_path / "later").mkdir()
    waited_for(lambda: away.status.on_tape)
    away.append(tick(3))
    given = []
    waited_for(lambda: given.extend(t.price for t in follower.take(0.1)) or 3.0 in given)
    assert given == [3.0]


def test_back_knows_what_was_given_and_forgets_what_all_have_passed():
    back = Back()
    for first, last, number in [(5, 6, 1), (9, 9, 3), (20, 24, 4)]:
        back.add(first, last, number)
    found = [tick(i, seq=i) for i in range(1, 30)]
    assert [r.seq for r in back.without(found, 4)] == list(range(1, 30))
    assert [r.seq for r in back.without(found, 2)] == [*range(1, 9), *range(10, 20), *range(25, 30)]
    assert [r.seq for r in back.without(found, 0)] == [1, 2, 3, 4, 7, 8, *range(10, 20), *range(25, 30)]
    back.prune([SimpleNamespace(held_from=0, passed=23), SimpleNamespace(held_from=0, passed=9)])
    assert len(back) == 1
    back.prune([])
    assert len(back) == 0


def test_bars_of_what_is_held_are_of_the_kind_that_was_asked_for(away):
    away.append([tick(0, bid=10.0, ask=12.0), tick(1, bid=20.0, ask=22.0)])
    (bar,) = away.bar_list("A", price="mid")
    assert (bar.open, bar.close, bar.volume) == (11.0, 21.0, None)
    assert away.bar_list("A", source="vendor") == []
    assert away.bar_list("A", as_of=0) == []


def test_what_goes_to_quarantine_is_not_remembered_as_the_last_price(steady):
    steady.append(tick(1))
    steady.append([tick(2), Tick("A", T0 + 3 * S, float("nan")), Tick("A", None, 9.0)], on_invalid="quarantine")
    kept = steady.path.with_suffix(".kept")
    steady.path.rename(kept)
    assert steady.append(tick(0)) is None
    assert steady.latest("A").price in (1.0, 2.0)


def test_what_can_be_read_only_once_is_held_whole(tmp_path):
    with SteadyTape(tmp_path / "t.db", retry_s=0.02, busy_timeout_ms=20, retention_days=None) as steady:
        with locked(steady.path):  # the tape reads it before it finds that it is locked
            assert steady.append(tick(i) for i in range(5)) is None
            assert steady.status.held == 5
        waited_for(lambda: steady.status.on_tape)
        assert prices(steady.path) == [0.0, 1.0, 2.0, 3.0, 4.0]
