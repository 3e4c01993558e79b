"""The state: exact positions, limits, durable changes, events, and prices from the tape."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

import onetape
from onetape import ConfigInvalid, FillConflict, StateUnusable, Tick
from onetape.services.service import Service
from onetape.services.state import Fill, Position, StateService
from onetape.services.state import file as state_file
from onetape.services.state.position import apply

S = 1_000_000_000
NOW = 1_800_000_000 * S


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        yield tape


@pytest.fixture
def state(tape, tmp_path):
    service = StateService(tape, tmp_path / "t.db.state", clock=lambda: NOW)
    yield service
    service.close()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_a_position_is_opened_added_to_reduced_flipped_and_closed(state):
    state.set_contract("ES", 50)
    state.fill("1", "ES", 2, 5000)
    state.fill("2", "ES", 2, 5010)
    assert state.position("ES").average_price == 5005
    after, realized, new = state.fill("3", "ES", -1, 5015)
    assert (after.quantity, after.average_price, realized, new) == (3, 5005, 500, True)
    after, realized, _ = state.fill("4", "ES", -5, 4995)
    assert (after.quantity, after.average_price, realized) == (-2, 4995, -1500)
    after, realized, _ = state.fill("5", "ES", 2, 4990)
    assert (after.quantity, after.average_price, realized, after.realized) == (0, None, 500, -500)
    assert state.positions() == {} and set(state.positions(flat=True)) == {"ES"}


cents = st.decimals("-99999", "99999", places=4)
amounts = st.decimals("-500", "500", places=3).filter(bool)


@given(st.lists(st.tuples(amounts, cents), min_size=1, max_size=30), cents)
def test_a_flat_position_realized_exactly_what_came_in_less_what_went_out(trades, last):
    position = Position(symbol="A", multiplier=Decimal("12.5"))
    trades = [*trades, (-sum(amount for amount, _ in trades), last)]
    for number, (amount, price) in enumerate(trades):
        if amount:
            fill = Fill(fill_id=str(number), symbol="A", quantity=amount, price=price, ts_ns=number)
            position, _ = apply(position, fill)
    assert position.quantity == 0 and position.cost == 0
    assert position.realized == -sum(amount * price for amount, price in trades) * Decimal("12.5")


def test_a_fill_counts_once_by_its_id_and_another_with_its_id_is_refused(state):
    assert state.fill("x", "A", 1, 0.1)[2] is True
    assert state.fill("x", "A", 1, 0.1)[2] is False
    assert state.position("A").quantity == 1
    with pytest.raises(FillConflict):
        state.fill("x", "A", 2, 0.1)
    assert state.position("A").quantity == 1


@pytest.mark.parametrize(
    "bad",
    [{"quantity": 0}, {"quantity": float("nan")}, {"price": "1e99"}, {"price": True}, {"price": "0.1234567890123"}],
)
def test_what_cannot_be_kept_exactly_is_refused(state, bad):
    with pytest.raises(ConfigInvalid):
        state.fill("1", **{"symbol": "A", "quantity": 1, "price": 1, **bad})
    assert state.fills() == []


def test_a_multiplier_cannot_change_under_a_position(state):
    state.fill("1", "A", 1, 10)
    with pytest.raises(ConfigInvalid, match="while 1 are held"):
        state.set_contract("A", 50)


def test_profit_is_at_the_last_trade_or_a_fresh_middle_and_says_when_it_is_old(state, tape):
    state.set_contract("A", 10)
    state.fill("1", "A", 2, 100, fee="1.5", ts_ns=NOW)
    assert state.profit_loss().unrealized is None and state.profit_loss().stale == ["A"]
    tape.append(Tick("A", NOW - 3600 * S, 90.0))
    old = state.profit_loss()
    assert (old.unrealized, old.stale) == (-200, ["A"])
    tape.append(Tick("A", NOW - S, bid=101.0, ask=102.0))
    fresh = state.profit_loss()
    assert (fresh.unrealized, fresh.stale, fresh.day) == (30, [], Decimal("28.5"))
    tape.append(Tick("A", NOW - S // 2, 103.0))
    assert state.valued()["A"].mark.kind == "trade" and state.profit_loss().unrealized == 60


def test_limits_refuse_an_order_but_never_one_that_makes_a_position_smaller(state, tape):
    tape.append(Tick("A", NOW, 100.0))
    assert [one.limit for one in state.check("A", 1)] == ["trading_enabled"]
    state.set_system(trading_enabled=True)
    assert state.check("A", 1) == []
    state.set_risk(max_position=3, max_order=2, max_exposure=250, max_position_of={"B": 9})
    assert {one.limit for one in state.check("A", 4)} == {"max_position", "max_order", "max_exposure"}
    state.fill("1", "A", 3, 100)
    assert [one.limit for one in state.breaches()] == ["max_exposure"]
    state.set_system(trading_enabled=False)
    assert state.check("A", -3) == []
    assert "trading_enabled" in [one.limit for one in state.check("A", -4)]  # it flips


def test_what_is_not_known_is_not_within_a_limit(state, tape):
    state.set_system(trading_enabled=True)
    state.set_risk(max_daily_loss=100)
    state.fill("1", "A", 1, 100, ts_ns=NOW)
    assert [one.limit for one in state.check("B", 1)] == ["max_daily_loss"]
    tape.append(Tick("A", NOW, 50.0))
    assert state.check("B", 1) == []
    state.fill("2", "C", 1, 100, ts_ns=NOW)
    state.fill("3", "C", -1, 50, ts_ns=NOW)
    assert "100 lost today" in state.check("B", 1)[0].message


def test_the_loss_of_a_day_ends_with_the_day(tape, tmp_path):
    now = [NOW]
    state = StateService(tape, tmp_path / "s", clock=lambda: now[0], day_starts="17:00 America/Chicago")
    state.fill("1", "A", 1, 100)
    state.fill("2", "A", -1, 40)
    assert state.profit_loss().realized_today == -60
    now[0] += 86_400 * S
    assert state.profit_loss().realized_today == 0 and state.profit_loss().realized == -60
    state.close()


@pytest.mark.parametrize("bad", [{"max_order": 0}, {"max_order": "many"}, {"max_positions": 1.5}, {"nothing": 1}])
def test_a_limit_that_makes_no_sense_changes_none(state, bad):
    state.set_risk(max_position=5)
    with pytest.raises(ConfigInvalid):
        state.set_risk(max_exposure=1, **bad)
    assert state.risk().max_position == 5 and state.risk().max_exposure is None


def test_all_of_it_is_there_again_after_a_restart_and_in_another_service(state, tape, tmp_path):
    state.fill("1", "A", 1, "100.25", ts_ns=5)
    state.set_risk(max_position=7)
    state.set_system(mode="replay", note={"by": "hand"})
    other = StateService(tape, tmp_path / "t.db.state")
    assert other.position("A") == state.position("A")
    assert other.risk().max_position == 7 and other.system()["note"] == {"by": "hand"}
    other.fill("2", "A", 1, 101)
    assert state.position("A").quantity == 2
    other.close()


def test_a_killed_process_loses_no_fill_that_returned_and_keeps_event_and_position_together(tmp_path):
    path = tmp_path / "s"
    code = (
        "import sys; from onetape.services.state import StateService\n"
        "service = StateService(None, sys.argv[1])\n"
        "for n in range(10**9):\n    service.fill(str(n), 'A', 1, 100)\n    print(n, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        for line in child.stdout:
            if int(line) >= 40:
                break
    finally:
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        child.stdout.close()
        child.wait()
    returned = int(([line, *rest])[-1] if not rest or rest[-1].isdigit() else rest[-2]) + 1
    state = StateService(None, path)
    held = int(state.position("A").quantity)
    assert held in (returned, returned + 1)
    assert held == len(state.fills(10**6)) == state._file.last_event()
    state.close()


def test_threads_and_services_lose_no_fill_of_each_other(tape, tmp_path):
    services = [StateService(tape, tmp_path / "s") for _ in range(2)]

    def work(service, name):
        for number in range(20):
            service.fill(f"{name}{number}", "A", 1, 100)

    threads = [threading.Thread(target=work, args=(services[n % 2], f"t{n}-")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert services[0].position("A").quantity == 80 == services[1].position("A").quantity
    for service in services:
        service.close()


def test_each_subscriber_gets_every_event_though_one_raises_and_one_hangs(state, tape, tmp_path):
    got, hanging = [], threading.Event()
    state.fill("before", "A", 1, 1)

    def raising(event):
        raise RuntimeError("on purpose")

    bad = state.subscribe(raising)
    state.subscribe(lambda event: hanging.wait(60))
    state.subscribe(got.append)
    other = StateService(tape, tmp_path / "t.db.state")  # as another process would
    other.fill("1", "A", 1, 1)
    state.set_risk(max_order=1)
    state.set_system(mode="live")
    try:
        until(lambda: len(got) == 3 and bad.errors == 3)
    finally:
        hanging.set()
        other.close()
    assert [event.kind for event in got] == ["fill", "risk", "system"]
    assert got[0].content["position"]["quantity"] == "2"


async def _subscribed(state):
    done = asyncio.Event()

    async def callback(event):
        await asyncio.sleep(0)
        done.set()

    state.subscribe(callback)
    await asyncio.to_thread(state.set_risk, max_order=1)
    await asyncio.wait_for(done.wait(), 60)
    await state.stop()
    await state.stop()


def test_a_coroutine_is_awaited_on_the_loop_that_subscribed(state):
    asyncio.run(_subscribed(state))


def test_a_file_that_is_no_state_is_refused_and_left_as_it_was(tape, tmp_path):
    path = tmp_path / "other"
    path.write_bytes(b"not a database at all" * 100)
    state = StateService(tape, path)
    with pytest.raises(StateUnusable):
        asyncio.run(state.start())
    assert "trouble" in state.status()
    assert path.read_bytes() == b"not a database at all" * 100
    tape.append(Tick("A", 1, 1.0))
    with pytest.raises(StateUnusable, match="not a state file"):
        StateService(tape, tape.path).positions()


class Away:
    def latest(self, symbol=None):
        raise onetape.TapeUnusable("gone")


def test_with_the_tape_away_positions_go_on_and_prices_are_said_to_be_unknown(tmp_path):
    state = StateService(Away(), tmp_path / "s")
    assert isinstance(state, Service)
    asyncio.run(state.start())
    state.fill("1", "A", 1, 100)
    told = state.snapshot()
    assert told["positions"][0]["stale"] is True and told["positions"][0]["unrealized_pnl"] is None
    assert told["profit_loss"]["unrealized"] is None
    state.close()


def test_a_fill_of_another_process_between_two_looks_is_not_counted_twice(state, tape, tmp_path, monkeypatch):
    tape.append(Tick("ES", NOW, 90.0))
    state.fill("in", "ES", 1, 100)
    other = StateService(tape, tmp_path / "t.db.state", clock=lambda: NOW)
    read = state_file.StateFile.made

    def made(self, start_ns, end_ns):
        other.fill("out", "ES", -1, 90)  # positions were read already
        return read(self, start_ns, end_ns)

    monkeypatch.setattr(state_file.StateFile, "made", made)
    state.set_risk(max_daily_loss=15)
    assert state.profit_loss().day == -10
    assert state.breaches() == [] and state.check("NQ", 0) != []  # only that trading is disabled
    assert [one.limit for one in state.check("NQ", 1)] == ["trading_enabled"]
    other.close()


def test_many_processes_may_open_a_new_file_at_once(tmp_path):
    code = (
        "import sys\nfrom onetape.services.state.file import StateFile\n"
        "for line in sys.stdin:\n    StateFile(line.strip()).close()\n    print(flush=True)"
    )
    made = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        for number in range(25):
            for one in made:
                print(tmp_path / f"{number}.state", file=one.stdin, flush=True)
            assert [one.stdout.readline() for one in made] == ["\n"] * 4
    finally:
        for one in made:
            one.communicate(timeout=60)


def test_old_events_go_and_whoever_was_so_far_behind_is_told_how_many(state, monkeypatch):
    monkeypatch.setattr(state_file, "EVENTS_MAX", 20)
    monkeypatch.setattr(state_file, "_TRIM_EVERY", 10)
    for number in range(95):
        state.set_system(beat=number)
    kept = state._file.events(0)
    assert 20 <= len(kept) < 30 and kept[-1].content["beat"] == 94
    heard = []
    subscriber = state.subscribe(heard.append)
    state._told = 0  # as after a long sleep of the machine
    state.set_system(beat=95)
    until(lambda: heard and heard[-1].content["beat"] == 95)
    assert subscriber.dropped + len(heard) == 96


def test_money_is_exact_whatever_precision_the_caller_reckons_in(state, tape):
    tape.append(Tick("A", NOW, 1234.56))
    state.set_system(trading_enabled=True)
    state.set_risk(max_exposure="123456", max_position="100.004")
    with localcontext() as context:
        context.prec = 3
        assert state.check("A", 100) == []
        assert [one.limit for one in state.check("A", "100.001")] == ["max_exposure"]
        state.fill("1", "A", 100, "1234.56")
        assert state.breaches() == []
        assert [one.limit for one in state.check("A", "0.0041")] == ["max_position", "max_exposure"]


def test_a_day_that_begins_in_the_hour_that_comes_twice_has_begun_in_both(tape, tmp_path):
    now = 1_792_890_900 * S  # 2026-10-25 01:15 UTC: 02:15 in Berlin, for the second time
    with_day = StateService(tape, tmp_path / "s", day_starts="02:30 Europe/Berlin", clock=lambda: now)
    with_day.fill("in", "A", 1, 100)
    with_day.fill("out", "A", -1, 70)
    assert with_day.profit_loss().realized_today == -30
    with_day.close()


def test_a_price_of_the_future_is_no_fresh_price(state, tape):
    tape.append([Tick("A", NOW + 3600 * S, 500.0), Tick("B", NOW + 3600 * S, 500.0), Tick("B", NOW - S, 101.0)])
    for symbol in "AB":
        state.fill(symbol, symbol, 1, 100)
    valued = state.valued()
    assert valued["A"].stale and valued["A"].unrealized == 400
    assert not valued["B"].stale and valued["B"].unrealized == 1
    state.set_risk(max_exposure=10_000)
    assert [one.message for one in state.breaches()] == ["no fresh price of A"]


def test_what_waits_for_a_slow_subscriber_is_told_before_the_end(state):
    heard = []
    state.subscribe(lambda event: (time.sleep(0.05), heard.append(event)))
    for number in range(6):
        state.set_system(beat=number)
    state.close()
    assert [event.content["beat"] for event in heard] == [0, 1, 2, 3, 4, 5]


def test_two_that_close_a_position_at_once_close_it_once(state, tape, tmp_path):
    state.fill("in", "A", 3, 100)
    services = [StateService(tape, tmp_path / "t.db.state", clock=lambda: NOW) for _ in range(4)]
    ready, found = threading.Barrier(4), []

    def flatten(number):
        ready.wait()
        found.append(services[number].flatten(f"out-{number}", "A", 101)[2])

    threads = [threading.Thread(target=flatten, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False, False, False, True]
    assert (state.position("A").quantity, state.position("A").realized) == (0, 3)
    state.fill("again", "A", 5, 100)
    (closing,) = [fill.fill_id for fill in state.fills() if fill.fill_id.startswith("out")]
    assert state.flatten(closing, "A", 101)[2] is False, "told again: it is the one of before"
    assert state.position("A").quantity == 5
    with pytest.raises(FillConflict):
        state.flatten(closing, "A", 102)
    for service in services:
        service.close()


def test_a_damaged_row_is_named_and_no_error_of_another_kind(state):
    state.fill("1", "A", 1, 100)
    state._file._ask("UPDATE position SET content = '{'")
    with pytest.raises(StateUnusable, match="damaged"):
        state.positions()


def test_a_forked_process_has_the_file_for_itself_and_no_subscribers(state):
    heard = []
    state.subscribe(heard.append)
    state.fill("parent", "A", 1, 100)
    child = os.fork()
    if not child:
        code = 1
        try:
            state.fill("child", "A", 1, 100)
            code = 0 if state.position("A").quantity == 2 and not state.status()["subscribers"] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    state.fill("again", "A", 1, 100)
    assert state.position("A").quantity == 3
    until(lambda: [event.content["fill"]["fill_id"] for event in heard] == ["parent", "child", "again"])


def test_a_file_that_is_moved_away_takes_no_change_and_goes_on_once_it_is_back(state, tmp_path):
    state.fill("1", "A", 1, 100)
    path = tmp_path / "t.db.state"
    path.rename(tmp_path / "away")
    with pytest.raises(StateUnusable, match="removed or replaced"):
        state.fill("2", "A", 1, 100)
    path.write_bytes(b"")
    with pytest.raises(StateUnusable, match="removed or replaced"):
        state.set_system(trading_enabled=True)
    (tmp_path / "away").rename(path)
    assert state.fill("2", "A", 1, 100)[0].quantity == 2


def test_a_full_disk_takes_nothing_of_a_fill_and_then_goes_on(tmp_path):
    code = """
import resource, signal, sys
from onetape import StateUnusable
from onetape.services.state import StateService
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = StateService(None, sys.argv[1])
for number in range(20):
    state.fill(str(number), "A", 1, 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
taken, refused = 20, 0
while refused < 3:
    try:
        state.fill(str(taken), "A", 1, 100)
        taken += 1
    except StateUnusable as error:
        assert "nothing of this change is stored" in str(error)
        refused += 1
assert state.position("A").quantity == taken
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
state.fill(str(taken), "A", 1, 100)
print(taken + 1, state.position("A").quantity, len(state.fills(10_000)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    count, held, fills = (int(part) for part in done.stdout.split())
    assert count == held == fills > 20
    again = StateService(None, tmp_path / "s")
    assert again.position("A").quantity == count
    again.close()


def test_a_quote_with_a_side_of_zero_is_no_price_in_the_middle_of_nowhere(state, tape):
    tape.append([Tick("A", NOW - 90 * S, 5000.0), Tick("A", NOW, bid=0.0, ask=5001.0)])
    tape.append([Tick("B", NOW, bid=0.0, ask=0.0), Tick("C", NOW, bid=-0.25, ask=0.25)])
    for symbol in "ABC":
        state.fill(symbol, symbol, 1, 0)
    valued = state.valued()
    assert valued["A"].unrealized == 5000 and valued["A"].stale
    assert valued["B"].unrealized == valued["C"].unrealized == 0 and not valued["C"].stale


@pytest.mark.parametrize("bad", ["", "\ud800", "x" * 256, None, 5])
def test_a_name_that_cannot_be_kept_is_refused(state, bad):
    for fill_id, symbol in ((bad, "A"), ("1", bad)):
        with pytest.raises(ConfigInvalid):
            state.fill(fill_id, symbol, 1, 1)
    assert state.positions(flat=True) == {}
