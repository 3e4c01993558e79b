"""The throttle, the governor and the market's hours: what they decide, from what they are told."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from onetape.errors import ConfigInvalid, MemoryShort
from onetape.migrate.throttling.governor import FORECAST_KEYS_MIN, Governor
from onetape.migrate.throttling.load import Load
from onetape.migrate.throttling.market_hours import MarketHours
from onetape.migrate.throttling.throttle import RATE_FIRST, RATE_MIN, Felt, Settings, Throttle, settings

MIB = 2**20


def _ns(text: str, zone: str = "Asia/Kolkata") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000_000


# The throttle


def test_without_settings_nothing_holds_it_back() -> None:
    throttle = Throttle(Settings())
    throttle.clock(0)
    throttle.feel(Felt())
    assert (throttle.rate, throttle.reason, throttle.batch_keys, throttle.still) == (None, None, None, None)


def test_it_goes_faster_while_the_latency_is_good_and_slower_when_it_is_not_and_says_so() -> None:
    throttle = Throttle(Settings(latency_ms=3.0))
    throttle.feel(Felt(p99_ms=0.5))
    throttle.feel(Felt(p99_ms=0.5))
    fast = throttle.rate
    assert fast == RATE_FIRST * 4 and throttle.reason is None
    throttle.feel(Felt(p99_ms=4.0))
    assert throttle.rate is not None and throttle.rate < fast
    assert throttle.reason == "latency: p99 4.00 ms, the target is 3.00"
    throttle.feel(Felt(p99_ms=9.0))
    slow = throttle.rate
    for _ in range(4):
        throttle.feel(Felt(p99_ms=0.5))
    assert slow < throttle.rate < fast
    assert str(throttle.reason).startswith("latency")  # why it is not as fast as it could be


def test_it_settles_near_what_the_server_can_bear_and_does_not_swing() -> None:
    throttle = Throttle(Settings(latency_ms=3.0))
    rates = []
    for _ in range(400):
        rate = throttle.rate or 0.0
        throttle.feel(Felt(p99_ms=0.5 + rate / 20_000))  # 3 ms at 50,000 keys/s
        rates.append(rate)
    late = rates[100:]
    assert 35_000 < sum(late) / len(late) < 52_000
    assert min(late) > 25_000


def test_one_look_in_ten_that_is_a_spike_of_somebody_else_does_not_stop_it() -> None:
    throttle = Throttle(Settings(latency_ms=3.0))
    rates = []
    for i in range(400):
        rate = throttle.rate or 0.0
        throttle.feel(Felt(p99_ms=20.0 if i % 10 == 9 else 0.5 + rate / 20_000))
        rates.append(rate)
    assert sum(rates[100:]) / 300 > 15_000


def test_it_never_stops_altogether_for_a_latency() -> None:
    throttle = Throttle(Settings(latency_ms=3.0))
    for _ in range(100):
        throttle.feel(Felt(p99_ms=50.0))
    assert throttle.rate == RATE_MIN


def test_a_target_in_multiples_of_what_is_quiet_is_measured_first() -> None:
    throttle = Throttle(Settings(latency_times=2.0))
    assert not throttle.quiet([0.2] * 100)
    assert throttle.quiet([0.2] * 400)
    assert throttle.target_ms == pytest.approx(0.4)
    throttle.change(Settings(latency_times=2.0, latency_ms=0.3))
    assert throttle.target_ms == 0.3


def test_a_rate_that_copying_does_not_reach_is_not_raised_further() -> None:
    throttle = Throttle(Settings(latency_ms=3.0))
    for _ in range(20):
        throttle.feel(Felt(p99_ms=0.5), used=False)
    assert throttle.rate == RATE_FIRST


@pytest.mark.parametrize(
    ("felt", "kind"),
    [
        (Felt(others_per_s=5000.0), "load"),
        (Felt(replica_lag_s=11.0), "replica"),
        (Felt(replica_lag_bytes=65 * MIB), "replica"),
        (Felt(aof_delays=1), "disk"),
    ],
)
def test_load_replicas_and_the_disk_slow_it_down_by_name(felt: Felt, kind: str) -> None:
    throttle = Throttle(Settings(others_per_s=1000.0))
    throttle.feel(Felt())
    before = throttle.rate
    throttle.feel(felt)
    assert throttle.rate is not None and (before is None or throttle.rate < before)
    assert str(throttle.reason).startswith(f"{kind}: ")


def test_a_limit_of_the_rate_is_a_reason() -> None:
    throttle = Throttle(Settings(keys_per_s=500.0))
    assert throttle.rate == 500.0 and throttle.reason == "rate: the limit of 500 keys/s"
    assert throttle.batch_keys == 10


def test_settings_that_are_wrong_are_named() -> None:
    for wrong, word in (
        ({"latency_ms": 0}, "latency_ms"),
        ({"latncy_ms": 1}, "latncy_ms"),
        ({"keys_per_s": "fast"}, "keys_per_s"),
        ({"market_hours": "sometimes"}, "sometimes"),
        ({"latency_times": 0.5}, "latency_times"),
    ):
        with pytest.raises(ConfigInvalid) as caught:
            settings(wrong)
        assert word in str(caught.value)
    assert settings({"latency_ms": 2}, Settings(keys_per_s=7.0)) == Settings(latency_ms=2.0, keys_per_s=7.0)


# The market's hours

HOURS = "09:15-15:30 Asia/Kolkata"


def test_a_market_is_open_in_its_hours_on_its_days() -> None:
    market = MarketHours(HOURS)
    assert not market.at(_ns("2026-11-20 09:14:59")).is_open
    assert market.at(_ns("2026-11-20 09:15:00")).is_open
    assert market.at(_ns("2026-11-20 15:29:59")).is_open
    assert not market.at(_ns("2026-11-20 15:30:00")).is_open
    assert not market.at(_ns("2026-11-21 12:00:00")).is_open  # a Saturday
    weekend = market.at(_ns("2026-11-21 12:00:00"))
    assert weekend.to_next_min == (45 + 15 / 60) * 60  # to Monday's opening


def test_a_market_over_midnight_is_open_at_midnight() -> None:
    market = MarketHours("17:00-16:00 America/Chicago")
    assert market.at(_ns("2026-11-18 00:00:00", "America/Chicago")).is_open
    assert not market.at(_ns("2026-11-18 16:30:00", "America/Chicago")).is_open


def test_a_calendar_by_name_knows_the_holidays() -> None:
    pytest.importorskip("exchange_calendars")
    market = MarketHours("XNYS")
    assert market.at(_ns("2025-11-26 12:00:00", "America/New_York")).is_open
    assert not market.at(_ns("2025-11-27 12:00:00", "America/New_York")).is_open  # Thanksgiving


def test_an_open_market_stands_it_still_or_slows_it_down_as_asked() -> None:
    throttle = Throttle(Settings(market_hours=HOURS))
    throttle.clock(_ns("2026-11-20 12:00:00"))
    assert throttle.still == throttle.reason == f"market: {HOURS} is open"
    throttle.clock(_ns("2026-11-20 18:00:00"))
    assert throttle.still is None and throttle.rate is None and throttle.reason is None
    throttle.change(Settings(market_hours=HOURS, market_keys_per_s=100.0))
    throttle.clock(_ns("2026-11-20 12:00:00"))
    assert throttle.still is None and throttle.rate == 100.0 and "is open" in str(throttle.reason)


def test_minutes_around_open_and_close_stand_it_still() -> None:
    throttle = Throttle(Settings(market_hours=HOURS, market_keys_per_s=100.0, market_around_min=10.0))
    for moment, word in (
        ("09:06", "will open in 9"),
        ("09:24", "opened 9"),
        ("15:21", "will close in 9"),
        ("15:39", "closed 9"),
    ):
        throttle.clock(_ns(f"2026-11-20 {moment}:00"))
        assert word in str(throttle.still), moment
    for moment in ("09:04", "09:26", "15:19", "15:41"):
        throttle.clock(_ns(f"2026-11-20 {moment}:00"))
        assert throttle.still is None, moment


# The governor


def _info(used: int, limit: int = 100 * MIB, policy: str = "noeviction", evicted: int = 0) -> dict[str, str]:
    return {
        "used_memory": str(used),
        "maxmemory": str(limit),
        "maxmemory_policy": policy,
        "evicted_keys": str(evicted),
        "total_system_memory": str(2**40),
    }


def test_it_stops_before_the_limit_and_says_what_to_do() -> None:
    governor = Governor()
    governor.look(_info(80 * MIB))
    with pytest.raises(MemoryShort) as caught:
        governor.look(_info(97 * MIB))
    assert "97.0 MiB of 100.0 MiB" in str(caught.value) and "raise maxmemory" in caught.value.hint


def test_it_stops_when_the_rest_will_not_fit() -> None:
    governor = Governor()
    governor.look(_info(10 * MIB), left=10**6)
    governor.sent(FORECAST_KEYS_MIN, 0)
    governor.look(_info(14 * MIB), left=300_000)  # 210 bytes a key: 60 MiB more, and there are 80
    assert governor.forecast_bytes is not None and 58 * MIB < governor.forecast_bytes < 62 * MIB
    with pytest.raises(MemoryShort) as caught:
        governor.look(_info(14 * MIB), left=900_000)
    assert "900,000 keys to go" in str(caught.value)


def test_big_keys_that_come_first_do_not_make_it_expect_more_than_there_is_to_copy() -> None:
    governor = Governor()
    governor.look(_info(20 * MIB), left=10**6, whole=20 * MIB)
    governor.sent(FORECAST_KEYS_MIN, 0)
    governor.look(_info(35 * MIB), left=980_000, whole=20 * MIB)  # 790 bytes a key so far
    assert governor.forecast_bytes == 10 * MIB
    with pytest.raises(MemoryShort):
        governor.look(_info(35 * MIB), left=980_000, whole=200 * MIB)


def test_live_writers_who_eat_the_room_stop_it_too() -> None:
    governor = Governor()
    governor.look(_info(10 * MIB))
    governor.sent(10, 1000)
    with pytest.raises(MemoryShort):
        governor.look(_info(98 * MIB))


def test_a_key_that_would_not_fit_is_not_begun() -> None:
    governor = Governor()
    governor.look(_info(10 * MIB))
    with pytest.raises(MemoryShort):
        governor.look(_info(10 * MIB), size=95 * MIB)


def test_an_eviction_or_a_policy_that_would_evict_live_keys_stops_it_at_once() -> None:
    governor = Governor()
    governor.look(_info(10 * MIB, policy="volatile-lru", evicted=5))
    with pytest.raises(MemoryShort, match="evicted 3 keys"):
        governor.look(_info(10 * MIB, policy="volatile-lru", evicted=8))
    with pytest.raises(MemoryShort, match="allkeys-lru"):
        Governor().look(_info(10 * MIB, policy="allkeys-lru"))


def test_the_less_room_there_is_the_more_often_it_looks() -> None:
    governor = Governor()
    governor.look(_info(10 * MIB))
    governor.sent(1000, 0)
    assert not governor.is_due
    governor.sent(10, 30 * MIB)
    assert governor.is_due
    governor.look(_info(96 * MIB))
    governor.sent(1000, 0)
    assert governor.is_due


def test_a_server_without_a_limit_is_held_against_its_machine() -> None:
    governor = Governor()
    told = {"used_memory": str(10 * MIB), "maxmemory": "0", "total_system_memory": str(100 * MIB)}
    governor.look({**told, "used_memory_rss": str(20 * MIB)})
    with pytest.raises(MemoryShort):
        governor.look({**told, "used_memory_rss": str(96 * MIB)})
    Governor().look({})  # a user who may not ask is not governed


def test_what_others_write_while_it_stands_still_is_not_taken_for_what_keys_need() -> None:
    governor = Governor()
    governor.look(_info(10 * MIB))
    governor.sent(FORECAST_KEYS_MIN, 0)
    governor.look(_info(14 * MIB), left=200_000)
    governor.look(_info(40 * MIB), left=200_000)  # nothing was sent since
    governor.sent(1, 0)
    governor.look(_info(40 * MIB), left=200_000)
    assert governor.forecast_bytes is not None and governor.forecast_bytes < 42 * MIB


# The load


def test_the_load_is_what_others_do() -> None:
    load = Load()
    load.seen({}, {"cmdstat_get": "calls=100,usec=1", "cmdstat_copy": "calls=5,usec=1"}, 10.0)
    later = {
        "cmdstat_get": "calls=1100,usec=1",
        "cmdstat_copy": "calls=90000,usec=1",
        "cmdstat_sadd": "calls=30,usec=9",
    }
    assert load.seen({}, later, 12.0, own=30).others_per_s == 500.0


def test_the_replica_that_is_furthest_behind_counts_and_one_that_is_being_filled_does_not() -> None:
    info = {
        "master_repl_offset": "5000",
        "slave0": "ip=10.0.0.1,port=6379,state=online,offset=4000,lag=1",
        "slave1": "ip=10.0.0.2,port=6379,state=online,offset=4900,lag=7",
        "slave2": "ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=90",
    }
    seen = Load().seen(info, None, 0.0)
    assert (seen.replica_lag_s, seen.replica_lag_bytes) == (7.0, 1000)
