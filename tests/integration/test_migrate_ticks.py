"""Ticks and bars of Redis keys are on the tape once, however often they are landed and whatever was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import onetape.tape
from onetape.embedded import EmbeddedServer
from onetape.errors import EndpointError
from onetape.migrate.landing.landing import LandResult
from onetape.migrate.landing.merge import TEMPORARY
from onetape.migrate.landing.ticks import Lander, cursor_name
from onetape.migrate.ledger.entry import Outcome
from onetape.migrate.plans.plan import Plan, Rule
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

PLAN = Plan.load()
MS = 1_731_472_800_000


def rule_of(db: int, key: bytes) -> Rule:
    match = PLAN.matcher(db).match(key)
    assert match is not None
    return match[1]


@pytest.fixture
def endpoint(server: EmbeddedServer) -> Iterator[Endpoint]:
    with Endpoint.connect(server.url) as endpoint:
        yield endpoint


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    with onetape.tape.open(tmp_path / "tape.db") as tape:
        yield tape


@pytest.fixture
def lander(endpoint: Endpoint, tape: Tape) -> Lander:
    return Lander(endpoint, 1, tape, PLAN.timezone)


def fill_stream(endpoint: Endpoint, key: str, count: int, start: int = MS) -> None:
    endpoint.select(0)
    for at in range(0, count, 5000):
        numbers = range(at, min(count, at + 5000))
        endpoint.pipeline([("XADD", key, f"{start + i // 2}-{i % 2}", "ltp", i, "ltq", 1) for i in numbers])


def land(lander: Lander, key: bytes, db: int = 0) -> LandResult:
    return lander.stream(key, db, rule_of(db, key))


def prices(tape: Tape, symbol: str) -> list[Any]:
    found: list[Any] = tape.read(symbol)["price"].to_pylist()
    return found


def test_a_stream_lands_once_in_the_order_of_its_ids(endpoint: Endpoint, tape: Tape, lander: Lander) -> None:
    fill_stream(endpoint, "ticks:NSE:INFY", 12_345)
    assert land(lander, b"ticks:NSE:INFY") == LandResult(b"ticks:NSE:INFY", 12_345, 0, Outcome.COPIED)
    assert land(lander, b"ticks:NSE:INFY") == LandResult(b"ticks:NSE:INFY", 0, 12_345, Outcome.UNCHANGED)
    assert prices(tape, "NSE:INFY") == list(range(12_345))
    assert tape.cursor("redis:ticks:NSE:INFY") == f"{MS + 6172}-0"
    endpoint.call("XADD", "ticks:NSE:INFY", f"{MS + 9000}-0", "ltp", 7)
    assert land(lander, b"ticks:NSE:INFY").ticks == 1
    assert prices(tape, "NSE:INFY")[-1] == 7


def test_entries_that_are_no_ticks_are_counted_named_and_quarantined(
    endpoint: Endpoint, tape: Tape, lander: Lander
) -> None:
    for fields in (["ltp", 1], ["note", "x"], ["ltp", "nan"], ["ltp", 2, "ltq", -3], ["ltp", 4]):
        endpoint.call("XADD", "ticks:X", "*", *fields)
    result = land(lander, b"ticks:X")
    assert (result.ticks, result.outcome) == (2, Outcome.COPIED)
    assert result.error is not None
    assert result.error.startswith("3 of 5 entries are no ticks")
    assert prices(tape, "X") == [1, 4]
    assert len(tape.quarantined()) == 2
    assert land(lander, b"ticks:X").ticks == 0
    assert len(tape.quarantined()) == 2


def test_a_stream_of_nothing_but_other_things_moves_its_cursor(endpoint: Endpoint, tape: Tape, lander: Lander) -> None:
    endpoint.call("XADD", "ticks:X", "5-1", "note", "x")
    assert land(lander, b"ticks:X").error is not None
    assert tape.cursor("redis:ticks:X") == "5-1"
    assert land(lander, b"ticks:X") == LandResult(b"ticks:X", 0, 1, Outcome.UNCHANGED)


def test_entries_with_a_symbol_of_their_own_land_under_it(endpoint: Endpoint, tape: Tape, lander: Lander) -> None:
    for symbol in ("NSE:A", "NSE:B", "NSE:A"):
        endpoint.call("XADD", "ticks:all", "*", "symbol", symbol, "ltp", 1)
    assert land(lander, b"ticks:all").ticks == 3
    assert (len(prices(tape, "NSE:A")), len(prices(tape, "NSE:B"))) == (2, 1)


def test_keys_that_cannot_land_are_told(endpoint: Endpoint, lander: Lander) -> None:
    endpoint.call("XADD", b"ticks:\xff", "*", "ltp", 1)
    endpoint.call("SET", "ticks:text", 1)
    result = land(lander, b"ticks:\xff")
    assert (result.outcome, result.ticks) == (Outcome.FAILED, 0)
    assert "UTF-8" in str(result.error)
    assert "string" in str(land(lander, b"ticks:text").error)
    assert land(lander, b"ticks:none").outcome == Outcome.EXPIRED


def test_a_stream_made_anew_is_told_and_not_mistaken_for_landed(endpoint: Endpoint, lander: Lander) -> None:
    fill_stream(endpoint, "ticks:X", 10)
    land(lander, b"ticks:X")
    endpoint.call("DEL", "ticks:X")
    endpoint.call("XADD", "ticks:X", "1-1", "ltp", 1)
    result = land(lander, b"ticks:X")
    assert result.outcome == Outcome.FAILED
    assert "made anew" in str(result.error)


def test_another_stream_of_the_same_name_is_told_and_not_passed_over(
    endpoint: Endpoint, tape: Tape, lander: Lander
) -> None:
    fill_stream(endpoint, "ticks:X", 10)
    land(lander, b"ticks:X")
    endpoint.call("DEL", "ticks:X")
    for ms in (MS - 5, MS + 100):  # one of them below the cursor, which lands nothing there
        endpoint.call("XADD", "ticks:X", f"{ms}-0", "ltp", 1)
    result = land(lander, b"ticks:X")
    assert (result.outcome, result.ticks) == (Outcome.FAILED, 0)
    assert "another stream" in str(result.error)


@pytest.mark.parametrize("taken", ["XDEL", "XTRIM", "all"])
def test_a_stream_whose_landed_entries_were_deleted_goes_on(endpoint: Endpoint, lander: Lander, taken: str) -> None:
    fill_stream(endpoint, "ticks:X", 10)
    land(lander, b"ticks:X")
    if taken == "XDEL":
        endpoint.call("XDEL", "ticks:X", f"{MS + 4}-1")
    endpoint.call("XADD", "ticks:X", f"{MS + 9}-0", "ltp", 7)
    if taken != "XDEL":
        endpoint.call("XTRIM", "ticks:X", "MAXLEN", 1)
    if taken == "all":
        endpoint.call("DEL", "ticks:X")
        endpoint.call("XADD", "ticks:X", f"{MS + 9}-0", "ltp", 7)
    assert (land(lander, b"ticks:X").ticks, land(lander, b"ticks:X").ticks) == (1, 0)


def test_merged_entries_that_are_no_ticks_are_counted_and_named(endpoint: Endpoint, lander: Lander) -> None:
    for at, fields in enumerate((["ltp", 1], ["note", "x"], ["ltp", "nan"])):
        endpoint.call("XADD", "ticks:X", f"{MS + at}-0", *fields, "onetape_id", f"{at:032x}")
    result = land(lander, b"ticks:X")
    assert (result.ticks, result.known) == (1, 0)
    assert str(result.error).startswith(f"2 of 3 entries are no ticks, first {MS + 1}-0: ")


def test_big_entries_are_read_a_few_at_a_time(
    endpoint: Endpoint, lander: Lander, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(60):
        endpoint.call("XADD", "ticks:X", f"{MS + i}-0", "ltp", i, "raw", b"x" * 1_000_000)
    read = lander._entries
    sizes: list[int] = []

    def noted(*args: Any) -> list[Any]:
        page = read(*args)
        sizes.append(len(page))
        return page

    monkeypatch.setattr(lander, "_entries", noted)
    assert land(lander, b"ticks:X").ticks == 60
    assert max(sizes) <= 8


def test_two_landers_of_one_stream_store_it_once(
    endpoint: Endpoint, tape: Tape, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_stream(endpoint, "ticks:X", 100)
    with Endpoint.connect(server.url) as other_endpoint:
        first, second = Lander(endpoint, 1, tape, "UTC"), Lander(other_endpoint, 1, tape, "UTC")
        append, raced = tape.append_table, []

        def racing(*args: Any, **options: Any) -> Any:
            if not raced:
                raced.append(True)
                assert land(second, b"ticks:X").ticks == 100
            return append(*args, **options)

        monkeypatch.setattr(tape, "append_table", racing)
        assert land(first, b"ticks:X").ticks == 0
    assert len(prices(tape, "X")) == 100


def hashes(lander: Lander, keys: list[bytes], db: int = 2) -> list[LandResult]:
    return lander.hash_ticks(keys, db, rule_of(db, keys[0]))


def test_hashes_merge_by_event_time_and_land_once(endpoint: Endpoint, tape: Tape, lander: Lander) -> None:
    endpoint.select(2)
    keys = [f"realtime:NSE:INFY:{MS + i}".encode() for i in (5, 1, 3, 2, 4)]
    for i, key in enumerate(keys):
        endpoint.call("HSET", key, "last_price", i, b"raw\xff", b"\x00")
        endpoint.call("EXPIRE", key, 1000)
    results = hashes(lander, keys)
    assert [(r.key, r.ticks, r.known, r.outcome) for r in results] == [(k, 1, 0, Outcome.COPIED) for k in keys]
    again = hashes(lander, keys)
    assert [(r.key, r.ticks, r.known, r.outcome) for r in again] == [(k, 0, 1, Outcome.UNCHANGED) for k in keys]
    assert prices(tape, "NSE:INFY") == [1, 3, 2, 4, 0]
    endpoint.select(1)
    stored = endpoint.call("XRANGE", "ticks:historical:NSE:INFY", "-", "+")
    assert [entry[0] for entry in stored] == [b"%d-0" % (MS + i) for i in range(1, 6)]
    assert stored[0][1][:4] == [b"last_price", b"1", b"raw\xff", b"\x00"]
    assert endpoint.call("PTTL", "ticks:historical:NSE:INFY") == -1


def test_equal_ticks_of_two_keys_are_two_and_a_changed_hash_is_a_new_one(
    endpoint: Endpoint, tape: Tape, lander: Lander
) -> None:
    for key in (b"tick:A", b"tick:B"):
        endpoint.call("HSET", key, "symbol", "X", "ltp", 1, "timestamp", MS)
    assert sum(r.ticks for r in hashes(lander, [b"tick:A", b"tick:B"], 0)) == 2
    endpoint.select(0)
    endpoint.call("HSET", "tick:A", "ltp", 2)
    assert [r.ticks for r in hashes(lander, [b"tick:A", b"tick:B"], 0)] == [1, 0]
    assert sorted(prices(tape, "X")) == [1, 1, 2]


def test_what_a_hash_key_can_hold_and_what_becomes_of_it(endpoint: Endpoint, tape: Tape, lander: Lander) -> None:
    endpoint.select(2)
    call = endpoint.call
    at = str(MS)
    call("HSET", f"realtime:NOPRICE:{at}", "volume", 3)
    call("HSET", f"realtime:NAN:{at}", "ltp", "nan")
    call("HSET", "realtime:NOTIME:soon", "ltp", 1)
    call("HSET", b"realtime:\xff:" + at.encode(), "ltp", 1)
    call("SET", f"realtime:TEXT:{at}", '{"ltp": 7}')
    call("RPUSH", f"realtime:LIST:{at}", 1)
    call("HSET", "realtime:CLOCK:2024-11-13T10:10:00", "ltp", 8)
    names = ["NOPRICE", "NAN", "TEXT", "LIST", "GONE"]
    keys = [f"realtime:{name}:{at}".encode() for name in names]
    keys += [b"realtime:NOTIME:soon", b"realtime:\xff:" + at.encode(), b"realtime:CLOCK:2024-11-13T10:10:00"]
    results = {result.key.split(b":")[1].decode("latin-1"): result for result in hashes(lander, keys)}
    assert {name: (r.outcome, r.ticks) for name, r in results.items()} == {
        "NOPRICE": (Outcome.COPIED, 0),
        "NAN": (Outcome.COPIED, 0),
        "TEXT": (Outcome.COPIED, 1),
        "LIST": (Outcome.FAILED, 0),
        "GONE": (Outcome.EXPIRED, 0),
        "NOTIME": (Outcome.FAILED, 0),
        "\xff": (Outcome.FAILED, 0),
        "CLOCK": (Outcome.COPIED, 1),
    }
    assert {name for name, r in results.items() if r.error} == {"NOPRICE", "NAN", "LIST", "NOTIME", "\xff"}
    assert [known.symbol for known in tape.symbols()] == ["CLOCK", "TEXT"]
    endpoint.select(1)
    streams = {key.rpartition(b":")[2] for key in endpoint.call("KEYS", "ticks:historical:*")}
    assert streams == {b"NOPRICE", b"NAN", b"TEXT", b"CLOCK", b"\xff"}
    assert [r.outcome for r in hashes(lander, keys[:2])] == [Outcome.UNCHANGED] * 2


def test_a_dry_run_says_what_would_land_on_a_connection_that_cannot_write(
    endpoint: Endpoint, tape: Tape, server: EmbeddedServer
) -> None:
    fill_stream(endpoint, "ticks:X", 10)
    endpoint.call("HSET", "tick:Y", "ltp", 1, "timestamp", MS)
    endpoint.call("SET", "ohlc:Z", f'{{"open":1,"high":1,"low":1,"close":1,"timestamp":{MS}}}')
    with Endpoint.connect(server.url, writable=False) as reader:
        lander = Lander(reader, 1, tape, "UTC", dry_run=True)
        assert land(lander, b"ticks:X").ticks == 10
        assert hashes(lander, [b"tick:Y"], 0)[0].ticks == 1
        assert lander.ohlc(b"ohlc:Z", 0, rule_of(2, b"ohlc:Z")).ticks == 1
    assert tape.symbols() == []
    endpoint.select(1)
    assert endpoint.call("DBSIZE") == 0


@pytest.mark.parametrize("kind", ["string", "hash", "list", "zset"])
def test_ohlc_keys_of_every_type_become_bars(endpoint: Endpoint, tape: Tape, lander: Lander, kind: str) -> None:
    text = f'{{"open":1,"high":3,"low":0.5,"close":2,"volume":9,"timestamp":{MS}}}'
    bad = '{"open":1}'
    endpoint.select(2)
    if kind == "string":
        endpoint.call("SET", "ohlc_latest:NSE:X", text)
    elif kind == "hash":
        fields = ("open", 1, "high", 3, "low", 0.5, "close", 2, "volume", 9, "timestamp", MS)
        endpoint.call("HSET", "ohlc_latest:NSE:X", *fields)
    elif kind == "list":
        endpoint.call("RPUSH", "ohlc_latest:NSE:X", text, bad)
    else:
        endpoint.call("ZADD", "ohlc_latest:NSE:X", MS, text, MS + 1, bad)
    rule = rule_of(2, b"ohlc_latest:NSE:X")
    result = lander.ohlc(b"ohlc_latest:NSE:X", 2, rule)
    assert (result.ticks, result.known, result.outcome) == (1, 0, Outcome.COPIED)
    assert (result.error is not None) == (kind in ("list", "zset"))
    again = lander.ohlc(b"ohlc_latest:NSE:X", 2, rule)
    assert (again.ticks, again.known, again.outcome) == (0, 1, Outcome.UNCHANGED)
    bars = tape.bars("NSE:X", "1d").to_pylist()
    assert [(b["open"], b["close"], b["volume"], b["source"]) for b in bars] == [(1, 2, 9, "redis:ohlc_latest")]


def test_an_ohlc_key_of_another_kind_is_told(endpoint: Endpoint, lander: Lander) -> None:
    endpoint.select(2)
    endpoint.call("SADD", "ohlc:X", 1)
    endpoint.call("SET", "ohlc:Y", "not json")
    assert lander.ohlc(b"ohlc:X", 2, rule_of(2, b"ohlc:X")).outcome == Outcome.FAILED
    result = lander.ohlc(b"ohlc:Y", 2, rule_of(2, b"ohlc:Y"))
    assert (result.outcome, result.ticks) == (Outcome.UNCHANGED, 0)
    assert "not JSON" in str(result.error)


def test_values_nested_too_deep_for_json_are_no_ticks_and_no_bars(endpoint: Endpoint, lander: Lander) -> None:
    deep = b'{"a":' * 100_000
    endpoint.call("XADD", "ticks:X", f"{MS}-0", "data", deep)
    assert "1 of 1 entries are no ticks" in str(land(lander, b"ticks:X").error)
    endpoint.select(2)
    endpoint.call("SET", f"realtime:X:{MS}", deep)
    endpoint.call("SET", "ohlc:X", deep)
    assert "no JSON" in str(hashes(lander, [b"realtime:X:%d" % MS])[0].error)
    assert "not JSON" in str(lander.ohlc(b"ohlc:X", 2, rule_of(2, b"ohlc:X")).error)


def test_bars_that_are_refused_are_not_told_to_be_there(endpoint: Endpoint, lander: Lander) -> None:
    endpoint.select(2)
    bar = f'"high":3,"low":1,"close":2,"timestamp":{MS}'
    endpoint.call("RPUSH", "ohlc:X", f'{{"open":1,{bar},"trades":1e30}}', f'{{"open":1,{bar},"trades":-1}}')
    result = lander.ohlc(b"ohlc:X", 2, rule_of(2, b"ohlc:X"))
    assert (result.ticks, result.known) == (0, 0)
    assert "2 of 2 values are no bars" in str(result.error)


def test_a_lost_connection_is_raised_for_the_caller_to_resume(endpoint: Endpoint, lander: Lander) -> None:
    endpoint.close()
    with pytest.raises(EndpointError):
        land(lander, b"ticks:X")


_VICTIM = """
import sys
import onetape.tape
from onetape.migrate.wire.endpoint import Endpoint
from onetape.migrate.plans.plan import Plan
from onetape.migrate.landing.ticks import Lander
plan, endpoint = Plan.load(), Endpoint.connect(sys.argv[1])
tape = onetape.tape.open(sys.argv[2])
lander = Lander(endpoint, 1, tape, plan.timezone)
print("go", flush=True)
lander.stream(b"ticks:X", 0, plan.matcher(0).match(b"ticks:X")[1])
endpoint.select(2)
keys = endpoint.call("KEYS", "*")
rule = plan.matcher(2).match(keys[0])[1]
for at in range(0, len(keys), 100):
    lander.hash_ticks(keys[at:at + 100], 2, rule)
"""


def test_kills_at_any_moment_store_nothing_twice(server: EmbeddedServer, tmp_path: Path) -> None:
    with Endpoint.connect(server.url) as endpoint:
        fill_stream(endpoint, "ticks:X", 60_000)
        endpoint.select(2)
        endpoint.pipeline([("HSET", f"realtime:Y:{MS + i}", "ltp", i) for i in range(2000)])
        for delay_s in (0.0, 0.05, 0.15, 0.3, 0.5, 0.8):
            victim = subprocess.Popen(
                [sys.executable, "-c", _VICTIM, server.url, str(tmp_path / "tape.db")],
                stdout=subprocess.PIPE,
                env=dict(os.environ),
            )
            assert victim.stdout is not None
            victim.stdout.readline()
            time.sleep(delay_s)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            victim.stdout.close()
        with onetape.tape.open(tmp_path / "tape.db") as tape:
            lander = Lander(endpoint, 1, tape, PLAN.timezone)
            land(lander, b"ticks:X")
            endpoint.select(2)
            hashes(lander, endpoint.call("KEYS", "*"))
            assert prices(tape, "X") == list(range(60_000))
            assert prices(tape, "Y") == list(range(2000))
        endpoint.select(1)
        entries = endpoint.call("XRANGE", "ticks:historical:Y", "-", "+")
        assert [entry[0] for entry in entries] == [b"%d-0" % (MS + i) for i in range(2000)]
        # A merge that was killed leaves at most its temporary stream, which expires by itself.
        left = [key for key in endpoint.call("KEYS", "*") if not key.startswith(TEMPORARY)]
        assert left == [b"ticks:historical:Y"]


def test_cursor_names_of_binary_keys_are_text() -> None:
    assert cursor_name(b"ticks:\xff") == "redis-hex:7469636b733aff"
