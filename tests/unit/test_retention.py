"""Retention: ticks go after their days and bars after theirs, never what a snapshot covers, and space is given back."""

import apsw
import pytest

import onetape
from onetape import Tick

DAY = 86_400_000_000_000
NOW = 1_780_000_000_000_000_000 // DAY * DAY


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        for day in range(10):
            at = NOW - (10 - day) * DAY
            opened.append(
                [Tick("BIG", at + i * 10**7, price=i / 7, size=1.0) for i in range(3000)]
                + [Tick(f"few{i % 3}", at + i * 10**9, price=1.0, size=1.0) for i in range(30)]
            )
            opened.seal()
        yield opened


def _later(tape, days):
    """A moment at which what was appended has been on the tape for `days`."""
    return onetape.now_ns() + days * DAY


def _checkpoint(tape):
    raw = apsw.Connection(str(tape.path))
    raw.execute("SELECT count(*) FROM journal").fetchall()
    raw.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    raw.close()


def test_what_would_go_is_told_and_is_what_goes(tape):
    bars = {symbol: tape.bar_list(symbol) for symbol in ("BIG", "few0")}
    now = _later(tape, 60)
    plan = tape.prune_plan(now=now, retention_days=30)
    assert plan.ticks == 30_300
    assert plan.bytes > 10_000
    assert tape.prune(now=now, retention_days=30) == 30_300
    assert tape.prune_plan(now=now, retention_days=30).ticks == 0
    assert tape.read("BIG").num_rows == tape.read("few0").num_rows == 0
    assert {symbol: tape.bar_list(symbol) for symbol in bars} == bars
    assert onetape.doctor(tape.path, full=True).healthy


def test_ticks_that_came_today_stay_however_old_they_are(tape):
    assert tape.prune(retention_days=1) == 0
    assert tape.read("BIG").num_rows == 30_000


def test_bars_go_after_their_own_days_once_their_ticks_are_gone(tape):
    now = _later(tape, 60)
    whole = tape.bar_list("BIG")
    assert tape.prune(now=now, retention_days=10_000, bar_retention_days=10_000) == 0
    assert tape.bar_list("BIG") == whole
    plan = tape.prune_plan(now=now, retention_days=30, bar_retention_days=40)
    assert plan.bar_hours > 0
    tape.prune(now=now, retention_days=30, bar_retention_days=40)
    assert tape.bar_list("BIG") == []
    assert onetape.doctor(tape.path, full=True).healthy


def test_bars_of_ticks_that_a_snapshot_keeps_stay_too(tape):
    tape.snapshot("all")
    now = _later(tape, 60)
    whole = tape.bar_list("BIG")
    assert tape.prune(now=now, retention_days=30, bar_retention_days=40) == 0
    assert tape.bar_list("BIG") == whole
    tape.delete_snapshot("all")
    assert tape.prune(now=now, retention_days=30, bar_retention_days=40) == 30_300
    assert tape.bar_list("BIG") == []


def test_space_is_given_back(tape):
    _checkpoint(tape)
    before = tape.path.stat().st_size
    tape.prune(now=_later(tape, 60), retention_days=30, bar_retention_days=40)
    _checkpoint(tape)
    assert before > 100_000
    assert tape.path.stat().st_size < before / 2


@pytest.mark.parametrize(
    "days, bar_days", [(30, 10), (None, 10), (0, None), (30, 0), (float("nan"), None), (30, float("inf"))]
)
def test_bars_never_go_before_their_ticks_and_days_are_numbers(tmp_path, days, bar_days):
    with pytest.raises(onetape.ConfigInvalid) as caught:
        onetape.open(tmp_path / "t.db", retention_days=days, bar_retention_days=bar_days)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_retention_that_goes_on_by_itself_removes_both(tmp_path, monkeypatch):
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        tape.append([Tick("A", NOW + i * 10**8, price=1.0) for i in range(9000)])
    later = onetape.now_ns() + 50 * DAY
    for module in ("onetape.tape.upkeep", "onetape.store.seal"):
        monkeypatch.setattr(f"{module}.now_ns", lambda: later)
    with onetape.open(tmp_path / "t.db", retention_days=30, bar_retention_days=40) as tape:
        for i in range(9000):
            tape.append(Tick("B", later + i, price=1.0))
        assert tape.read("A").num_rows == 0
        assert tape.bar_list("A") == []
        assert tape.read("B").num_rows == 9000


def test_a_tick_that_was_taken_back_never_comes_back_to_life(tape):
    taken_back = [tick for tick in tape.recent("BIG", 30_000) if tick.seq % 500 == 1]
    for tick in taken_back:
        tape.cancel(tick)
    tape.compact()
    digest = tape.snapshot("all").digest
    left = tape.read("BIG").num_rows
    assert left == 30_000 - len(taken_back)
    assert onetape.doctor(tape.path, full=True).healthy
    tape.append([Tick("BIG", NOW + i, price=1.0) for i in range(5000)])
    tape.compact()
    now = _later(tape, 60)
    tape.prune(now=now, retention_days=30)
    assert tape.verify_snapshot("all").found.digest == digest
    assert tape.read("BIG", end=NOW).num_rows == left
    tape.delete_snapshot("all")
    for _ in range(3):
        tape.prune(now=now, retention_days=30)
    assert tape.read("BIG").num_rows == 0
    told = onetape.doctor(tape.path, full=True)
    assert told.healthy, told.problems
