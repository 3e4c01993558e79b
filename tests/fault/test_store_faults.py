"""Faults of sealing and compacting: kills at any moment, processes that race, and disks that are full in the middle."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
from tests.unit.test_open import make_format_1

import onetape
from onetape import Tick
from onetape.store import layout
from onetape.tape import sealing

T0 = 1_700_000_000_000_000_000
DAY = layout.DAY_NS

#: Limits so low that a second of work crosses each of them many times.
LIMITS = """
import sys, os, time, random, onetape
from onetape import Tick
from onetape.store import layout, journal, seal, beside, spans, chunks
from onetape.tape import sealing
limits = dict(SEAL_RECORDS=64, SEAL_RECORDS_TAIL=200, SEAL_RECORDS_MAX=128, DIRECT_RECORDS=100, SPAN_RECORDS_MAX=2000,
              CHUNK_RECORDS_MAX=150)
for name, limit in limits.items():
    for module in (layout, journal, seal, beside, spans, chunks):
        if hasattr(module, name):
            setattr(module, name, limit)
spans.MERGE_RECORDS, sealing._COMPACT_RECORDS = 300, 1500
spans.MERGE_SPANS = 4
sealing._BESIDE_RECORDS = 150
spans.OWN_FROM = {spans.SEALED: 40, spans.MERGED: 5, spans.COMPACT: 1}
T0, path = 1_700_000_000_000_000_000, sys.argv[1]
"""

#: Appends ticks 0, 1, 2, … of one symbol (price and size say which), every tenth late, beside ticks of rare symbols;
#: prints how many are acknowledged. Of T and B it seals its journal itself, of other symbols a thread beside it does.
APPENDER = (
    LIMITS
    + """
name, rng = sys.argv[2], random.Random(sys.argv[3])
sealing._SHORT_RECORDS, sealing._HURRY_S = 0, 1e9 if name[0] in "TB" else 0.0
def tick(i):
    late = 70 * 10**9 if i % 10 == 0 else 0
    return Tick(name, T0 + 90 * 10**9 * (i // 50) + 10**9 * (i % 50) + 10**11 - late, price=i / 4, size=float(i))
with onetape.open(path, retention_days=None) as tape:
    i = 0
    while True:
        how = rng.choice(("one", "list", "table", "writer", "rare"))
        n = {"one": 1, "list": rng.randint(1, 40), "table": rng.randint(90, 260), "writer": 60, "rare": 0}[how]
        ticks = [tick(k) for k in range(i, i + n)]
        if how == "one":
            tape.append(ticks[0])
        elif how == "list":
            tape.append(ticks)
        elif how == "table":
            tape.append_table({"symbol": name, "ts_event_ns": [t.ts_event_ns for t in ticks],
                               "price": [t.price for t in ticks], "size": [t.size for t in ticks]})
        elif how == "writer":
            with tape.writer() as writer:
                for t in ticks:
                    writer.append(t)
        else:
            tape.append([Tick(f"rare{rng.randint(0, 20)}", T0 + rng.randint(0, 10**12), bid=1.0) for _ in range(5)])
        i += n
        print(i, flush=True)
"""
)

COMPACTER = (
    LIMITS
    + """
with onetape.open(path, retention_days=None) as tape:
    while True:
        print(tape.compact().spans, flush=True)
"""
)


def _python(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def _kill(process: subprocess.Popen) -> list[int]:
    """Kill a process and return the numbers it had printed, each on a whole line."""
    os.kill(process.pid, signal.SIGKILL)
    told = process.stdout.read().split("\n")[:-1]
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL, "it had ended by itself"
    return [int(line) for line in told if line.strip()]


def _ticks(tape: onetape.Tape, name: str, at_least: int) -> int:
    """Hold that a symbol has ticks 0, 1, 2, … once each, at least so many, in canonical order; return how many."""
    columns = tape.read(name, columns=["ts_event_ns", "seq", "price", "size"]).to_pydict()
    order = list(zip(columns["ts_event_ns"], columns["seq"], strict=True))
    assert order == sorted(order)
    found = sorted(columns["size"])
    assert found == [float(i) for i in range(len(found))], "a hole or a double"
    assert [4 * price for price in columns["price"]] == columns["size"]
    assert len(found) >= at_least
    return len(found)


def _bars(tape: onetape.Tape, name: str, at_least: int) -> int:
    """Hold that a symbol's bars are of ticks 0, 1, 2, … once each, at least so many; return how many."""
    bars = tape.bar_list(name)
    count = sum(bar.trades for bar in bars)
    assert sum(bar.volume for bar in bars) == count * (count - 1) / 2
    assert count >= at_least
    return count


def _whole(tape: onetape.Tape, name: str, at_least: int) -> int:
    """Hold that a symbol has ticks 0, 1, 2, … once each, at least so many, and bars of all of them; return how many."""
    count = _ticks(tape, name, at_least)
    assert _bars(tape, name, 0) == count
    return count


def _every_position_once(tape: onetape.Tape) -> None:
    with tape.follow(from_seq=0) as follower:
        seqs = []
        while some := follower.take(0):
            seqs += [record.seq for record in some]
    assert seqs == list(range(1, tape.stats().head + 1))


def _intact(path: Path) -> None:
    raw = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    assert raw.execute("PRAGMA integrity_check").get == "ok"
    raw.close()


def test_writers_and_compacters_killed_at_any_moment_lose_and_double_nothing(tmp_path):
    path, chance, acknowledged = tmp_path / "t.db", random.Random(7), {}
    onetape.open(path).close()
    for number in range(5):
        names = [f"S{number}", f"T{number}"]
        writers = [_python(APPENDER, path, name, number) for name in names]
        others = [_python(COMPACTER, path) for _ in range(2 if number % 2 else 1)]
        heard = {name: int(writer.stdout.readline()) for name, writer in zip(names, writers, strict=True)}
        time.sleep(chance.uniform(0.1, 1.0))
        everyone = [*zip(names, writers, strict=True), *((None, other) for other in others)]
        chance.shuffle(everyone)
        for name, process in everyone:
            told = _kill(process)
            if name is not None:
                acknowledged[name] = max([heard[name], *told])
            time.sleep(chance.uniform(0, 0.1))
        with onetape.open(path, retention_days=None) as tape:
            for name, count in acknowledged.items():
                acknowledged[name] = _whole(tape, name, count)
            _every_position_once(tape)
    with onetape.open(path, retention_days=None) as tape:
        before = tape.digest().digest
        tape.compact()
        assert tape.digest().digest == before
        for name, count in acknowledged.items():
            assert _whole(tape, name, count) == count
        _every_position_once(tape)
        assert tape.compact().spans == 0
        made = tape.backup(tmp_path / "backup.db")
        assert made.digest == before
    _intact(path)
    with onetape.open(tmp_path / "backup.db", retention_days=None) as copy:
        assert copy.digest().digest == before
        for name, count in acknowledged.items():
            assert _whole(copy, name, count) == count
        _every_position_once(copy)


#: Appends ticks 0, 1, 2, … and ends by itself, as if killed, at one step of the first seal beside the appending.
DIES = """
import os, signal, sys, time, onetape
from onetape import Tick
from onetape.store import beside, layout, seal
from onetape.tape import sealing
layout.SEAL_RECORDS, sealing._SHORT_RECORDS, sealing._HURRY_S = 64, 0, 0.0
path, step, T0 = sys.argv[1], sys.argv[2], 1_700_000_000_000_000_000
def die(*told):
    os.kill(os.getpid(), signal.SIGKILL)
def dies_before(owner, name):
    setattr(owner, name, die)
def dies_after(owner, name):
    real = getattr(owner, name)
    def act(*told):
        real(*told)
        die()
    setattr(owner, name, act)
{"read": lambda: dies_before(seal, "pack"), "packed": lambda: dies_before(beside, "put"),
 "written": lambda: dies_before(seal, "clear"), "cleared": lambda: dies_after(seal, "clear"),
 "committed": lambda: dies_after(sealing.Sealing, "_put_now")}[step]()
with onetape.open(path, retention_days=None) as tape:
    for i in range(10**6):
        tape.append(Tick("S", T0 + 10**9 * i, price=i / 4, size=float(i)))
        print(i + 1, flush=True)
        time.sleep(0.0005)
"""


@pytest.mark.parametrize("step", ["read", "packed", "written", "cleared", "committed"])
def test_a_process_killed_at_any_step_of_a_seal_beside_the_appending_loses_and_doubles_nothing(tmp_path, step):
    path = tmp_path / "t.db"
    process = _python(DIES, path, step)
    told = process.stdout.read().split("\n")[:-1]
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    with onetape.open(path, mode="r") as tape:
        assert (tape.stats().seal > 0) == (step == "committed")
        count = _whole(tape, "S", int(told[-1]))
        _every_position_once(tape)
    with onetape.open(path, retention_days=None) as tape:
        assert tape.seal() == count
        assert _whole(tape, "S", count) == count
        _every_position_once(tape)
    _intact(path)


def test_a_follower_and_readers_see_every_position_once_while_others_append_seal_and_compact(tmp_path):
    path = tmp_path / "t.db"
    onetape.open(path).close()
    names = ["A", "B"]
    workers = [_python(APPENDER, path, name, name) for name in names]
    workers += [_python(COMPACTER, path), _python(COMPACTER, path)]
    try:
        for worker in workers:
            worker.stdout.readline()
        with onetape.open(path, mode="r") as tape:
            live, again = tape.follow(from_seq=0), None
            seen, until, reads, shortest = [], time.monotonic() + 5, 0, dict.fromkeys(names, 0)
            while time.monotonic() < until or len(seen) <= 500 or reads <= 5:
                assert time.monotonic() < until + 120, "too little was seen"
                seen += [record.seq for record in live.take(0.01)]
                for name in names:
                    shortest[name] = _bars(tape, name, _ticks(tape, name, shortest[name]))
                if again is None or reads % 20 == 0:  # another one, in the middle of what is there
                    again = again or tape.follow(from_seq=len(seen) // 2)
                reads += 1
            assert seen == list(range(1, len(seen) + 1)), "a gap or a double"
            late = []
            while len(late) < 200:
                late += [record.seq for record in again.take(0.01)]
            assert late == list(range(late[0], late[0] + len(late)))
            live.close()
            again.close()
    finally:
        told = [_kill(worker) for worker in workers]
    assert sum(sum(numbers) for numbers in told[2:]) > 0, "nothing was compacted meanwhile"
    with onetape.open(path, retention_days=None) as tape:
        for name, numbers in zip(names, told[:2], strict=True):
            _whole(tape, name, max(numbers, default=0))
        _every_position_once(tape)
    _intact(path)


@contextmanager
def _small_disk(folder: Path, size: str):
    """A disk of its own, as small as is said; skips where we may not mount one."""
    folder.mkdir()
    if os.geteuid() != 0 or not Path("/bin/mount").exists():
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        yield folder
    finally:
        # Lazily: what a failed test has left open would keep the disk there, and the folder with it.
        subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def _filled(disk: Path, but: int):
    """Fill a disk but for some bytes; it is free again afterwards."""
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free
    assert free > but
    filler.write_bytes(b"x" * (free - but))
    try:
        yield
    finally:
        filler.unlink()


def test_a_disk_that_fills_up_while_a_thread_seals_loses_nothing_and_it_goes_on_when_there_is_room(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(layout, "SEAL_RECORDS", 200)
    monkeypatch.setattr(sealing, "_SHORT_RECORDS", 0)
    monkeypatch.setattr(sealing, "_HURRY_S", 0.0)
    with _small_disk(tmp_path / "disk", "8m") as disk:
        path = disk / "t.db"
        with onetape.open(path, retention_days=None) as tape:
            with _filled(disk, 3_000_000), pytest.raises((onetape.TapeFull, onetape.TapeUnusable)):
                for stored in range(100_000):
                    tape.append(Tick("A", T0 + stored * 10**9, price=stored / 4, size=float(stored)))
            assert stored > 400
            assert tape.stats().seal > 0
            assert _whole(tape, "A", stored) == stored
            for i in range(stored, stored + 1000):
                tape.append(Tick("A", T0 + i * 10**9, price=i / 4, size=float(i)))
            assert _whole(tape, "A", stored + 1000) == stored + 1000
        with onetape.open(path, retention_days=None) as tape:
            assert tape.seal() == stored + 1000
            assert tape.stats().seal_error is None
            assert _whole(tape, "A", stored + 1000) == stored + 1000
            _every_position_once(tape)
        _intact(path)


@pytest.mark.parametrize("but", [0, 20_000, 150_000])
@pytest.mark.parametrize("act", ["compact", "seal", "prune"])
def test_a_disk_that_is_full_in_the_middle_of_an_act_loses_nothing_and_it_goes_on_when_there_is_room(
    tmp_path, act, but
):
    with _small_disk(tmp_path / "disk", "8m") as disk:
        path, count = disk / "t.db", 0
        with onetape.open(path, retention_days=None) as tape:
            for _ in range(10):
                ticks = [
                    Tick("A", T0 + i * 10**9, price=i / 4, size=float(i), bid=(i * i % 977) / 7)
                    for i in range(count, count + 3000)
                ]
                tape.append(ticks)
                count += len(ticks)
                if act != "seal":
                    tape.seal()
            before = tape.digest().digest
        with onetape.open(path, retention_days=None) as tape, _filled(disk, but):
            tape.latest("A")
            try:
                {"compact": tape.compact, "seal": tape.seal}.get(
                    act, lambda: tape.prune(now=T0 + 900 * DAY, retention_days=1)
                )()
                failed = False
            except (onetape.TapeFull, onetape.TapeUnusable) as error:
                failed = True
                assert error.hint
                assert str(path) in str(error)
            assert failed or but
            if act != "prune":
                assert tape.digest().digest == before
                assert _whole(tape, "A", count) == count
            stored = 0
            try:
                for i in range(300):
                    tape.append(Tick("B", T0 + i, price=i / 4, size=float(i)))
                    stored += 1
            except (onetape.TapeFull, onetape.TapeUnusable):
                pass
        with onetape.open(path, retention_days=None) as tape:
            assert _whole(tape, "B", stored) >= stored
            if act != "prune":
                assert _whole(tape, "A", count) == count
            tape.append(Tick("C", T0, price=1.0))
            tape.compact()
            if act != "prune":
                assert _whole(tape, "A", count) == count
            assert tape.seal() == tape.stats().head
        _intact(path)


@pytest.mark.parametrize("but", [0, 60_000, 90_000, 120_000, 250_000])
def test_a_disk_that_is_full_in_the_middle_of_an_upgrade_leaves_the_older_file_and_the_next_try_does_it(tmp_path, but):
    with _small_disk(tmp_path / "disk", "4m") as disk:
        path = disk / "t.db"
        ticks = make_format_1(path)[1]
        expected = [tick.price for tick in ticks if tick.symbol == "A"]
        with _filled(disk, but):
            try:
                onetape.open(path, retention_days=None).close()
            except (onetape.TapeFull, onetape.TapeUnusable) as error:
                assert error.hint
                failed = True
            else:
                failed = False
                assert but
        if failed:
            raw = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            assert raw.pragma("user_version") == 1
            raw.close()
        with onetape.open(path, retention_days=None) as tape:
            assert tape.stats().format_version == layout.FORMAT_VERSION
            assert tape.read("A").column("price").to_pylist() == expected
            tape.compact()
            assert tape.read("A").column("price").to_pylist() == expected
            tape.append(Tick("A", T0 + 10**18, price=1.0))
        backup = layout.backup_path(path, 1)
        assert backup.exists()
        raw = apsw.Connection(str(backup), flags=apsw.SQLITE_OPEN_READONLY)
        assert raw.pragma("user_version") == 1
        assert raw.execute("PRAGMA integrity_check").get == "ok"
        raw.close()
        assert not list(disk.glob("*.partial"))
        _intact(path)


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_tape_that_cannot_be_opened_because_the_disk_is_full_says_so(tmp_path, mode):
    with _small_disk(tmp_path / "disk", "4m") as disk:
        with onetape.open(disk / "t.db", retention_days=None) as tape:
            tape.append(Tick("A", T0, price=1.0))
        with _filled(disk, 0), pytest.raises(onetape.TapeFull) as caught:
            onetape.open(disk / "t.db", mode=mode)
        assert "free space" in caught.value.hint
        with onetape.open(disk / "t.db", mode=mode) as tape:
            assert tape.read("A").num_rows == 1
