"""The board: what a trader reads of each symbol, from what any process appends."""

import pytest

import onetape
from onetape import Tick
from onetape.services.board import Board

DAY = 86_400_000_000_000
T0 = 20_000 * DAY + 14 * 3_600_000_000_000


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        yield tape


class Time:
    def __init__(self):
        self.s = 0.0

    def __call__(self):
        return self.s


def test_the_change_is_against_the_first_trade_of_the_day(tape):
    tape.append([Tick("A", T0 - DAY, 50.0), Tick("A", T0, 100.0), Tick("A", T0 + 1, 110.0)])
    with Board(tape, clock=lambda: T0 + 10**9) as board:
        (row,) = board.look()
        assert (row.price, row.change, row.change_pct) == (110.0, 10.0, 10.0)
        assert row.age_s == pytest.approx(1.0)


def test_the_change_is_against_the_session_open_where_ticks_carry_one(tape):
    tape.append([Tick("A", T0, 100.0, open=80.0)])
    with Board(tape) as board:
        (row,) = board.look()
        assert row.change == 20.0 and row.change_pct == 25.0


def test_a_late_tick_counts_but_does_not_become_the_last(tape):
    tape.append(Tick("A", T0 + 10, 100.0))
    with Board(tape) as board:
        tape.append(Tick("A", T0, 50.0, ts_recv_ns=T0 + 5_000_000))
        (row,) = board.look()
        assert row.price == 100.0 and row.ticks == 1 and row.lag_ms == 5.0


def test_a_quote_moves_bid_and_ask_and_keeps_the_last_trade(tape):
    tape.append(Tick("A", T0, 100.0, bid=99.0, ask=101.0))
    with Board(tape) as board:
        tape.append(Tick("A", T0 + 1, bid=99.5))
        (row,) = board.look()
        assert (row.price, row.bid, row.ask) == (100.0, 99.5, 101.0)


def test_the_rate_is_of_the_last_seconds_and_falls_when_nothing_comes(tape):
    timer = Time()
    with Board(tape, timer=timer) as board:
        tape.append([Tick("A", T0 + i, 1.0) for i in range(100)])
        timer.s = 1.0
        (row,) = board.look()
        assert row.rate == pytest.approx(100)
        timer.s = 3.0
        (row,) = board.look()
        assert 0 < row.rate < 50
        timer.s = 60.0
        (row,) = board.look()
        assert row.rate == 0


def test_records_of_services_are_no_symbols_and_only_those_asked_for_are_shown(tape):
    tape.append([Tick("A", T0, 1.0), Tick("B", T0, 1.0), Tick("patterns:A", T0, bid=1.0)])
    with Board(tape) as board, Board(tape, ["B", "C"]) as some:
        tape.append([Tick("patterns:A", T0, bid=1.0), Tick("C", T0, 2.0)])
        assert [row.symbol for row in board.look()] == ["A", "B", "C"]
        assert [row.symbol for row in some.look()] == ["B", "C"]


def test_what_other_processes_append_is_seen(tape):
    with Board(tape) as board, onetape.open(tape.path) as other:
        other.append(Tick("A", T0, 7.0))
        assert [row.price for row in board.look()] == [7.0]


def test_a_late_first_trade_of_the_day_moves_the_change(tape):
    tape.append([Tick("A", T0 + 10**9, 100.0), Tick("A", T0 + 2 * 10**9, 110.0)])
    with Board(tape) as board:
        (row,) = board.look()
        assert row.change == 10.0
        tape.append(Tick("A", T0 - 3 * 3_600_000_000_000, 80.0))
        (row,) = board.look()
        assert (row.price, row.change) == (110.0, 30.0)
        tape.append(Tick("A", T0 + 3 * 10**9, 120.0))
        (row,) = board.look()
        assert row.change == 40.0


def test_a_new_day_has_a_change_from_its_first_trade_on(tape):
    tape.append(Tick("A", T0, 100.0))
    with Board(tape) as board:
        tape.append(Tick("A", T0 + DAY, bid=99.0))
        (row,) = board.look()
        assert (row.price, row.change) == (100.0, None)
        tape.append([Tick("A", T0 + DAY + 1, 105.0), Tick("A", T0 + DAY + 2, 107.0)])
        (row,) = board.look()
        assert row.change == 2.0


def test_a_trade_that_is_taken_back_is_shown_no_more(tape):
    tape.append([Tick("A", T0, 100.0), Tick("A", T0 + 1, 101.0), Tick("B", T0, 5.0)])
    with Board(tape) as board:
        tape.append(Tick("A", T0 + 2, 9999.0))
        assert board.look()[0].price == 9999.0
        tape.cancel(tape.latest("A"))
        tape.cancel(tape.latest("B"))
        assert [(row.symbol, row.price, row.change) for row in board.look()] == [("A", 101.0, 1.0)]


def test_a_last_trade_behind_quotes_is_there_from_the_first_look(tape):
    tape.append([Tick("A", T0, 100.0), Tick("A", T0 + 1, bid=99.0, ask=101.0)])
    with Board(tape) as board:
        (row,) = board.look()
        assert (row.price, row.bid, row.ask) == (100.0, 99.0, 101.0)
