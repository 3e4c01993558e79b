"""What is lost, doubled or changed on the way is named by symbol, day and side; what old never had is no loss."""

from __future__ import annotations

import csv
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from tests import legacy_keys
from tests.waiting import waited_for

import onetape
from onetape.clock import now_ns, to_ns
from onetape.embedded import EmbeddedServer
from onetape.errors import EndpointError
from onetape.migrate import Migration, Plan
from onetape.migrate.fields.tick_fields import Decoded, TickDecoder
from onetape.migrate.proving.close_look import CloseLook
from onetape.migrate.proving.conservation import Balance, Conservation
from onetape.migrate.proving.conserve import conserve
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

PLAN = Plan.load()
MS = 1_763_700_300_000  # 2025-11-21, 10:15 in Kolkata
Clients = dict[int, redis.Redis]


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as tape:
        yield tape


def migrate(server: EmbeddedServer, tape: Tape | None, folder: Path, plan: Plan = PLAN) -> Migration:
    migration = Migration(server.url, plan=plan, ledger_path=folder / "ledger.db", tape=tape, checks=False)
    report = migration.backfill()
    assert report.exit_code == 0, report.errors
    return migration


def held(server: EmbeddedServer, tape: Tape | None, plan: Plan = PLAN, **how: Any) -> Conservation:
    with Endpoint.connect(server.url, writable=False) as endpoint:
        return conserve(endpoint, plan, tape, **how)


def told(found: Conservation) -> dict[tuple[str, str], tuple[Balance, tuple[str, ...]]]:
    return {(row.symbol, row.day): (row.balance, row.told) for row in found.rows if row.balance is not Balance.EQUAL}


def ticks(client: redis.Redis, key: str, count: int, start_ms: int = MS, step_ms: int = 1000) -> None:
    pipe = client.pipeline()
    for i in range(count):
        fields = {"last_price": 100 + i / 4, "last_traded_quantity": i % 7 + 0.1, "exchange_timestamp": start_ms}
        pipe.xadd(key, {**fields, "exchange_timestamp": start_ms + i * step_ms}, id=f"{start_ms + i * step_ms}-0")
    pipe.execute()


def hash_ticks(client: redis.Redis, symbol: str, count: int, start_ms: int = MS) -> None:
    for i in range(count):
        client.hset(f"realtime:{symbol}:{start_ms + i * 500}", mapping={"ltp": 50 + i / 4, "ltq": 3})


@pytest.fixture
def moved(server: EmbeddedServer, tape: Tape, tmp_path: Path) -> Clients:
    """A small system, migrated: a stream and hashes of NSE:A, a stream of NSE:B, bars."""
    client = legacy_keys.clients(server.port)
    ticks(client[0], "ticks:NSE:A", 200)
    ticks(client[2], "ticks:NSE:B", 50)
    hash_ticks(client[2], "NSE:A", 40)
    client[0].hset("tick:NSE:B", mapping={"last_price": 9, "last_traded_quantity": 1, "timestamp": MS + 500_000})
    bars = [[MS // 60_000 * 60_000 + i * 60_000, 1, 3, 0.5, 2, 10 + i] for i in range(5)]
    client[2].set("ohlc:NSE:C:1m", as_json(bars))
    client[2].hset(
        "ohlc_latest:NSE:C", mapping={"open": 1, "high": 2, "low": 1, "close": 2, "volume": 7, "timestamp": MS}
    )
    migrate(server, tape, tmp_path)
    return client


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_migrated_system_is_equal_on_all_sides_and_was_read_twice(
    server: EmbeddedServer, tape: Tape, tmp_path: Path
) -> None:
    client = legacy_keys.clients(server.port)
    legacy_keys.fill(client)
    migrate(server, tape, tmp_path)
    found = held(server, tape)
    assert (found.verdict, found.equal, found.conserved) == ("equal", True, True)
    assert {side: (one.ticks, one.bars) for side, one in found.totals.items()} == {
        "old": (400, 40),
        "new": (400, 40),
        "tape": (400, 40),
    }
    assert found.read_twice == 400
    assert [row.symbol for row in found.rows] == [f"NFO:H{i}" for i in range(5)] + [f"NFO:S{i}" for i in range(5)]
    row = found.rows[0]
    assert (row.day, row.old, row.new, row.tape) == ("2023-11-15", row.new, row.tape, row.old)
    assert (row.old.ticks, row.old.first_price, row.old.last_price) == (20, (50.0, 50.0), (54.75, 54.75))
    assert row.old.first_ms == 1_700_000_000_000
    # The bars of the test's system do not fit its ticks: a finding about the data, and no failure of the migration.
    assert {finding.kind for finding in found.findings} == {"ohlc"}
    assert found.ohlc_checked == 5


def test_volumes_are_exact_sums(server: EmbeddedServer, tape: Tape, tmp_path: Path) -> None:
    client = legacy_keys.clients(server.port)
    for i, size in enumerate(["0.1", "0.2", "1e16", "0.3", "1e308", "5e-324"]):
        client[0].xadd("ticks:NSE:A", {"ltp": 1, "ltq": size, "ts": MS + i}, id=f"{MS + i}-0")
    migrate(server, tape, tmp_path)
    found = held(server, tape)
    assert found.equal
    assert found.rows[0].old.volume == 1e308
    client[1].xtrim("ticks:NSE:A", maxlen=5, approximate=False)
    changed = held(server, tape)
    assert told(changed) == {
        ("NSE:A", "2025-11-21"): (
            Balance.LOST,
            ("new lacks 1 tick: 2025-11-21T04:45:00.000Z price 1 size 0.1",),
        )
    }
    assert len({row.new.check for row in (*found.rows, *changed.rows)}) == 2


def lose_one(client: Clients, tape: Tape) -> None:
    entries = client[1].xrange("ticks:NSE:A")
    client[1].xdel("ticks:NSE:A", entries[77][0])


def double_one(client: Clients, tape: Tape) -> None:
    last = client[1].xrevrange("ticks:NSE:A", count=1)[0]
    client[1].xadd("ticks:NSE:A", last[1], id=f"{last[0].decode().partition('-')[0]}-9")


def double_a_merged_one(client: Clients, tape: Tape) -> None:
    last = client[1].xrevrange("ticks:historical:NSE:A", count=1)[0]
    client[1].xadd("ticks:historical:NSE:A", last[1])


def change_a_size(client: Clients, tape: Tape) -> None:
    entries = client[1].xrange("ticks:NSE:A")
    client[1].delete("ticks:NSE:A")
    for at, (entry_id, fields) in enumerate(entries):
        changed = {**fields, b"last_traded_quantity": b"77"} if at == 5 else fields
        client[1].xadd("ticks:NSE:A", changed, id=entry_id)


def swap_two_prices(client: Clients, tape: Tape) -> None:
    entries = client[1].xrange("ticks:NSE:A")
    client[1].delete("ticks:NSE:A")
    prices = {4: entries[9][1][b"last_price"], 9: entries[4][1][b"last_price"]}
    for at, (entry_id, fields) in enumerate(entries):
        client[1].xadd("ticks:NSE:A", {**fields, b"last_price": prices.get(at, fields[b"last_price"])}, id=entry_id)


def drop_a_symbol(client: Clients, tape: Tape) -> None:
    client[1].delete("ticks:NSE:A", "ticks:historical:NSE:A")


def lose_half_an_hour(client: Clients, tape: Tape) -> None:
    client[1].xtrim("ticks:NSE:A", minid=f"{MS + 130_000}", approximate=False)
    client[1].delete("ticks:historical:NSE:A")


def take_one_off_the_tape(client: Clients, tape: Tape) -> None:
    tape.cancel(tape.recent("NSE:A", 3)[0])


def double_one_on_the_tape(client: Clients, tape: Tape) -> None:
    tape.append(tape.recent("NSE:A", 3)[0])


def write_to_old_only(client: Clients, tape: Tape) -> None:
    client[0].xadd("ticks:NSE:A", {"ltp": 1, "ltq": 2, "timestamp": MS + 900_000}, id=f"{MS + 900_000}-0")


def write_to_new_only(client: Clients, tape: Tape) -> None:
    client[1].xadd("ticks:NSE:A", {"ltp": 1, "ltq": 2, "timestamp": MS + 900_000}, id=f"{MS + 900_000}-0")


@pytest.mark.parametrize(
    ("damage", "balance", "words"),
    [
        (lose_one, Balance.LOST, ["new lacks 1 tick: 2025-11-21T04:46:17.000Z price 119.25 size 0.1"]),
        (double_one, Balance.DOUBLED, ["new holds too often 1 tick: 2025-11-21T04:48:19.000Z price 149.75 size 3.1"]),
        (change_a_size, Balance.LOST, ["new lacks 1 tick", "price 101.25 size 5.1", "neither old nor tape", "size 77"]),
        (swap_two_prices, Balance.LOST, ["new lacks 2 ticks", "new holds what neither old nor tape has, 2 ticks"]),
        (drop_a_symbol, Balance.LOST, ["new lacks 240 ticks", "new has nothing of 10:15 to 10:19"]),
        (lose_half_an_hour, Balance.LOST, ["new lacks 170 ticks", "new has nothing of 10:15 to 10:17"]),
        (take_one_off_the_tape, Balance.LOST, ["tape lacks 1 tick: 2025-11-21T04:48:17.000Z price 149.25 size 1.1"]),
        (
            double_one_on_the_tape,
            Balance.DOUBLED,
            ["tape holds too often 1 tick: 2025-11-21T04:48:17.000Z price 149.25"],
        ),
        (write_to_old_only, Balance.LOST, ["new lacks 1 tick: 2025-11-21T05:00:00.000Z", "tape lacks 1 tick"]),
        (write_to_new_only, Balance.EXTRA, ["new holds what neither old nor tape has, 1 tick: 2025-11-21T05:00:00"]),
    ],
)
def test_one_damage_is_named_by_symbol_day_side_and_value(
    server: EmbeddedServer,
    moved: Clients,
    tape: Tape,
    damage: Callable[[Clients, Tape], None],
    balance: Balance,
    words: list[str],
) -> None:
    assert held(server, tape).equal
    damage(moved, tape)
    found = held(server, tape)
    assert (found.verdict, found.equal, found.conserved) == ("not conserved", False, False)
    ((key, (seen, lines)),) = told(found).items()
    assert (key, seen) == (("NSE:A", "2025-11-21"), balance), lines
    for word in words:
        assert word in " | ".join(lines)


def test_a_merged_tick_that_is_there_twice_is_told_by_its_identity(
    server: EmbeddedServer, moved: Clients, tape: Tape
) -> None:
    double_a_merged_one(moved, tape)
    found = held(server, tape)
    assert (found.doubled, found.conserved) == (1, False)
    assert [f.told for f in found.findings if f.failure] == [
        "ticks:historical:NSE:A: 1 merged entries are in it more than once"
    ]


def test_without_a_close_look_the_sums_alone_tell_a_difference(
    server: EmbeddedServer, moved: Clients, tape: Tape
) -> None:
    swap_two_prices(moved, tape)
    found = held(server, tape, closely_ticks=0)
    assert told(found) == {
        ("NSE:A", "2025-11-21"): (
            Balance.DIFFERS,
            (
                "new has as many ticks as old, but not the same",
                "not looked at tick by tick: there is too much that differs",
            ),
        )
    }
    assert not found.conserved


def test_hashes_that_were_overwritten_or_expired_since_are_more_and_no_loss(
    server: EmbeddedServer, moved: Clients, tape: Tape, tmp_path: Path
) -> None:
    moved[0].hset("tick:NSE:B", mapping={"last_price": 10, "last_traded_quantity": 2, "timestamp": MS + 600_000})
    moved[2].delete(f"realtime:NSE:A:{MS}")
    migrate(server, tape, tmp_path)
    found = held(server, tape)
    assert (found.verdict, found.equal, found.conserved) == ("conserved", False, True)
    more = ("new holds 1 that old no longer has", "tape holds 1 that old no longer has")
    assert told(found) == {
        ("NSE:A", "2025-11-21"): (Balance.MORE, more),
        ("NSE:B", "2025-11-21"): (Balance.MORE, more),
    }
    moved[1].delete("ticks:historical:NSE:B")  # old has none of its first tick any more, but still the second
    assert told(held(server, tape))["NSE:B", "2025-11-21"][1][0].startswith("new lacks 1 tick: 2025-11-21T04:55")


def test_a_gap_that_old_has_too_is_one_of_the_data(server: EmbeddedServer, tape: Tape, tmp_path: Path) -> None:
    client = legacy_keys.clients(server.port)
    ticks(client[0], "ticks:NSE:A", 10)
    ticks(client[0], "ticks:NSE:A", 10, MS + 3_600_000)
    ticks(client[0], "ticks:NSE:A", 10, MS + 2 * 3_600_000)
    migrate(server, tape, tmp_path)
    found = held(server, tape)
    assert found.equal
    gaps = [(gap.kind, gap.symbol, gap.day, gap.side, gap.failure, gap.told) for gap in found.findings]
    words = "minutes without a tick in old and so on every side: a gap of the data"
    assert gaps == [
        ("gap", "NSE:A", "2025-11-21", "old", False, f"10:16 to 11:15 Asia/Kolkata, 59 {words}"),
        ("gap", "NSE:A", "2025-11-21", "old", False, f"11:16 to 12:15 Asia/Kolkata, 59 {words}"),
    ]
    for entry_id, _fields in client[1].xrange("ticks:NSE:A", MS + 3_600_000, MS + 3_700_000):
        client[1].xdel("ticks:NSE:A", entry_id)
    lost = held(server, tape)
    assert not lost.conserved
    assert "new has nothing of 11:15 to 11:16, Asia/Kolkata" in lost.rows[0].told
    assert sum(finding.kind == "gap" for finding in lost.findings) == 2
    assert sum(finding.kind == "gap" for finding in held(server, tape, gap_minutes=60).findings) == 0
    assert held(server, tape, listed_max=1).unlisted == {"gap": 1}


@pytest.mark.parametrize(
    ("damage", "balance", "words"),
    [
        (lambda c: c[1].delete("ohlc:NSE:C:1m"), Balance.LOST, "new lacks 5 of 5 bars as old has them"),
        (lambda c: c[1].hset("ohlc_latest:NSE:C", "volume", 8), Balance.LOST, "new lacks 1 of 1 bars as old has them"),
        (lambda c: c[2].hset("ohlc_latest:NSE:C", "volume", 8), Balance.LOST, "tape lacks 1 of 1 bars as old has them"),
        (lambda c: c[2].delete("ohlc:NSE:C:1m"), Balance.MORE, "tape has 5 bars that old no longer has"),
    ],
)
def test_bars_that_differ_are_named(
    server: EmbeddedServer,
    moved: Clients,
    tape: Tape,
    damage: Callable[[Clients], object],
    balance: Balance,
    words: str,
) -> None:
    before = held(server, tape)
    assert before.equal
    assert [(row.interval, row.old.bars, row.old.volume) for row in before.bars] == [("1d", 1, 7), ("1min", 5, 60)]
    damage(moved)
    found = held(server, tape)
    (row,) = [row for row in found.bars if row.balance is not Balance.EQUAL]
    assert (row.symbol, row.balance) == ("NSE:C", balance)
    assert words in row.told


def test_stored_bars_that_the_ticks_do_not_give_are_findings_about_the_data(
    server: EmbeddedServer, tape: Tape, tmp_path: Path
) -> None:
    client = legacy_keys.clients(server.port)
    ticks(client[0], "ticks:NSE:A", 100)
    good = {"open": 100, "high": 124.75, "low": 100, "close": 124.75, "volume": 0, "timestamp": MS}
    volume = sum(i % 7 + 0.1 for i in range(100))  # as a legacy system adds up, in some order, with rounding
    client[2].hset("ohlc_latest:NSE:A", mapping={**good, "volume": volume})
    client[2].hset("ohlc:NSE:A", mapping={**good, "high": 125, "volume": volume + 1})
    minute = {"open": 100, "high": 114.75, "low": 100, "close": 114.75, "time": MS, "volume": 300}
    client[2].set("ohlc:NSE:A:1m", as_json([minute, {**minute, "time": MS + 86_400_000}]))
    migrate(server, tape, tmp_path)
    found = held(server, tape)
    assert found.equal
    assert (found.ohlc_checked, found.ohlc_unchecked) == (3, 1)
    minute_told, day_told = [finding.told for finding in found.findings if finding.kind == "ohlc"]
    assert minute_told == ("ohlc:NSE:A:1m: 1min bar of 2025-11-21T04:45:00.000Z: volume 300 stored, 180 in the ticks")
    assert day_told.startswith("ohlc:NSE:A: 1d bar of 2025-11-21: high 125 stored, 124.75 in the ticks; volume ")


def test_entries_that_are_no_ticks_and_names_that_are_no_text_are_kept_apart(
    server: EmbeddedServer, tape: Tape, tmp_path: Path
) -> None:
    client = legacy_keys.clients(server.port)
    ticks(client[0], "ticks:NSE:A", 5)
    client[0].xadd("ticks:NSE:A", {"note": "\x00<script>"})
    client[0].xadd("ticks:NSE:A", {"ltp": "nan"})
    client[0].xadd(b"ticks:\xff\xfe", {"ltp": "1"})
    client[2].hset("realtime:NSE:A:1763700300", mapping={"heartbeat": 1})
    Migration(server.url, ledger_path=tmp_path / "l.db", tape=tape, checks=False).backfill()
    found = held(server, tape)
    assert found.equal, (told(found), found.findings)
    assert (found.totals["old"].ticks, found.totals["old"].others, found.totals["new"].others) == (5, 4, 4)
    client[1].xtrim("ticks:NSE:A", maxlen=0, approximate=False)
    assert [finding.told for finding in held(server, tape).findings if finding.failure] == [
        "entries that are no ticks or bars: 4 in old, 2 in new"
    ]


def test_a_hash_that_can_go_nowhere_is_a_failure(server: EmbeddedServer, tape: Tape, tmp_path: Path) -> None:
    client = legacy_keys.clients(server.port)
    client[0].hset("tick:NSE:A", mapping={"ltp": 1})  # no time
    Migration(server.url, ledger_path=tmp_path / "l.db", tape=tape, checks=False).backfill()
    found = held(server, tape)
    assert [(finding.kind, finding.failure) for finding in found.findings] == [("unread", True)]
    assert not found.conserved


def test_entries_count_under_their_own_symbol_and_under_its_name_on_the_tape(
    server: EmbeddedServer, tape: Tape, tmp_path: Path
) -> None:
    client = legacy_keys.clients(server.port)
    tape.alias("738561", "NSE:RELIANCE")
    for i in range(30):
        symbol = ("NSE:X", "NSE:Y", "738561")[i % 3]
        client[0].xadd("ticks:all", {"symbol": symbol, "ltp": i, "ltq": 1, "ts": MS + i}, id=f"{MS + i}-0")
    migrate(server, tape, tmp_path)
    found = held(server, tape)
    assert found.equal, told(found)
    assert [(row.symbol, row.old.ticks) for row in found.rows] == [
        ("NSE:RELIANCE", 10),
        ("NSE:X", 10),
        ("NSE:Y", 10),
    ]
    client[1].xdel("ticks:all", f"{MS + 2}-0")
    assert told(held(server, tape)) == {
        ("NSE:RELIANCE", "2025-11-21"): (
            Balance.LOST,
            ("new lacks 1 tick: 2025-11-21T04:45:00.002Z price 2 size 1",),
        )
    }


def test_what_else_is_on_the_tape_does_not_count(server: EmbeddedServer, moved: Clients, tape: Tape) -> None:
    tape.append(onetape.Tick("NSE:A", MS * 1_000_000, 1.0, 1.0, source="feed"))
    tape.append(onetape.Tick("NSE:Z", MS * 1_000_000, 1.0, 1.0))
    assert held(server, tape).equal


def test_streams_that_stay_where_they_are_count_once(server: EmbeddedServer, tape: Tape, tmp_path: Path) -> None:
    text = """
name = "in_place"
target_db = 0
[[rule]]
step = "ticks"
source_db = 0
pattern = "ticks:historical:{symbol}"
kind = "ticks"
[[rule]]
step = "ticks"
source_db = 2
pattern = "realtime:{symbol}:{timestamp}"
target = "ticks:historical:{symbol}"
kind = "hash_ticks"
[[rule]]
step = "ticks"
source_db = 2
pattern = "feed:{symbol}"
target = "stream:{symbol}"
kind = "ticks"
"""
    plan = Plan.parse(text)
    client = legacy_keys.clients(server.port)
    ticks(client[0], "ticks:historical:NSE:A", 30)
    hash_ticks(client[2], "NSE:A", 20)
    ticks(client[2], "feed:NSE:B", 10)
    migrate(server, tape, tmp_path, plan)
    found = held(server, tape, plan)
    assert found.equal, told(found)
    assert [(row.symbol, row.old.ticks, row.new.ticks) for row in found.rows] == [("NSE:A", 50, 50), ("NSE:B", 10, 10)]
    client[0].delete("stream:NSE:B")
    assert list(told(held(server, tape, plan))) == [("NSE:B", "2025-11-21")]


def test_a_time_in_a_key_with_colons_finds_its_symbol_again(server: EmbeddedServer, tape: Tape, tmp_path: Path) -> None:
    client = legacy_keys.clients(server.port)
    for second in range(5):
        client[2].hset(f"realtime:NSE:A:2025-11-21T10:15:0{second}.000123", mapping={"ltp": 1 + second, "ltq": 1})
    migrate(server, tape, tmp_path)
    found = held(server, tape)
    assert found.equal, told(found)  # their times are finer on the tape than the ids of the merged entries tell
    client[1].xtrim("ticks:historical:NSE:A", maxlen=4, approximate=False)
    assert told(held(server, tape))["NSE:A", "2025-11-21"][1][0].startswith("new lacks 1 tick")


def test_writers_at_work_do_not_look_like_a_loss(server: EmbeddedServer, moved: Clients, tape: Tape) -> None:
    now = now_ns()
    moved[0].xadd("ticks:NSE:A", {"ltp": 1, "ltq": 1, "ts": now + 10**9})
    assert not held(server, tape).conserved
    found = held(server, tape, until_ns=now)
    assert (found.equal, found.until_ms) == (True, now // 1_000_000)
    assert found.rows[0].old.ticks == 240


def test_without_a_tape_there_are_two_sides(server: EmbeddedServer, tmp_path: Path) -> None:
    client = legacy_keys.clients(server.port)
    legacy_keys.fill(client, 5)
    migrate(server, None, tmp_path)
    found = held(server, None)
    assert found.equal
    assert set(found.totals) == {"old", "new"}
    assert found.rows[0].tape is None
    client[1].delete("ticks:NFO:S0")
    assert [row.balance for row in held(server, None).rows if row.symbol == "NFO:S0"] == [Balance.LOST]


def test_the_target_may_be_on_another_server(server: EmbeddedServer, moved: Clients, tape: Tape) -> None:
    with EmbeddedServer() as other:
        there = redis.Redis(port=other.port, db=1)
        for key in moved[1].scan_iter():
            for entry_id, fields in moved[1].xrange(key) if moved[1].type(key) == b"stream" else ():
                there.xadd(key, fields, id=entry_id)
            if moved[1].type(key) == b"string":
                there.set(key, moved[1].get(key))
            if moved[1].type(key) == b"hash":
                there.hset(key, mapping=moved[1].hgetall(key))
        moved[1].flushdb()
        with Endpoint.connect(other.url, writable=False) as target:
            assert held(server, tape, target=target).equal
            there.delete("ticks:NSE:B")
            assert [row.symbol for row in held(server, tape, target=target).rows if row.told] == ["NSE:B"]


def test_what_retention_removed_from_the_tape_is_not_lost(server: EmbeddedServer, tmp_path: Path) -> None:
    client = legacy_keys.clients(server.port)
    ticks(client[0], "ticks:NSE:A", 50, MS)
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        migration = migrate(server, tape, tmp_path)
        assert tape.prune(now=now_ns() + 60 * 86_400 * 10**9, retention_days=30) == 50
        ticks(client[0], "ticks:NSE:A", 50, MS + 10 * 86_400_000)
        migration.backfill()
        found = held(server, tape)
        assert (found.verdict, [row.balance for row in found.rows]) == ("conserved", [Balance.MORE, Balance.EQUAL])
        assert found.rows[0].told == ("retention has removed 50 from the tape",)
        client[1].xtrim("ticks:NSE:A", maxlen=99, approximate=False)
        assert held(server, tape).rows[0].balance is Balance.LOST


def test_an_error_of_the_decoder_is_seen_by_the_second_reading(
    server: EmbeddedServer, moved: Clients, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = TickDecoder.decode

    def broken(self: TickDecoder, *args: Any) -> Decoded:
        found = sound(self, *args)
        if found.columns.get("size"):
            found.columns["size"][0] = 1234.0
        return found

    monkeypatch.setattr(TickDecoder, "decode", broken)
    findings = [finding for finding in held(server, None).findings if finding.kind == "reading"]
    assert findings
    assert all(finding.failure and "two readings of the same entries give sums of size" in finding.told
               for finding in findings)  # fmt: skip


def test_only_what_differs_is_read_again(
    server: EmbeddedServer, moved: Clients, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved[1].delete("ticks:NSE:B")
    seen: set[str] = set()
    add = CloseLook.add

    def watched(self: CloseLook, symbols: Any, columns: Any) -> None:
        seen.update(symbols)
        add(self, symbols, columns)

    monkeypatch.setattr(CloseLook, "add", watched)
    assert not held(server, tape).conserved
    assert seen == {"NSE:B"}


def test_a_real_day_of_trades_is_conserved(
    server: EmbeddedServer, tape: Tape, tmp_path: Path, sample_data: Path
) -> None:
    client = legacy_keys.clients(server.port)
    midnight = to_ns(datetime(2013, 10, 7, tzinfo=ZoneInfo("America/New_York")))
    with zipfile.ZipFile(sample_data / "lean/equity/usa/tick/ibm/20131007_trade.zip") as archive:
        rows = list(csv.reader(io.TextIOWrapper(archive.open(archive.namelist()[0]), "utf-8")))
    pipe = client[0].pipeline()
    for at, row in enumerate(rows):
        ts = midnight + int(float(row[0]) * 10**6)
        fields = {"price": int(row[1]) / 10_000, "size": row[2], "ts": ts}
        if at % 50 == 0:
            client[2].hset(f"realtime:IBM:{ts // 1000}", mapping=fields)
        else:
            pipe.xadd("ticks:IBM", fields, id=f"{ts // 1_000_000}-*")
    pipe.execute()
    hashes = sum(1 for _ in client[2].scan_iter("realtime:*"))  # two of one microsecond are one key
    written = len(rows) - len(rows[::50]) + hashes
    migrate(server, tape, tmp_path)
    found = held(server, tape)
    assert found.equal, told(found)
    assert {side: one.ticks for side, one in found.totals.items()} == dict.fromkeys(("old", "new", "tape"), written)
    assert found.read_twice == written
    streamed = sum(float(row[2]) for at, row in enumerate(rows) if at % 50)
    assert found.totals["old"].volume >= streamed > 0
    assert found.totals["old"].volume == found.totals["tape"].volume


def test_writers_that_write_both_sides_all_the_while_lose_nothing_in_it(server: EmbeddedServer) -> None:
    client = legacy_keys.clients(server.port)
    stop, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        pipe = client[0].pipeline(transaction=False)
        while not stop.is_set():
            written += 1
            ns = now_ns()
            told = ("ticks:NSE:A", f"{ns // 1_000_000}-{written}", "ltp", written, "ltq", 1, "ts", ns)
            for command in (("MULTI",), ("XADD", *told), ("SELECT", 1), ("XADD", *told), ("SELECT", 0), ("EXEC",)):
                pipe.execute_command(*command)
            pipe.execute()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(8):
            before, until = written, now_ns() - 200_000_000
            found = held(server, None, until_ns=until)
            assert found.equal, told(found)
            waited_for(lambda before=before: written > before)
    finally:
        stop.set()
        writer.join()
    assert held(server, None).totals["old"].ticks == written


@pytest.mark.parametrize("command", ["type", "xrange", "xinfo", "hgetall"])
def test_a_user_who_may_not_read_proves_nothing(server: EmbeddedServer, moved: Clients, command: str) -> None:
    moved[0].execute_command("ACL", "SETUSER", "reader", "on", ">p", "~*", "+@all", f"-{command}")
    url = server.url.replace("://", "://reader:p@")
    try:
        with Endpoint.connect(url, writable=False) as endpoint, pytest.raises(EndpointError, match="NOPERM"):
            conserve(endpoint, PLAN)
    finally:
        moved[0].execute_command("ACL", "DELUSER", "reader")


def test_two_servers_as_one_are_compared_as_one(server: EmbeddedServer, tape: Tape, tmp_path: Path) -> None:
    client = legacy_keys.clients(server.port)
    ticks(client[0], "ticks:NSE:A", 30)
    hash_ticks(client[2], "NSE:A", 10)
    with EmbeddedServer() as other:
        migration = Migration(
            server.url,
            target_url=other.url,
            ledger_path=tmp_path / "l.db",
            tape=tape,
            report_dir=tmp_path,
            checks=False,
        )
        assert migration.backfill().exit_code == 0
        with (
            Endpoint.connect(server.url, writable=False) as source,
            Endpoint.connect(other.url, writable=False) as target,
        ):
            found = conserve(source, PLAN, tape, target=target)
            assert (found.equal, found.totals["new"].ticks) == (True, 40)
            redis.Redis(port=other.port, db=1).xtrim("ticks:historical:NSE:A", maxlen=9, approximate=False)
            assert not conserve(source, PLAN, tape, target=target).conserved
