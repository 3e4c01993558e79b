"""Faults of the tape: killed writers, full disks, racing processes. Nothing acknowledged is lost or doubled."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from random import random

import apsw
import pytest

import onetape
from onetape import Tick
from onetape.store import layout

T0 = 1_700_000_000_000_000_000


def _python(code: str, *arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


APPENDER = """
import sys, onetape
T0 = 1_700_000_000_000_000_000
path, name, how = sys.argv[1:4]
with onetape.open(path) as tape:
    i = 0
    while True:
        if how == "one":
            tape.append(onetape.Tick(name, T0 + i, price=float(i), size=1.0)); i += 1
        elif how == "batch":
            ticks = [onetape.Tick(name, T0 + i + k, price=float(i + k), size=1.0) for k in range(50)]
            tape.append(ticks, batch=f"{name}-{i}"); i += 50
        else:
            tape.append_table({"symbol": name, "ts_event_ns": [T0 + i + k for k in range(9000)],
                               "price": [float(i + k) for k in range(9000)], "size": 1.0},
                              cursor=("c" + name, str(i) if i else None, str(i + 9000))); i += 9000
        print(i, flush=True)
"""


@pytest.mark.parametrize("how,rounds", [("one", 6), ("batch", 4), ("bulk", 4)])
def test_kill_9_at_any_moment_loses_nothing_acknowledged(tmp_path, how, rounds):
    path = tmp_path / "t.db"
    for number in range(rounds):
        name = f"S{number}"
        writer = _python(APPENDER, path, name, how)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(0.05 + 0.11 * number)
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = [int(line) for line in [first, *writer.stdout.read().split("\n")[:-1]] if line.strip()][-1]
        writer.wait()
        writer.stdout.close()
        with onetape.open(path) as tape:
            rows = tape.read(name, columns=["seq", "price"]).to_pydict()
            assert rows["price"] == [float(i) for i in range(len(rows["price"]))], "a hole, a double or a half"
            assert len(rows["price"]) >= acknowledged
            assert len(set(rows["seq"])) == len(rows["seq"])
            assert sum(bar.trades for bar in tape.bar_list(name)) == len(rows["price"])
            if how == "bulk":
                assert tape.cursor("c" + name) == str(len(rows["price"]))
            assert tape.latest(name).price == rows["price"][-1]
            tape.seal()
            assert tape.read(name).num_rows == len(rows["price"])


RACER = """
import sys, threading, onetape
T0 = 1_700_000_000_000_000_000
path, me, count, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
seen = []
with onetape.open(path) as tape:
    follower = tape.follow(from_seq=0)
    def follow():
        while len(seen) < total:
            seen.extend(follower.take(20))
    reader = threading.Thread(target=follow); reader.start()
    i = 0
    while i < count:
        if i % 3 == 0:
            tape.append(onetape.Tick(f"P{me}", T0 + i, price=float(i), size=1.0)); i += 1
        else:
            n = min(7, count - i)
            tape.append([onetape.Tick(f"P{me}", T0 + i + k, price=float(i + k), size=1.0) for k in range(n)]); i += n
        if i % 10 == 0:
            tape.latest(f"P{(me + 1) % 10}")
    reader.join(60)
print(len(seen), len({r.seq for r in seen}), [r.seq for r in seen] == sorted(r.seq for r in seen),
      all([r.price for r in seen if r.symbol == f"P{n}"] == [float(k) for k in range(count)] for n in range(10)))
"""


def test_ten_processes_appending_and_following_one_tape_lose_and_repeat_nothing(tmp_path):
    path, count = tmp_path / "t.db", 600
    onetape.open(path).close()
    racers = [_python(RACER, path, me, count, 10 * count) for me in range(10)]
    told = [racer.communicate(timeout=150)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 10
    assert told == [["6000", "6000", "True", "True"]] * 10
    with onetape.open(path) as tape:
        assert [tick.seq for tick in tape.follow(from_seq=0, idle_s=0)] == list(range(1, 6001))
        for me in range(10):
            assert tape.read(f"P{me}", columns=["price"]).column("price").to_pylist() == [
                float(i) for i in range(count)
            ]
            assert sum(bar.volume for bar in tape.bar_list(f"P{me}")) == count


def test_processes_creating_one_tape_at_the_same_moment(tmp_path):
    path = tmp_path / "t.db"
    code = """
    import sys, onetape
    with onetape.open(sys.argv[1]) as tape:
        print(tape.append(onetape.Tick("A", int(sys.argv[2]), price=1.0)).first)
    """
    makers = [_python(code, path, n) for n in range(8)]
    assert sorted(int(maker.communicate(timeout=60)[0]) for maker in makers) == list(range(1, 9))


def test_the_same_batch_from_many_processes_is_stored_once(tmp_path):
    path = tmp_path / "t.db"
    code = """
    import sys, onetape
    with onetape.open(sys.argv[1]) as tape:
        done = tape.append([onetape.Tick("A", n, price=1.0) for n in range(5000)], batch="the file")
        print(done.stored, done.first, done.last)
    """
    told = [maker.communicate(timeout=60)[0].split() for maker in [_python(code, path) for _ in range(6)]]
    assert sorted(told) == [["0", "1", "5000"]] * 5 + [["5000", "1", "5000"]]


def _limit(tape: onetape.Tape, pages: int) -> None:
    connection = tape._writer_connection
    connection.pragma("max_page_count", connection.pragma("page_count") + pages)


def test_a_full_disk_stores_nothing_of_the_batch_and_everything_before_is_readable(tmp_path):
    with onetape.open(tmp_path / "t.db") as tape:
        tape.append([Tick("A", T0 + i, price=float(i)) for i in range(5000)])
        _limit(tape, 20)
        with pytest.raises(onetape.TapeFull, match="cannot append") as caught:
            tape.append([Tick("B", T0 + i, price=random()) for i in range(200_000)], batch="big")  # does not pack
        assert "\n" not in str(caught.value)
        with pytest.raises(onetape.TapeFull):
            for i in range(100_000):
                tape.append(Tick("A", T0 + 5000 + i, price=float(5000 + i)))
        count = tape.read("A").num_rows
        assert tape.read("A", columns=["price"]).column("price").to_pylist() == [float(i) for i in range(count)]
        assert [info.symbol for info in tape.symbols()] == ["A"]
        assert tape._writer_connection is not None
        tape._writer_connection.pragma("max_page_count", 1_000_000)
        assert tape.append([Tick("B", T0, price=1.0)], batch="big").stored == 1
        assert tape.append(Tick("A", T0 + count, price=float(count))).stored == 1
    with onetape.open(tmp_path / "t.db") as tape:
        assert tape.read("A").num_rows == count + 1


def test_a_disk_that_is_full_when_sealing_loses_nothing_and_says_so(tmp_path, monkeypatch):
    with onetape.open(tmp_path / "t.db") as tape:
        monkeypatch.setattr(layout, "SEAL_RECORDS", 100)
        for i in range(99):
            tape.append(Tick("A", T0 + i, price=float(i), size=1.0))
        _limit(tape, 0)
        tape._writer_connection.execute("INSERT INTO quarantine SELECT 1,1,'',1,'','',zeroblob(1)")
        tape.append(Tick("A", T0 + 99, price=99.0, size=1.0))
        tape._writer_connection.pragma("max_page_count", 1_000_000)
        assert tape.read("A").num_rows == 100
        stats = tape.stats()
        assert stats.head == 100
        if stats.seal == 0:
            assert "full" in (stats.seal_error or "")
        for i in range(100, 300):
            tape.append(Tick("A", T0 + i, price=float(i), size=1.0))
        assert tape.stats().seal_error is None
        assert tape.bar_list("A")[0].volume == 300.0


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/bin/mount").exists(), reason="mounting a small disk needs root")
def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        with onetape.open(disk / "t.db") as tape:
            acknowledged = 0
            with pytest.raises((onetape.TapeFull, onetape.TapeUnusable)):
                for i in range(1_000_000):
                    tape.append(Tick("A", T0 + i, price=float(i)))
                    acknowledged += 1
            assert acknowledged > 100
            assert tape.read("A").num_rows == acknowledged
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        with onetape.open(disk / "t.db") as tape:
            assert tape.read("A", columns=["price"]).column("price").to_pylist() == [
                float(i) for i in range(acknowledged)
            ]
            tape.append(Tick("A", T0 + acknowledged, price=1.0))
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_a_long_reader_does_not_stop_writers_and_sees_one_moment(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path) as tape:
        tape.append([Tick("A", T0 + i, price=1.0) for i in range(5000)])
        reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        reader.execute("BEGIN")
        assert reader.execute("SELECT max(seq_last) FROM journal").get == 5000
        for i in range(9000):
            tape.append(Tick("A", T0 + 5000 + i, price=1.0))
        assert reader.execute("SELECT max(seq_last) FROM journal").get == 5000
        reader.close()
        assert tape.read("A").num_rows == 14_000


def test_retention_removes_old_ticks_in_steps_keeps_bars_and_gives_space_back(tmp_path):
    path = tmp_path / "t.db"
    now = onetape.now_ns()
    day = 86_400 * 10**9
    with onetape.open(path, retention_days=30) as tape:
        for back in range(60, 0, -1):
            ts = [now - back * day + i * 10**7 for i in range(3000)]
            prices = [random() for _ in ts]
            tape.append_table({"symbol": f"S{back % 3}", "ts_event_ns": ts, "price": prices, "size": 1.0})
        tape.seal()
        bars_before = {symbol: tape.bar_list(symbol) for symbol in ("S0", "S1", "S2")}
        assert tape.prune() == 0, "imported today: it stays for thirty days from now"
        raw = apsw.Connection(str(path))
        raw.execute("UPDATE chunk SET sealed_ns = ts_max")
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        raw.close()
        size_before = path.stat().st_size
        removed = tape.prune()
        assert 29 * 3000 <= removed <= 31 * 3000
        assert tape.stats().ticks == 180_000 - removed
        assert {symbol: tape.bar_list(symbol) for symbol in ("S0", "S1", "S2")} == bars_before
        assert min(info.ts_first_ns for info in tape.symbols()) >= now - 31 * day
        for symbol in ("S0", "S1", "S2"):
            assert tape.read(symbol, None, now - 31 * day).num_rows == 0
        assert tape.prune() == 0
        late = now - 45 * day
        tape.append(Tick("S0", late, price=1000.0, size=5.0))
        tape.seal()
        assert sum(bar.volume for bar in tape.bar_list("S0")) == 60_000 + 5.0
    raw = apsw.Connection(str(path))
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    raw.close()
    assert path.stat().st_size < 0.75 * size_before


def test_a_process_that_ends_without_closing_keeps_what_its_writer_held_and_does_not_crash(tmp_path):
    path = tmp_path / "t.db"
    code = """
    import sys, onetape
    tape = onetape.open(sys.argv[1])
    tape.append(onetape.Tick("A", 1, price=1.0))
    tape.latest("A")
    tape.subscribe(lambda record: None)
    follower = tape.follow()
    writer = tape.writer(max_delay_ms=60_000)
    for i in range(1000):
        writer.append(onetape.Tick("A", 2 + i, price=1.0))
    if sys.argv[2] == "raise":
        raise KeyboardInterrupt
    """
    for how, code_expected in (("end", {0}), ("raise", {130, -2})):
        for _ in range(3):
            ended = _python(code, path, how, stderr=subprocess.DEVNULL)
            ended.communicate(timeout=60)
            assert ended.returncode in code_expected
    with onetape.open(path) as tape:
        assert tape.read("A").num_rows == 6 * 1001
