"""Backups and restores: of one moment, proved, while writers run; nothing is overwritten, nothing half made is left."""

import subprocess
import sys
import threading
import time

import apsw
import pytest

import onetape
from onetape import Tick
from onetape.store import backup as backups

T0 = 1_700_000_000_000_000_000


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        tape.append([Tick(f"S{i % 7}", T0 + i * 10**6, price=i / 4, size=1.0) for i in range(30_000)])
        tape.append(Tick("S0", T0, price=-1.0))
    return path


def _files(folder):
    return sorted(each.name for each in folder.iterdir())


def test_a_backup_holds_what_the_tape_held_and_says_so(path, tmp_path):
    seen = []
    with onetape.open(path, retention_days=None) as tape:
        taken = tape.snapshot("eod")
        made = tape.backup(tmp_path / "b.db", on_progress=lambda done, total: seen.append((done, total)))
        assert (made.head, made.records, made.digest) == (30_001, 30_001, tape.digest().digest)
        assert made.digest == taken.digest
        assert seen[-1][0] == seen[-1][1] > 0
    assert _files(tmp_path) == ["b.db", "t.db"]
    with onetape.open(tmp_path / "b.db", retention_days=None) as copy:
        assert copy.verify_snapshot("eod").holds
        assert copy.read("S0").num_rows == 4287


def test_a_backup_ends_and_is_of_one_moment_while_another_process_writes(path, tmp_path):
    script = (
        "import sys, onetape\n"
        "tape = onetape.open(sys.argv[1], retention_days=None)\n"
        "print('on', flush=True)\n"
        "for i in range(10**9): tape.append(onetape.Tick('W', 1_700_000_000_000_000_000 + i, price=float(i)))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "on\n"
        heads = []
        with onetape.open(path, retention_days=None) as tape:
            for number in range(3):
                time.sleep(0.1)
                made = tape.backup(tmp_path / f"b{number}.db")
                heads.append(made.head)
                assert made.digest == tape.digest(made.head).digest
        assert heads == sorted(set(heads))
    finally:
        writer.kill()
        writer.wait()
    with onetape.open(tmp_path / "b1.db", retention_days=None) as copy:
        prices = copy.read("W").column("price").to_pylist()
        assert prices == [float(i) for i in range(len(prices))]
        assert copy.stats().head == heads[1]


def test_a_writer_is_not_stalled_by_a_backup(path, tmp_path):
    with onetape.open(path, retention_days=None) as tape:
        worst, stop = 0.0, threading.Event()

        def write():
            nonlocal worst
            at = 0
            while not stop.is_set():
                began = time.perf_counter()
                tape.append([Tick("W", T0 + at, price=1.0)])
                worst, at = max(worst, time.perf_counter() - began), at + 1

        thread = threading.Thread(target=write)
        thread.start()
        tape.backup(tmp_path / "b.db")
        stop.set()
        thread.join()
        assert worst < 1.0


@pytest.mark.parametrize("there", ["file", "link", "folder"])
def test_an_existing_target_is_never_overwritten(path, tmp_path, there):
    target = tmp_path / "b.db"
    if there == "file":
        target.write_text("precious")
    elif there == "link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
    with onetape.open(path) as tape, pytest.raises((onetape.TargetExists, onetape.TapeUnusable)) as caught:
        tape.backup(target)
    assert caught.value.hint
    assert there != "file" or target.read_text() == "precious"


def test_a_target_that_appears_meanwhile_is_not_overwritten_either(path, tmp_path):
    target = tmp_path / "b.db"

    def appear(_done, _total):
        target.write_text("precious")

    with onetape.open(path) as tape, pytest.raises(onetape.TargetExists):
        tape.backup(target, on_progress=appear)
    assert target.read_text() == "precious"
    assert _files(tmp_path) == ["b.db", "t.db"]


def test_a_copy_that_is_not_the_same_is_no_backup(path, tmp_path, monkeypatch):
    real = backups.copy_pages

    def copy(source, to, on_progress=None):
        real(source, to, on_progress)
        raw = apsw.Connection(str(to))
        raw.execute("UPDATE chunk SET payload = zeroblob(length(payload)) WHERE id = 1")
        raw.close()

    monkeypatch.setattr(backups, "copy_pages", copy)
    with onetape.open(path) as tape, pytest.raises(onetape.ChunkCorrupt):
        tape.backup(tmp_path / "b.db")
    assert _files(tmp_path) == ["t.db"]


def test_a_full_disk_is_told_before_anything_is_written(path, tmp_path, monkeypatch):
    monkeypatch.setattr(backups.shutil, "disk_usage", lambda folder: type("U", (), {"free": 1000})())
    with onetape.open(path) as tape, pytest.raises(onetape.TapeFull, match="1,000 bytes free"):
        tape.backup(tmp_path / "b.db")
    assert _files(tmp_path) == ["t.db"]


def test_a_restore_is_a_dry_run_until_it_is_told_to_execute(path, tmp_path):
    with onetape.open(path) as tape:
        made = tape.backup(tmp_path / "b.db")
    plan = onetape.restore(tmp_path / "b.db", tmp_path / "new.db")
    assert not plan.done
    assert plan.backup.digest == made.digest
    assert _files(tmp_path) == ["b.db", "t.db"]
    assert onetape.restore(tmp_path / "b.db", tmp_path / "new.db", execute=True).done
    with onetape.open(tmp_path / "new.db") as tape:
        assert tape.digest().digest == made.digest
        tape.append(Tick("S0", T0, price=5.0))
    assert _files(tmp_path) == ["b.db", "new.db", "t.db"]


def test_a_restore_never_overwrites_and_keeps_what_it_replaces(path, tmp_path):
    with onetape.open(path) as tape:
        tape.backup(tmp_path / "b.db")
        tape.append(Tick("S0", T0, price=77.0))
        later = tape.digest().digest
    with pytest.raises(onetape.TargetExists, match="exists") as caught:
        onetape.restore(tmp_path / "b.db", path, execute=True)
    assert "--replace" in caught.value.hint
    plan = onetape.restore(tmp_path / "b.db", path, execute=True, replace=True)
    with onetape.open(plan.kept) as kept, onetape.open(path) as tape:
        assert kept.digest().digest == later
        assert tape.stats().head == 30_001
    with pytest.raises(onetape.TargetExists, match="itself"):
        onetape.restore(path, path, execute=True, replace=True)


def test_a_restore_over_a_tape_that_is_in_use_names_who_uses_it(path, tmp_path):
    with onetape.open(path) as tape:
        tape.backup(tmp_path / "b.db")
    script = "import sys, time, onetape\ntape = onetape.open(sys.argv[1])\nprint('on', flush=True)\ntime.sleep(60)\n"
    user = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdout.readline() == "on\n"
        with pytest.raises(onetape.TapeInUse, match=str(user.pid)) as caught:
            onetape.restore(tmp_path / "b.db", path, execute=True, replace=True)
        assert caught.value.facts["pids"] == [user.pid]
        with pytest.raises(onetape.TapeInUse):
            onetape.restore(tmp_path / "b.db", path, replace=True)
    finally:
        user.kill()
        user.wait()
    assert onetape.restore(tmp_path / "b.db", path, execute=True, replace=True).done


def test_a_log_that_was_left_behind_never_meets_the_restored_file(path, tmp_path):
    with onetape.open(path) as tape:
        tape.backup(tmp_path / "b.db")
    script = (
        "import os, sys, onetape\n"
        "tape = onetape.open(sys.argv[1])\n"
        "for i in range(50): tape.append(onetape.Tick('S0', 1_800_000_000_000_000_000 + i, price=9.0))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)])
    assert (tmp_path / "t.db-wal").stat().st_size
    plan = onetape.restore(tmp_path / "b.db", path, execute=True, replace=True)
    with onetape.open(path) as tape, onetape.open(plan.kept) as kept:
        assert tape.stats().head == 30_001
        assert kept.stats().head == 30_051


@pytest.mark.parametrize("harm", ["cut", "bit", "kind", "text", "log", "none"])
def test_what_is_not_a_whole_backup_is_refused(path, tmp_path, harm):
    backup = tmp_path / "b.db"
    with onetape.open(path) as tape:
        tape.backup(backup)
    raw = bytearray(backup.read_bytes())
    if harm == "kind":  # a flipped bit can make text of bytes
        connection = apsw.Connection(str(backup))
        connection.pragma("journal_mode", "delete")
        connection.execute("UPDATE chunk SET payload = CAST(payload AS TEXT)")
        connection.close()
    elif harm == "cut":
        backup.write_bytes(raw[: len(raw) // 2])
    elif harm == "bit":
        connection = apsw.Connection(str(backup))
        connection.pragma("journal_mode", "delete")
        payload = bytearray(connection.execute("SELECT payload FROM chunk WHERE id = 1").get)
        payload[150] ^= 1
        connection.execute("UPDATE chunk SET payload = ? WHERE id = 1", (bytes(payload),))
        connection.close()
    elif harm == "text":
        backup.write_text("not a tape " * 200)
    elif harm == "log":
        (tmp_path / "b.db-wal").write_bytes(b"x" * 100)
    else:
        backup.unlink()
    with pytest.raises(onetape.TapeError) as caught:
        onetape.restore(backup, tmp_path / "new.db", execute=True)
    assert caught.value.hint
    assert not (tmp_path / "new.db").exists()


_BACKUP = """
import sys, onetape
tape = onetape.open(sys.argv[1], retention_days=None)
print("on", flush=True)
tape.backup(sys.argv[2])
print("made", flush=True)
"""


def test_a_backup_that_is_killed_leaves_no_file_of_its_name_or_a_whole_one(path, tmp_path):
    target = tmp_path / "b.db"
    with onetape.open(path, retention_days=None) as tape:
        expected = tape.digest().digest
    made = 0
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.5):
        taker = subprocess.Popen(
            [sys.executable, "-c", _BACKUP, str(path), str(target)], stdout=subprocess.PIPE, text=True
        )
        assert taker.stdout.readline() == "on\n"
        time.sleep(delay)
        taker.kill()
        taker.wait()
        if target.exists():
            made += 1
            with onetape.open(target, mode="r", retention_days=None) as copy:
                assert copy.digest().digest == expected
            for each in tmp_path.glob("b.db*"):
                each.unlink()
    assert onetape.doctor(path).healthy
    with onetape.open(path, retention_days=None) as tape:
        assert tape.backup(target).digest == expected
    assert [name for name in _files(tmp_path) if "partial" in name] == []


def test_a_file_that_may_not_grow_further_fails_the_backup_and_leaves_nothing(path, tmp_path):
    script = (
        "import resource, signal, sys, onetape\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "tape = onetape.open(sys.argv[1], retention_days=None)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try:\n"
        "    tape.backup(sys.argv[2])\n"
        "except onetape.TapeError as error:\n"
        "    print(type(error).__name__, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(tmp_path / "b.db")], capture_output=True, text=True
    )
    assert done.stdout.startswith(("TapeFull", "TapeUnusable")), done.stderr
    assert _files(tmp_path) == ["t.db"]
