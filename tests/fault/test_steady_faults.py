"""A tape that is away, for every reason and at any time: records are held, read, given once and written once."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from tests.waiting import waited_for

import onetape
from onetape import Tick
from onetape.errors import CursorConflict
from onetape.steady import SteadyTape

T0 = 1_763_740_800_000_000_000
S = 1_000_000_000


def tick(i, **more):
    return Tick("A", T0 + i * S, float(i), 1.0, **more)


def prices(path):
    with onetape.open(path, mode="r") as tape:
        return tape.read("A", columns=["price"])["price"].to_pylist()


def run(*command):
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)):
        pytest.skip("no right to mount a disk")
    yield folder
    run("umount", "-l", str(folder))


# The faults, each as it really happens. Each is a context: in it the tape at `path` is away.


@contextmanager
def missing(path):
    """The folder is gone, as where a disk is not mounted."""
    folder = path.parent
    away = folder.with_name("elsewhere")
    folder.rename(away)
    yield "folder"
    away.rename(folder)


@contextmanager
def removed(path):
    """The file alone is gone."""
    away = path.with_name("kept")
    path.rename(away)
    yield "gone"
    away.rename(path)


@contextmanager
def locked(path):
    """Another process has the write lock and keeps it."""
    code = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)\n"
        "c.execute('BEGIN IMMEDIATE')\nprint('locked', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "locked\n"
        yield "locked"
    finally:
        process.kill()
        process.wait()


@contextmanager
def full(path):
    """Not a byte is left on the disk."""
    ballast = path.with_name("ballast")
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    yield "full"
    ballast.unlink()


@contextmanager
def read_only(path):
    """The disk is mounted so that nothing can be written."""
    if not run("mount", "-o", "remount,ro", str(path.parent)):
        pytest.skip("no right to mount a disk read-only")
    yield "may not be written"
    assert run("mount", "-o", "remount,rw", str(path.parent))


@contextmanager
def first_page_gone(path):
    """The beginning of the file is zeros; later the whole file is put back by its owner."""
    whole = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(bytes(4096))
    yield ""
    repaired = path.with_name("repaired")
    repaired.write_bytes(whole)
    repaired.replace(path)


@contextmanager
def garbage(path):
    """Bytes of the whole file are overwritten."""
    whole = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(b"\xa5" * len(whole))
    yield ""
    path.write_bytes(whole)


def make(path):
    with onetape.open(path, retention_days=None) as tape:
        tape.append([tick(0)], cursor=("feed", None, "0"))
        tape.seal()


@pytest.mark.parametrize("fault", [missing, locked, full, read_only, first_page_gone, garbage])
def test_it_starts_while_the_tape_is_away_and_goes_on_when_it_is_there(request, tmp_path, fault):
    folder = request.getfixturevalue("disk") if fault in (full, read_only) else tmp_path / "data"
    folder.mkdir(exist_ok=True)
    path = folder / "t.db"
    make(path)
    got = []
    with fault(path) as reason:
        steady = SteadyTape(path, retry_s=0.02, busy_timeout_ms=30, retention_days=None).start()
        subscription = steady.subscribe(lambda record: got.append((record.price, record.seq)), when_slow="block")
        before = path.read_bytes() if fault in (first_page_gone, garbage) else None
        stored = 0
        for i in range(1, 30):
            done = steady.append(tick(i), cursor=("feed", str(i - 1), str(i)))
            stored += done is not None
        # A full disk may have room in pages that the file has already; a locked one opens, and the first append tells.
        assert stored <= (0 if fault is not full else 29)
        if fault is not full or not steady.status.on_tape:
            waited_for(lambda: not steady.status.on_tape)
            assert reason in steady.status.reason.lower()
            assert steady.status.held == 29 - stored
        assert steady.latest("A").price == 29.0 and steady.cursor("feed") == "29"
        assert [t.price for t in steady.recent("A", 5)] == [25.0, 26.0, 27.0, 28.0, 29.0]
        waited_for(lambda: len(got) == 29)
        if before is not None:
            time.sleep(0.2)  # long enough for ten looks
            assert path.read_bytes() == before, "a damaged file was written to"
    waited_for(lambda: steady.status.on_tape)
    steady.append(tick(30), cursor=("feed", "29", "30"))
    waited_for(lambda: got[-1][0] == 30.0)
    time.sleep(0.1)
    assert [price for price, _ in got] == [float(i) for i in range(1, 31)]
    assert subscription.error is None
    steady.close()
    assert prices(path) == [float(i) for i in range(31)]
    with onetape.open(path, mode="r") as tape:
        assert tape.cursor("feed") == "30"


@pytest.mark.parametrize("fault", [missing, removed, locked, full, first_page_gone, garbage])
def test_the_tape_goes_away_and_comes_back_while_it_runs(request, tmp_path, fault):
    # (A disk cannot be made read-only while a file on it is open for writing; it is remounted so by the kernel alone.)
    folder = request.getfixturevalue("disk") if fault is full else tmp_path / "data"
    folder.mkdir(exist_ok=True)
    path = folder / "t.db"
    make(path)
    steady = SteadyTape(path, retry_s=0.02, busy_timeout_ms=30, retention_days=None).start()
    got = []
    steady.subscribe(lambda record: got.append(record.price), when_slow="block")
    number = 0
    for _ in range(2):
        with fault(path):
            for _ in range(5000):
                number += 1
                if steady.append(tick(number), cursor=("feed", str(number - 1), str(number))) is None:
                    break
            else:
                pytest.fail("the fault was not noticed")
            held_from = number
            for _ in range(20):
                number += 1
                assert steady.append(tick(number), cursor=("feed", str(number - 1), str(number))) is None
            assert steady.status.held == number - held_from + 1 and steady.status.reason
            assert steady.latest("A").price == number and steady.cursor("feed") == str(number)
            waited_for(lambda number=number: got and got[-1] == number)
        if fault in (first_page_gone, garbage):
            break
        waited_for(lambda: steady.status.on_tape)
    assert got == [float(i) for i in range(1, number + 1)]
    if fault not in (first_page_gone, garbage):
        assert prices(path) == [float(i) for i in range(number + 1)]
        assert steady.status.written_back == 42
        steady.close()
        return
    # The file that was put back is older: what came behind it is not there, and a feed is told where to go on.
    waited_for(lambda: steady.status.on_tape)
    with onetape.open(path, mode="r") as tape:
        at = int(tape.cursor("feed"))
        assert tape.read("A", columns=["price"])["price"].to_pylist() == [float(i) for i in range(at + 1)]
    assert int(steady.cursor("feed")) == at
    if at != number:
        with pytest.raises(CursorConflict):
            steady.append(tick(number + 1), cursor=("feed", str(number), str(number + 1)))
    assert steady.append(tick(at + 1), cursor=("feed", str(at), str(at + 1))) is not None
    steady.close()


def test_a_file_that_another_one_replaced_is_noticed_and_nothing_goes_to_the_old_one(tmp_path):
    path = tmp_path / "t.db"
    make(path)
    make(tmp_path / "new.db")
    with SteadyTape(path, retry_s=0.02, retention_days=None) as steady:
        old = os.open(path, os.O_RDONLY)
        (tmp_path / "new.db").replace(path)
        size = os.fstat(old).st_size
        steady.append(tick(1))
        waited_for(lambda: steady.status.on_tape and not steady.status.held)
        assert prices(path) == [0.0, 1.0] and os.fstat(old).st_size == size
        os.close(old)


def child(path, records):
    """A process that appends one by one, while the folder of its tape is not there, and then writes back."""
    code = (
        "import sys, onetape\n"
        "from onetape.steady import SteadyTape\n"
        "s = SteadyTape(sys.argv[1], retry_s=0.01, busy_timeout_ms=20, retention_days=None).start()\n"
        f"for i in range({records}):\n"
        "    s.append(onetape.Tick('A', 10**18 + i, float(i)), cursor=('s', None if i == 0 else str(i - 1), str(i)))\n"
        "print(s.status.held, flush=True)\nsys.stdin.read()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def rows(path):
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return db.execute("SELECT coalesce(max(rowid), 0) FROM journal").fetchone()[0]
    except sqlite3.Error:
        return 0


@pytest.mark.parametrize("after", [1, 40, 400, 1500])
def test_killed_anywhere_while_it_writes_back_a_source_goes_on_without_gap_or_double(tmp_path, after):
    path = tmp_path / "later" / "t.db"
    process = child(path, records=2000)
    assert process.stdout.readline() == "2000\n"
    path.parent.mkdir()
    waited_for(lambda: rows(path) >= after)
    process.kill()
    process.wait()
    with onetape.open(path, retention_days=None) as tape:
        at = int(tape.cursor("s"))
        assert tape.read("A", columns=["price"])["price"].to_pylist() == [float(i) for i in range(at + 1)]
    # The same source again: it begins where the tape knows it is, not where memory was.
    with SteadyTape(path, retry_s=0.02, retention_days=None) as steady:
        at = int(steady.cursor("s"))
        for i in range(at + 1, 2000):
            steady.append(Tick("A", 10**18 + i, float(i)), cursor=("s", str(i - 1), str(i)))
    assert prices(path) == [float(i) for i in range(2000)]


def test_a_process_that_is_stopped_for_long_and_goes_on_doubles_nothing(tmp_path):
    path = tmp_path / "later" / "t.db"
    process = child(path, records=500)
    try:
        assert process.stdout.readline() == "500\n"
        path.parent.mkdir()
        waited_for(lambda: rows(path) >= 5)
        process.send_signal(signal.SIGSTOP)
        with SteadyTape(path, retry_s=0.02, busy_timeout_ms=30, retention_days=None) as other:
            for i in range(50):  # two writers of one tape; the stopped one may have the lock
                other.append(Tick("B", T0 + i, float(i)))
            process.send_signal(signal.SIGCONT)
            waited_for(lambda: other.status.on_tape)
            waited_for(lambda: len(other.tape.read("A", columns=["price"])) == 500)
            assert other.tape.read("B", columns=["price"])["price"].to_pylist() == [float(i) for i in range(50)]
        assert prices(path) == [float(i) for i in range(500)]
    finally:
        process.kill()
        process.wait()


def test_a_file_that_may_not_grow_is_full_and_what_was_held_is_not_doubled_by_the_next_process(tmp_path):
    """RLIMIT_FSIZE: the kernel refuses to make a file larger, in the middle of a commit or before it."""
    path = tmp_path / "t.db"
    make(path)
    size = path.stat().st_size + 60_000
    code = (
        "import resource, signal, sys, time, onetape\n"
        "from onetape.steady import SteadyTape\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "s = SteadyTape(sys.argv[1], retry_s=0.01, busy_timeout_ms=20, retention_days=None).start()\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))\n"
        "for i in range(2000):\n"
        "    s.append(onetape.Tick('B', 10**18 + i, float(i)), cursor=('s', None if i == 0 else str(i - 1), str(i)))\n"
        "print(s.status.outages, s.status.reason, flush=True)\n"
        "assert s.latest('B').price == 1999.0\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "while not s.status.on_tape: time.sleep(0.01)\n"
        "s.close()\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 0
    with onetape.open(path, mode="r") as tape:
        assert tape.read("B", columns=["price"])["price"].to_pylist() == [float(i) for i in range(2000)]
