"""Edges of the store: the ends of time, long appends of few, files of an older format, and what codecs stumble over."""

from __future__ import annotations

import pytest

import onetape
from onetape import Tick

T0 = 1_700_000_000_000_000_000
MINUTE = 60_000_000_000
LAST = 2**63 - 2


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        yield opened


@pytest.mark.parametrize("ends", [(LAST, LAST - 1), (0, 0)])
def test_a_late_trade_and_a_cancel_in_the_first_and_the_last_minute_of_time_are_in_their_bar(tape, ends):
    newest, late = ends
    tape.append(Tick("A", newest, price=1.0, size=1.0))
    tape.seal()
    done = tape.append(Tick("A", late, price=2.0, size=2.0))
    for _ in range(2):
        assert [(bar.trades, bar.volume) for bar in tape.bar_list("A")] == [(2, 3.0)]
        assert tape.bar_list("A", "7min")[0].volume == 3.0
        tape.seal()
    tape.cancel(Tick("A", late, price=2.0, size=2.0, seq=done.last))
    for _ in range(2):
        assert [(bar.trades, bar.volume) for bar in tape.bar_list("A")] == [(1, 1.0)]
        tape.compact()
    assert tape.read("A", columns=["ts_event_ns"]).to_pydict() == {"ts_event_ns": [newest]}
