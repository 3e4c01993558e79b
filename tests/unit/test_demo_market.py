"""The demo's market: real ticks as recorded, simulated ones from a seed, never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from onetape.clock import to_ns
from onetape.demo import market, samples, simulator
from onetape.errors import ConfigInvalid
from onetape.record import BUY, SELL, Tick


def test_the_same_seed_gives_the_same_ticks_and_another_seed_others() -> None:
    first = simulator.ticks("NSE:TCS", 500, 7)
    assert simulator.ticks("NSE:TCS", 500, 7) == first
    assert simulator.ticks("NSE:TCS", 500, 8) != first
    assert simulator.ticks("NSE:INFY", 500, 7) != first


def test_the_simulator_is_the_same_on_every_machine() -> None:
    tick = simulator.ticks("NFO:NIFTY25NOVFUT", 3, 1)[0]
    assert tick.ts_event_ns >= simulator.SESSION_OPEN_NS
    assert simulator.ticks("NFO:NIFTY25NOVFUT", 3, 1)[0] == tick
    assert (tick.bid, tick.ask, tick.bid_size, tick.ask_size) == (14393.15, 14393.2, 23325.0, 15750.0)


def test_simulated_ticks_are_valid_ascending_and_within_one_session() -> None:
    ticks = simulator.ticks("INFY", 2_000, 3)
    times = [tick.ts_event_ns for tick in ticks]
    assert times == sorted(times)
    assert times[-1] < simulator.SESSION_OPEN_NS + 22_500 * 10**9
    assert all(tick.bid is not None and tick.ask is not None and 0 < tick.bid < tick.ask for tick in ticks)
    assert {tick.side for tick in ticks if tick.price is not None} == {BUY, SELL}


def test_a_market_without_samples_is_simulated_as_a_whole_and_exact_in_number() -> None:
    found = market.gather(5_003, 50, 1, None)
    assert len({one.symbol for one in found}) == 50
    assert sum(len(one.ticks) for one in found) == 5_003
    assert not any(one.real for one in found)
    assert sum(one.symbol.count(":") > 0 for one in found) >= 10


@pytest.mark.parametrize(("ticks", "symbols"), [(10_000, 49), (100, 50), (10_000, 100_000), (10**9, 50)])
def test_a_market_too_small_or_too_large_for_the_story_is_refused(ticks: int, symbols: int) -> None:
    with pytest.raises(ConfigInvalid):
        market.gather(ticks, symbols, 1, None)


def test_a_folder_without_samples_gives_a_simulated_market(tmp_path: Path) -> None:
    assert not any(one.real for one in market.gather(4_000, 50, 1, tmp_path))


def test_real_and_simulated_instruments_are_told_apart_and_fill_the_number(sample_data: Path) -> None:
    found = market.gather(30_000, 56, 1, sample_data)
    assert len(found) == 56
    assert sum(len(one.ticks) for one in found) == 30_000
    real = [one for one in found if one.real]
    assert len(real) >= 20
    assert len(found) - len(real) >= market.SIMULATED_MIN
    assert {one.symbol for one in real}.isdisjoint(simulator.symbols(simulator.SYMBOLS_MAX))
    assert sum(len(one.ticks) for one in real) > 20_000


def test_real_ticks_are_those_of_their_files(sample_data: Path) -> None:
    by_symbol = {sample.symbol: sample.ticks for sample in samples.read(sample_data, 200_000)}
    ibm = next(tick for tick in by_symbol["IBM"] if tick.price is not None)
    assert ibm == Tick("IBM", to_ns("2013-10-07T04:00:30.270-04:00"), 181.52, 283.0)
    one_sided = by_symbol["IBM"][0]
    assert (one_sided.bid, one_sided.ask, one_sided.ask_size) == (None, 183.63, 100.0)
    gold = by_symbol["COMEX:GCZ13"]
    assert len(gold) == 39_702
    assert gold[0] == Tick("COMEX:GCZ13", to_ns("2013-10-07T00:00:00.276Z"), 1313.7, 1.0)
    # 0.4 and 0.0668 of a millisecond are in the file, and stay
    spot = by_symbol["OANDA:XAUUSD"]
    assert spot[0].ts_event_ns == to_ns("2014-05-04T22:00:00Z") + 579_427_000
    assert spot[1].ts_event_ns == to_ns("2014-05-04T22:00:00Z") + 613_066_800
    trade = next(tick for tick in by_symbol["BINANCE:BTCUSD_PERP"] if tick.price is not None)
    assert (trade.price, trade.size, trade.side) == (61804.8, 4.0, BUY)
    assert (trade.ts_event_ns, trade.ts_recv_ns) == (1723161257687_000_000, 1723161256419684465)
    assert len(by_symbol["DUKASCOPY:BTCUSD"]) == 8_523


def test_samples_are_read_up_to_the_limit(sample_data: Path) -> None:
    assert max(len(sample.ticks) for sample in samples.read(sample_data, 100)) == 100
