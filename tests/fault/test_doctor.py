"""The doctor: whatever is damaged is named, what is good stays readable, and a repair loses nothing but the damage."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import apsw
import pytest

import onetape
from onetape import Bar, Tick
from onetape.store import layout
from onetape.store.block import decode_many
from onetape.store.chunks import Chunk

T0 = 1_700_000_000_000_000_000
DAY = 86_400_000_000_000


@pytest.fixture
def path(tmp_path):
    """A tape of two large symbols, several small ones, given bars, and some records still in the journal."""
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        chance = random.Random(1)
        tape.append(
            [
                Tick("AB"[i % 2], T0 + i * 10**7, 6000 + chance.randint(-9, 9) / 4, float(i % 5), side=i % 3 - 1)
                for i in range(10_000)
            ]
        )
        tape.append([Tick(f"S{i % 9}", T0 + i * 10**9, price=i / 7, bid=1.0, source="feed") for i in range(300)])
        tape.append([Bar("A", "1d", T0 // DAY * DAY - DAY, 1.0, 2.0, 0.5, 1.5, source="vendor")])
        tape.seal()
        tape.append([Tick("J", T0 + i, price=1.0) for i in range(5)])
        tape.append(Tick("J", T0 + 9, price=2.0))
    return path


def _raw(path):
    return apsw.Connection(str(path))


def _everything(path):
    """Return what can be read of each symbol: its ticks, or the error."""
    found = {}
    with onetape.open(path, mode="r") as tape:
        for info in tape.symbols():
            try:
                found[info.symbol] = tape.read(info.symbol).to_pylist()
            except onetape.TapeError as error:
                found[info.symbol] = error
    return found


def test_a_healthy_tape_has_no_problems_and_is_not_changed(path):
    before = path.read_bytes()
    for full in (False, True):
        told = onetape.doctor(path, full=full)
        assert told.healthy, told.problems
    assert path.read_bytes() == before
    assert {finding.place for finding in told.findings} >= {"pages", "chunks", "journal", "bars", "space", "disk"}


def test_a_flipped_bit_anywhere_in_a_chunk_is_named_and_all_else_is_read(path):
    chance = random.Random(7)
    whole = _everything(path)
    raw = _raw(path)
    rows = raw.execute("SELECT id, symbol_id, payload FROM chunk").fetchall()
    raw.close()
    for number in range(25):
        chunk_id, _symbol_id, payload = chance.choice(rows)
        bit = chance.randrange(len(payload) * 8) if number % 4 else chance.choice([0, 9, 17, 8 * len(payload) - 1])
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        raw = _raw(path)
        raw.execute("UPDATE chunk SET payload = ? WHERE id = ?", (bytes(flipped), chunk_id))
        raw.close()
        problems = [problem for problem in onetape.doctor(path).problems if problem.place == "chunk"]
        assert [problem.facts["id"] for problem in problems] == [chunk_id], f"bit {bit} of chunk {chunk_id}"
        for symbol, ticks in _everything(path).items():
            if isinstance(ticks, onetape.ChunkCorrupt):
                assert f"chunk {chunk_id}" in str(ticks)
                assert "onetape doctor" in str(ticks)
            else:
                assert ticks == whole[symbol]
        raw = _raw(path)
        raw.execute("UPDATE chunk SET payload = ? WHERE id = ?", (payload, chunk_id))
        raw.close()
    assert onetape.doctor(path).healthy


def test_no_flipped_bit_of_a_chunk_the_journal_or_kept_bars_goes_unseen(path):
    chance = random.Random(11)
    raw = _raw(path)
    rows = raw.execute(
        "SELECT id, kind, symbol_id, ts_min, ts_max, seq_min, seq_max, count, encoding, payload FROM chunk"
    )
    places = [Chunk._make(row) for row in rows.fetchall()]
    journal = raw.execute("SELECT seq_last, count, payload FROM journal WHERE count > 0").fetchall()
    raw.close()
    for number in range(1500):
        chunk = chance.choice(places)
        bits = len(chunk.payload) * 8
        bit = chance.randrange(bits) if number % 3 else chance.randrange(min(bits, 64 * 8))
        with pytest.raises(onetape.ChunkCorrupt):
            chunk._replace(payload=_flipped(chunk.payload, bit)).decode()
    for seq_last, count, payload in journal:
        for bit in range(len(payload) * 8):
            with pytest.raises(onetape.ChunkCorrupt):
                decode_many([(seq_last, count, _flipped(payload, bit))], "journal")


def _flipped(payload, bit):
    flipped = bytearray(payload)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


@pytest.mark.parametrize("column", ["ts_min", "ts_max", "seq_max", "count"])
def test_an_index_that_does_not_fit_its_chunk_is_found_and_corrected(path, column):
    whole = _everything(path)
    raw = _raw(path)
    raw.execute(f"UPDATE chunk SET {column} = {column} - 1 WHERE id = (SELECT min(id) FROM chunk)")
    raw.close()
    assert [problem.place for problem in onetape.doctor(path).problems] == ["chunk"]
    plan = onetape.repair(path, execute=True)
    assert plan.aside == []
    assert len(plan.corrected) == 1
    assert onetape.doctor(path).healthy
    assert _everything(path) == whole


def _break_a_chunk(path, where="symbol_id = 1"):
    raw = _raw(path)
    chunk_id, payload = raw.execute(f"SELECT id, payload FROM chunk WHERE kind = 0 AND {where} LIMIT 1").fetchall()[0]
    broken = payload[:50] + bytes([payload[50] ^ 1]) + payload[51:]
    raw.execute("UPDATE chunk SET payload = ? WHERE id = ?", (broken, chunk_id))
    raw.close()
    return chunk_id, broken


def test_a_repair_is_a_dry_run_until_it_is_told_to_execute(path):
    chunk_id, _ = _break_a_chunk(path)
    before = path.read_bytes()
    plan = onetape.repair(path)
    assert not plan.done
    assert [aside.place for aside in plan.aside] == [f"chunk {chunk_id}"]
    assert plan.aside[0].symbol == "A"
    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir() if "before" in each.name) == []


def test_a_repair_sets_the_damage_aside_keeps_its_bytes_and_makes_the_rest_readable(path):
    whole = _everything(path)
    chunk_id, broken = _break_a_chunk(path)
    with pytest.raises(onetape.ChunkCorrupt), onetape.open(path) as tape:
        tape.read("A")
    plan = onetape.repair(path, execute=True)
    assert plan.done
    [aside] = plan.aside
    told = onetape.doctor(path, full=True)
    assert told.healthy, told.problems
    assert any(finding.place == "damaged" for finding in told.findings)
    found = _everything(path)
    lost = set(range(aside.first, aside.last + 1))
    assert found["A"] == [tick for tick in whole["A"] if tick["seq"] not in lost or tick["symbol"] != "A"]
    assert all(found[symbol] == whole[symbol] for symbol in whole if symbol != "A")
    raw = _raw(path)
    assert raw.execute("SELECT payload FROM damaged").get == broken
    raw.close()
    copy = onetape.doctor(plan.backup)
    assert [problem.facts["id"] for problem in copy.problems if problem.place == "chunk"] == [chunk_id]
    with onetape.open(path) as tape:
        assert {info.symbol: info.ticks for info in tape.symbols()}["A"] == len(found["A"])
        tape.append(Tick("A", T0 * 2 // 2 + DAY, price=1.0))
        assert tape.latest("A").price == 1.0
    again = onetape.repair(path, execute=True)
    assert again.nothing
    assert again.backup is None


def test_a_damaged_row_of_the_journal_is_set_aside_and_the_rest_of_it_is_sealed(path):
    raw = _raw(path)
    [(seq, payload)] = raw.execute("SELECT seq_last, payload FROM journal WHERE count = 5").fetchall()
    raw.execute("UPDATE journal SET payload = ? WHERE seq_last = ?", (payload[:-6] + b"\xff" * 6, seq))
    raw.close()
    assert [problem.place for problem in onetape.doctor(path).problems] == ["journal"]
    with pytest.raises(onetape.ChunkCorrupt, match=f"journal row {seq}"), onetape.open(path) as tape:
        tape.read("J")
    plan = onetape.repair(path, execute=True)
    assert (plan.aside[0].first, plan.aside[0].last, plan.aside[0].records) == (seq - 4, seq, 5)
    assert onetape.doctor(path, full=True).healthy
    with onetape.open(path) as tape:
        assert [tick["price"] for tick in tape.read("J").to_pylist()] == [2.0]
        done = tape.append(Tick("J", T0 + 20, price=3.0))
        assert done.first == seq + 2
        assert [tick.price for tick in tape.follow(symbols=["J"], from_seq=0, idle_s=0)] == [2.0, 3.0]


def test_counts_and_bars_that_do_not_fit_their_ticks_are_found_and_made_again(path):
    with onetape.open(path) as tape:
        bars = tape.bar_list("A")
    raw = _raw(path)
    raw.execute("UPDATE symbol SET ticks = ticks + 3 WHERE name = 'S1'")
    raw.execute("DELETE FROM minute WHERE id = (SELECT min(id) FROM minute)")
    raw.close()
    assert {problem.place for problem in onetape.doctor(path, full=True).problems} == {"counts", "bars"}
    plan = onetape.repair(path, execute=True)
    assert plan.corrected == ["the counts of S1"]
    assert plan.hours_of_bars >= 1
    assert onetape.doctor(path, full=True).healthy
    with onetape.open(path) as tape:
        assert tape.bar_list("A") == bars


def test_positions_that_are_missing_are_a_problem(path):
    raw = _raw(path)
    raw.execute("DELETE FROM chunk WHERE id = (SELECT max(id) FROM chunk WHERE kind = 0)")
    raw.close()
    problems = onetape.doctor(path).problems
    assert any(problem.place == "spans" and "lacks" in problem.message for problem in problems)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_file_that_is_cut_off_says_so(path, keep):
    size = int(path.stat().st_size * keep)
    os.truncate(path, size)
    problems = onetape.doctor(path).problems
    assert any("cut off" in problem.message and f"{size:,}" in problem.message for problem in problems)
    assert all(problem.hint for problem in problems)


def test_zeroed_pages_are_found_wherever_they_are(path):
    whole = path.read_bytes()
    page = int.from_bytes(whole[16:18], "big")
    before = _everything(path)
    last = len(whole) // page
    # The page that the newest rows end in too: what stands behind a payload is lost without its first page being so.
    for number in {*random.Random(3).sample(range(1, last), 30), *range(last - 10, last)}:
        raw = bytearray(whole)
        raw[number * page : (number + 1) * page] = bytes(page)
        path.write_bytes(raw)
        healthy = onetape.doctor(path, full=True).healthy
        try:
            found = _everything(path)
        except onetape.TapeError:
            found = None
        if healthy:  # a page that nothing uses
            assert found == before
        elif found is not None:
            for symbol, ticks in found.items():
                assert isinstance(ticks, onetape.TapeError) or ticks == before[symbol]


def test_a_first_page_that_is_gone_is_no_traceback(path):
    raw = bytearray(path.read_bytes())
    raw[:100] = bytes(100)
    path.write_bytes(raw)
    assert "first page" in onetape.doctor(path).problems[0].message


_WRITER = """
import os, sys, onetape
tape = onetape.open(sys.argv[1], retention_days=None)
for i in range(int(sys.argv[2])):
    tape.append(onetape.Tick(sys.argv[3], 1_700_000_000_000_000_000 + i, price=float(i)))
print("ready", flush=True)
os.kill(os.getpid(), 9)
"""


def _killed_tape(path, count, symbol):
    """A tape with what was appended last still in its log."""
    done = subprocess.run(
        [sys.executable, "-c", _WRITER, str(path), str(count), symbol], capture_output=True, text=True
    )
    assert "ready" in done.stdout, done.stderr
    assert layout.wal_path(path).stat().st_size > 0


def test_a_log_of_another_tape_is_refused_kept_and_set_aside(tmp_path, path):
    whole = _everything(path)
    other = tmp_path / "other.db"
    _killed_tape(other, 200, "X")
    shutil.copy(layout.wal_path(other), layout.wal_path(path))
    before = path.read_bytes(), layout.wal_path(path).read_bytes()
    for mode in ("rw", "r"):
        with pytest.raises(onetape.TapeDamaged, match=r"does not belong|malformed") as caught:
            onetape.open(path, mode=mode)
        assert caught.value.hint
    told = onetape.doctor(path)
    assert not told.healthy
    assert (path.read_bytes(), layout.wal_path(path).read_bytes()) == before
    plan = onetape.repair(path)
    assert plan.log is not None and not plan.done
    assert (path.read_bytes(), layout.wal_path(path).read_bytes()) == before
    plan = onetape.repair(path, execute=True)
    assert Path(plan.log).read_bytes() == before[1]
    assert onetape.doctor(path).healthy
    assert _everything(path) == whole


def test_a_log_that_was_cut_off_anywhere_leaves_what_was_committed_before(tmp_path):
    path = tmp_path / "t.db"
    _killed_tape(path, 300, "X")
    saved, log = path.read_bytes(), layout.wal_path(path).read_bytes()
    index = layout.index_path(path)
    longest = 0
    for size in [*sorted(random.Random(2).sample(range(len(log)), 25)), len(log)]:
        path.write_bytes(saved)
        layout.wal_path(path).write_bytes(log[:size])
        index.unlink(missing_ok=True)
        told = onetape.doctor(path)
        try:
            with onetape.open(path) as tape:
                prices = [tick["price"] for tick in tape.read("X").to_pylist()]
        except onetape.TapeError as error:
            assert error.hint
            assert not told.healthy
            continue
        assert prices == [float(i) for i in range(len(prices))]
        assert len(prices) >= longest
        longest = len(prices)
    assert longest == 300


def test_a_flipped_bit_in_the_log_is_told_of(tmp_path):
    path = tmp_path / "t.db"
    _killed_tape(path, 300, "X")
    raw = bytearray(layout.wal_path(path).read_bytes())
    raw[len(raw) // 2] ^= 16
    layout.wal_path(path).write_bytes(raw)
    layout.index_path(path).unlink(missing_ok=True)
    findings = onetape.doctor(path).findings
    assert any(finding.place == "log" and "damaged" in finding.message for finding in findings)


def test_records_of_the_future_and_refused_ones_are_told_of(path):
    with onetape.open(path) as tape:
        tape.append(Tick("F", onetape.now_ns() + DAY, price=1.0))
        tape.append([Tick("F", T0, price=float("inf"))], on_invalid="quarantine")
        tape.seal()
    places = {finding.place: finding for finding in onetape.doctor(path).findings if finding.weight == "warning"}
    assert places["clock"].facts["symbol"] == "F"
    assert places["quarantine"].facts["records"] == 1


_READER = """
import sys, time, apsw
raw = apsw.Connection(sys.argv[1])
raw.execute("BEGIN")
raw.execute("SELECT max(seq_last) FROM journal").fetchall()
print("reading", flush=True)
time.sleep(60)
"""


def test_the_process_that_pins_the_log_is_named(path, monkeypatch):
    from onetape.store import check

    monkeypatch.setattr(check, "_WAL_WARN_BYTES", 50_000)
    with onetape.open(path) as tape:
        tape.append(Tick("A", T0 + DAY, price=1.0))
        reader = subprocess.Popen([sys.executable, "-c", _READER, str(path)], stdout=subprocess.PIPE, text=True)
        try:
            assert reader.stdout.readline() == "reading\n"
            for i in range(300):
                tape.append(Tick("A", T0 + DAY + i, price=1.0))
            told = onetape.doctor(path)
            assert told.healthy
            pinned = [finding for finding in told.findings if finding.facts.get("pid") == reader.pid]
            assert pinned and pinned[0].weight == "warning"
            assert any(
                "open in" in f.message and reader.pid in f.facts["pids"] for f in told.findings if f.facts.get("pids")
            )
        finally:
            reader.send_signal(signal.SIGKILL)
            reader.wait()
        time.sleep(0.05)
        assert not [f for f in onetape.doctor(path).findings if f.facts.get("pid") == reader.pid]


def test_the_doctor_goes_on_while_another_process_writes(path):
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER.replace("os.kill", "0 and os.kill"), str(path), "12000", "W"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while writer.poll() is None:
            told = onetape.doctor(path)
            assert told.healthy, told.problems
    finally:
        writer.kill()
        writer.wait()
    assert onetape.doctor(path, full=True).healthy


def test_what_is_merged_while_the_doctor_reads_is_not_counted_twice(tmp_path, monkeypatch):
    from onetape.store import check

    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        for part in range(6):
            tape.append([Tick(f"S{i % 3}", T0 + part * 10**9 + i, price=1.0) for i in range(500)])
            tape.seal()
        real, calls = check._span, []

        def merging(*args):
            calls.append(args[2:4])
            found = list(real(*args))
            if len(calls) == 2:
                threading.Thread(target=tape.compact).start()
                time.sleep(0.3)
            return found

        monkeypatch.setattr(check, "_span", merging)
        told = onetape.doctor(path)
        assert told.healthy, told.problems
        assert len(calls) == 3


_REPAIR = """
import sys, onetape
print("on", flush=True)
onetape.repair(sys.argv[1], execute=True)
print("done", flush=True)
"""


def test_a_repair_that_is_killed_anywhere_has_changed_nothing_or_all(path):
    whole = _everything(path)
    saved = path.read_bytes()
    for delay in (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08):
        path.write_bytes(saved)
        for beside in (layout.wal_path(path), layout.index_path(path)):
            beside.unlink(missing_ok=True)
        _break_a_chunk(path)
        repairer = subprocess.Popen([sys.executable, "-c", _REPAIR, str(path)], stdout=subprocess.PIPE, text=True)
        assert repairer.stdout.readline() == "on\n"
        time.sleep(delay)
        repairer.kill()
        repairer.wait()
        plan = onetape.repair(path, execute=True)
        raw = _raw(path)
        assert raw.execute("SELECT count(*) FROM damaged").get == 1
        raw.close()
        assert plan.nothing or len(plan.aside) == 1
        assert onetape.doctor(path, full=True).healthy
        found = _everything(path)
        assert all(found[symbol] == whole[symbol] for symbol in whole if symbol != "A")
