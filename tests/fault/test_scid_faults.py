"""Sierra Chart's files when processes are killed, kernels give no hints, and files change under the reader."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from tests import sierra_files as sierra

import onetape
from onetape.importing.formats import import_file
from onetape.live import waker
from onetape.record import TS_MAX_NS
from onetape.sources.scid import ScidTail

DAY_US = 1_767_600_000_000_000  # 2026-01-05 08:00 UTC


def _trades(start, end):
    return [sierra.trade(DAY_US + at * 7, 100 + at) for at in range(start, end)]


def _prices(tape):
    return tape.read("ESZ6", 0, TS_MAX_NS)["price"].to_pylist()


@pytest.mark.parametrize("after", [3, 11])
def test_an_import_that_is_killed_goes_on_and_stores_each_record_once(tmp_path, after):
    path = sierra.write(tmp_path / "ESZ6.scid", _trades(0, 4000))
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        import onetape
        from onetape.importing import scid
        from onetape.importing.formats import import_file
        scid.BATCH_RECORDS = 256
        with onetape.open(sys.argv[1]) as tape:
            append, count = tape.append_table, 0
            def counted(*args, **options):
                global count
                done = append(*args, **options)
                count += 1
                if count == {after}:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done
            tape.append_table = counted
            import_file(tape, sys.argv[2])
        """
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "tape.db"), str(path)], timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    with onetape.open(tmp_path / "tape.db") as tape:
        (done,) = import_file(tape, path)
        assert (done.stored, done.known) == (4000 - after * 256, after * 256)
        assert _prices(tape) == [100.0 + at for at in range(4000)]


_FOLLOWER = """
import sys
import onetape
from onetape.sources.scid import ScidTail

with onetape.open(sys.argv[1]) as tape:
    tail = ScidTail(sys.argv[2], "ESZ6")
    before = tape.cursor(tail.cursor_name)
    tail.resume(before)
    for delivery in tail:
        if not delivery.count:
            continue
        cursor = (tail.cursor_name, before, delivery.cursor)
        if delivery.columns is not None:
            tape.append_table(delivery.columns, cursor=cursor)
        else:
            tape.append(delivery.records, cursor=cursor)
        before = delivery.cursor
        print(delivery.count, flush=True)
"""


def test_a_follower_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path):
    path = sierra.write(tmp_path / "ESZ6.scid", [])
    db, written, dice = tmp_path / "tape.db", 0, random.Random(5)
    for round_ in range(4):
        follower = subprocess.Popen(
            [sys.executable, "-c", _FOLLOWER, str(db), str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            for _ in range(6):
                more = _trades(written, written + dice.randint(1, 40))
                written += len(more)
                if dice.random() < 0.3:  # downloaded again: another file with all that there was
                    sierra.write(tmp_path / "new", _trades(0, written)).replace(path)
                else:
                    with path.open("ab") as file:
                        raw = b"".join(more)
                        cut = dice.randrange(len(raw))
                        file.write(raw[:cut])
                        file.flush()
                        file.write(raw[cut:])
            assert follower.stdout.readline(), round_
        finally:
            os.kill(follower.pid, signal.SIGKILL)
            follower.wait(60)
            follower.stdout.close()
    with onetape.open(db) as tape:
        tail = ScidTail(path, "ESZ6")
        before = tape.cursor(tail.cursor_name)
        tail.resume(before)
        for delivery in tail:
            if not delivery.count:
                tail.close()
                continue
            tape.append(delivery.records, cursor=(tail.cursor_name, before, delivery.cursor))
            before = delivery.cursor
        assert _prices(tape) == [100.0 + at for at in range(written)]


def test_a_file_is_followed_where_the_kernel_gives_no_hints(tmp_path, monkeypatch):
    monkeypatch.setattr(waker, "_watch", lambda path: None)
    path = sierra.write(tmp_path / "ESZ6.scid", _trades(0, 3))
    tail, prices = ScidTail(path, "ESZ6"), []

    def follow():
        for delivery in tail:
            prices.extend(tick.price for tick in delivery.records)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        for at in range(3, 9):
            with path.open("ab") as file:
                file.write(b"".join(_trades(at, at + 1)))
            deadline = time.monotonic() + 60
            while len(prices) <= at:
                assert time.monotonic() < deadline, tail.stats
                time.sleep(0.002)
    finally:
        tail.close()
        thread.join(60)
    assert not thread.is_alive()
    assert prices == [100.0 + at for at in range(9)]


def test_two_imports_of_one_file_at_once_store_it_once(tmp_path):
    path = sierra.write(tmp_path / "ESZ6.scid", _trades(0, 60_000))
    db = tmp_path / "tape.db"
    onetape.open(db).close()
    script = "import sys, onetape\nfrom onetape.importing.formats import import_file\n"
    script += "with onetape.open(sys.argv[1]) as tape: import_file(tape, sys.argv[2])\n"
    both = [subprocess.Popen([sys.executable, "-c", script, str(db), str(path)]) for _ in range(2)]
    assert [one.wait(120) for one in both] == [0, 0]
    with onetape.open(db) as tape:
        assert _prices(tape) == [100.0 + at for at in range(60_000)]
