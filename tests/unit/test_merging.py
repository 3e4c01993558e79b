"""Spans merged beside the appending: the appender does not wait for many records, and nothing on the tape changes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import onetape
from onetape import Tick
from onetape.store import layout, spans
from onetape.tape import care, sealing

T0 = 1_700_000_000_000_000_000
#: A machine much slower than this one still merges so few records within it, s.
_PATIENCE_S = 60.0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make spans of 10 records, merged four at a time beside the appending; give the threads that merged."""
    monkeypatch.setattr(layout, "SEAL_RECORDS", 10)
    monkeypatch.setattr(spans, "MERGE_SPANS", 4)
    monkeypatch.setattr(sealing, "_BESIDE_RECORDS", 40)
    threads: list[int] = []
    real = spans.prepare

    def prepare(*told: object) -> object:
        threads.append(threading.get_ident())
        return real(*told)  # type: ignore[arg-type]

    monkeypatch.setattr(spans, "prepare", prepare)
    return threads


def test_many_records_are_merged_by_a_thread_while_appends_go_on(tmp_path: Path, small: list[int]) -> None:
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        for i in range(40):
            tape.append(Tick("A", T0 + i, price=float(i)))
        deadline = time.monotonic() + _PATIENCE_S
        while tape.stats().chunks > 1:
            assert time.monotonic() < deadline, "what was due was not merged"
            time.sleep(0.01)
        for i in range(40, 400):
            tape.append(Tick("A", T0 + i, price=float(i)))
        assert tape.read("A")["price"].to_pylist() == [float(i) for i in range(400)]
        assert tape.stats().seal_error is None

    assert small[0] != threading.get_ident()
    assert care.doctor(path).healthy


def test_an_appender_that_outruns_the_thread_merges_itself(
    tmp_path: Path, small: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, free = threading.Event(), threading.Event()
    real = sealing.Sealing._compact_beside

    def slow(self: sealing.Sealing) -> None:
        held.set()
        free.wait(_PATIENCE_S)
        real(self)

    monkeypatch.setattr(sealing.Sealing, "_compact_beside", slow)
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        for i in range(400):
            tape.append(Tick("A", T0 + i, price=float(i)))
        assert held.is_set()
        assert threading.get_ident() in small
        assert tape.stats().chunks < 12  # a reader looks into each of them
        free.set()
        assert tape.read("A").num_rows == 400
    assert care.doctor(path).healthy


def test_a_thread_that_can_do_nothing_leaves_the_merging_to_the_appender(
    tmp_path: Path, small: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: sealing.Sealing) -> None:
        self._compactor = None

    monkeypatch.setattr(sealing.Sealing, "_compact_beside", fails)
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        for i in range(400):
            tape.append(Tick("A", T0 + i, price=float(i)))
        assert set(small) == {threading.get_ident()}
        assert tape.stats().chunks < 12
        assert tape.read("A").num_rows == 400
    assert care.doctor(path).healthy


def test_two_that_merge_the_same_spans_leave_every_record_once(
    tmp_path: Path, small: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, free = threading.Event(), threading.Event()
    counted = spans.prepare

    def prepare(*told: object) -> object:
        merge = counted(*told)  # type: ignore[arg-type]
        if threading.current_thread().name == "onetape-compactor" and not made.is_set():
            made.set()
            free.wait(_PATIENCE_S)  # until the appender has merged what this thread has ready
        return merge

    monkeypatch.setattr(spans, "prepare", prepare)
    path = tmp_path / "t.db"
    with onetape.open(path, retention_days=None) as tape:
        for i in range(40):
            tape.append(Tick("A", T0 + i, price=float(i)))
        assert made.wait(_PATIENCE_S)
        for i in range(40, 200):
            tape.append(Tick("A", T0 + i, price=float(i)))
        assert threading.get_ident() in small
        free.set()
    with onetape.open(path, mode="r") as tape:
        assert tape.read("A")["price"].to_pylist() == [float(i) for i in range(200)]
    assert care.doctor(path).healthy
