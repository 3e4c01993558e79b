"""Bars: of trades only, the same bytes live and from history, revised by late ticks."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onetape
from onetape import Bar, Tick
from onetape.record import MINUTE_NS
from onetape.store import bars, layout

T0 = 1_700_000_040_000_000_000 // MINUTE_NS * MINUTE_NS


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db") as opened:
        yield opened


def test_a_minute_of_trades(tape):
    tape.append(
        [
            Tick("A", T0, price=10.0, size=2.0, side=onetape.BUY),
            Tick("A", T0 + 5, price=12.0, size=1.0, side=onetape.SELL, volume=99999.0),
            Tick("A", T0 + 6, bid=5.0, ask=50.0),
            Tick("A", T0 + MINUTE_NS - 1, price=11.0, size=0.0),
            Tick("A", T0 + MINUTE_NS, price=20.0),
        ]
    )
    first, second = tape.bar_list("A")
    assert first == Bar("A", "1min", T0, 10.0, 12.0, 10.0, 11.0, 3.0, 32.0 / 3.0, 3, 1.0, 2.0, True, 0)
    assert second == Bar("A", "1min", T0 + MINUTE_NS, 20.0, 20.0, 20.0, 20.0, None, None, 1, None, None, False, 0)
    tape.seal()
    assert tape.bar_list("A") == [first, second]
    assert tape.bars("A").to_pylist()[0]["volume"] == 3.0


def test_quotes_alone_make_no_bar_and_session_volume_is_never_summed(tape):
    tape.append([Tick("A", T0 + i, bid=1.0, ask=2.0, volume=1000.0 + i) for i in range(5)])
    assert tape.bar_list("A") == []
    tape.append(Tick("A", T0 + 9, price=1.5, volume=2000.0))
    assert tape.bar_list("A")[0].volume is None


def test_a_late_tick_revises_its_bar_and_only_that(tape):
    tape.append([Tick("A", T0, price=10.0, size=1.0), Tick("A", T0 + MINUTE_NS, price=11.0, size=1.0)])
    tape.seal()
    tape.append(Tick("A", T0 - 0, price=9.0, size=4.0))
    for _ in range(2):
        first, second = tape.bar_list("A")
        assert (first.open, first.low, first.close, first.volume, first.trades) == (10.0, 9.0, 9.0, 5.0, 2)
        assert first.revision == 1
        assert second.revision == 0
        tape.seal()


def test_longer_bars_are_joined_minutes(tape):
    tape.append(
        [Tick("A", T0 // (5 * MINUTE_NS) * 5 * MINUTE_NS + i * MINUTE_NS, price=float(i), size=1.0) for i in range(10)]
    )
    five = tape.bar_list("A", "5min")
    assert [(bar.open, bar.close, bar.volume, bar.trades) for bar in five] == [(0.0, 4.0, 5.0, 5), (5.0, 9.0, 5.0, 5)]
    assert [bar.complete for bar in five] == [True, False]
    start = five[1].ts_start_ns
    assert tape.bar_list("A", "5min", start) == five[1:]
    assert tape.bar_list("A", "5min", start - 1) == five[1:]
    assert tape.bar_list("A", "5min", 0, start) == five[:1]
    assert tape.bar_list("A", "5min", 0, start + 1) == five
    assert len(tape.bar_list("A", "1d")) == 1


@pytest.mark.parametrize(
    "wrong",
    ["0min", "0tick", "-1min", "1.5min", "", "min", "5m", "1.5tick", "0.0range", "nanvolume", "9" * 40 + "s", 60],
)
def test_an_interval_that_means_nothing_is_refused(tape, wrong):
    with pytest.raises(onetape.ConfigInvalid, match="interval"):
        tape.bars("A", wrong)


def test_a_bar_longer_than_a_day_is_of_whole_days(tape):
    with pytest.raises(onetape.ConfigInvalid, match="whole number of days"):
        tape.bars("A", "36h")


def test_given_bars_are_kept_by_source_and_an_equal_one_is_no_revision(tape):
    bar = Bar("A", "1min", T0, 1.0, 2.0, 0.5, 1.5, volume=7.0, source="vendor")
    tape.append([bar])
    tape.append([bar])
    other = Bar("A", "1min", T0, 1.0, 3.0, 0.5, 1.5, volume=8.0, source="vendor")
    for seal in (False, True):
        if seal:
            tape.seal()
        (kept,) = tape.bar_list("A", source="vendor")
        assert (kept.high, kept.revision) == (2.0, 0)
    tape.append([other])
    for seal in (False, True):
        if seal:
            tape.seal()
        (kept,) = tape.bar_list("A", source="vendor")
        assert (kept.high, kept.volume, kept.revision) == (3.0, 8.0, 1)
    assert tape.bar_list("A") == [kept]
    tape.append(Tick("A", T0 + 1, price=9.0))
    assert tape.bar_list("A")[0].source is None
    assert tape.bar_list("A", source="nobody") == []


def test_a_given_bar_without_a_source_is_never_taken_for_the_tapes_own(tape):
    tape.append([Bar("A", "1min", T0, 1.0, 2.0, 0.5, 1.5), Tick("A", T0, price=4.0)])
    tape.seal()
    assert tape.bar_list("A")[0].open == 4.0
    assert tape.bar_list("A", source="given")[0].open == 1.0


@pytest.mark.parametrize(
    "wrong,field",
    [
        ({"high": 0.9}, "open"),
        ({"low": 1.2}, "open"),
        ({"close": 9.0}, "close"),
        ({"ts_start_ns": T0 + 1}, "ts_event_ns"),
        ({"interval": "5m"}, "interval"),
        ({"volume": -1.0}, "volume"),
        ({"open": float("nan")}, "open"),
        ({"high": None}, "high"),
    ],
)
def test_an_impossible_bar_is_refused(tape, wrong, field):
    fields = {"symbol": "A", "interval": "1min", "ts_start_ns": T0, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5}
    with pytest.raises(onetape.InvalidRecord) as caught:
        tape.append(Bar(**{**fields, **wrong}))
    assert caught.value.field == field
    assert tape.stats().head == 0


sizes = st.one_of(st.none(), st.floats(0, 1e6, allow_nan=False), st.sampled_from([0.1, 0.2, 0.3, 1e-8, 1e16]))
ticks = st.builds(
    Tick,
    symbol=st.sampled_from(["A", "B"]),
    ts_event_ns=st.integers(0, 6 * MINUTE_NS).map(lambda offset: T0 + offset // 7_000_000_000 * 7_000_000_000),
    price=st.one_of(st.none(), st.floats(-1e6, 1e6, allow_nan=False)),
    size=sizes,
    bid=st.just(1.0),
    side=st.sampled_from([-1, 0, 1]),
)


@settings(max_examples=60)
@given(st.lists(st.lists(ticks, min_size=1, max_size=8), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_live_bars_equal_bars_of_the_whole_history_byte_for_byte(tmp_path_factory, appends, chance: random.Random):
    path = tmp_path_factory.mktemp("bars") / "t.db"
    with onetape.open(path) as tape:
        for batch in appends:
            tape.append(batch)
            if chance.random() < 0.4:
                tape.seal()
        live = {symbol: tape.bar_list(symbol) for symbol in "AB"}
        tape.seal()
        assert {symbol: tape.bar_list(symbol) for symbol in "AB"} == live
        every = list(tape.follow(from_seq=0, idle_s=0))
    with onetape.open(path.with_name("again.db")) as history:
        history.append(every)
        history.seal()
        assert {symbol: history.bar_list(symbol) for symbol in "AB"} == live


def test_a_full_journal_seals_by_itself_and_bars_stay_right(tape):
    count = layout.SEAL_RECORDS + 100
    for i in range(count):
        tape.append(Tick(f"S{i % 3}", T0 + i * 10_000_000, price=float(i % 11), size=0.1))
    stats = tape.stats()
    assert stats.seal >= layout.SEAL_RECORDS
    assert stats.unsealed < layout.SEAL_RECORDS
    assert stats.ticks == count
    for symbol in ("S0", "S1", "S2"):
        total = 0.0
        minutes = tape.bar_list(symbol)
        assert sum(bar.trades for bar in minutes) == tape.read(symbol).num_rows
        for bar in minutes[:1]:
            rows = tape.read(symbol, bar.ts_start_ns, bar.ts_start_ns + MINUTE_NS, ["size"]).column("size").to_pylist()
            for size in rows:
                total += size
            assert bar.volume == total


def test_the_fold_is_sequential_addition():
    import numpy as np

    sizes = [0.1] * 1000 + [1e16, 1.0, -0.0, 3.3]
    columns = {
        "symbol": np.ones(len(sizes), dtype="<u4"),
        "ts_event_ns": np.arange(len(sizes)),
        "seq": np.arange(1, len(sizes) + 1),
        "price": np.ones(len(sizes)),
        "size": np.array(sizes),
    }
    total = 0.0
    for size in sizes:
        total += size
    (minute,) = bars.of_history(columns)
    assert minute.volume == total
