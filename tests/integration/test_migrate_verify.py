"""A verify reads everything again, in both directions, and says no more than it can prove."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import onetape.tape
from onetape.embedded import EmbeddedServer
from onetape.migrate.copying.compare import Comparer
from onetape.migrate.keys import content
from onetape.migrate.keys.dump import digest
from onetape.migrate.landing.ticks import Lander
from onetape.migrate.ledger.entry import Outcome, key_hash
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.plans.origin import Origins
from onetape.migrate.plans.plan import Plan, Rule
from onetape.migrate.verifying import pairs as pairs_module
from onetape.migrate.verifying.verdict import Verification
from onetape.migrate.verifying.verify import verify
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

PLAN = Plan.load()
MS = 1_731_472_800_000


@pytest.fixture
def endpoint(server: EmbeddedServer) -> Iterator[Endpoint]:
    with Endpoint.connect(server.url) as endpoint:
        yield endpoint


@pytest.fixture
def reader(server: EmbeddedServer) -> Iterator[Endpoint]:
    with Endpoint.connect(server.url, writable=False) as endpoint:
        yield endpoint


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    with onetape.tape.open(tmp_path / "tape.db") as tape:
        yield tape


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.bind(PLAN, address="here", run_id="1")
        ledger.begin_run("backfill")
        yield ledger


def fill(endpoint: Endpoint) -> None:
    """A small legacy system: every family, every type, expiries, colons, binary and empty values."""
    call = endpoint.call
    call("SELECT", 2)
    call("HSET", "volume_state:256265", "volume", 5, b"\xff", b"\x00")
    call("SET", "volume_averages:NSE:INFY", "", "PXAT", 4_000_000_000_123)
    call("RPUSH", "volume_profile:patterns:NSE:INFY:day", *range(300))
    call("SADD", "volume:baseline:NSE:INFY", *range(1000), "x")
    call("ZADD", b"volume:baseline:\xff", "-0.0", "a", 1.5, b"\xfe")
    call("SET", "ohlc_latest:NSE:INFY", f'{{"open":1,"high":3,"low":1,"close":2,"timestamp":{MS}}}')
    call("SET", "ohlc_stats:NSE:INFY", "7")
    call("HSET", f"realtime:NSE:INFY:{MS}", "ltp", 1)
    call("HSET", f"realtime:NSE:INFY:{MS + 5}", "ltp", 2)
    call("SELECT", 5)
    for name in ("rsi", "delta", "volume_ratio", "anything"):
        call("SET", f"indicators:NFO:NIFTY25NOVFUT:{name}", name)
    call("SELECT", 0)
    call("HSET", "session:1", "a", 1)
    call("SET", "health:x", "ok")
    call("SET", "not in the plan", 1)
    for i in range(3000):
        call("XADD", "ticks:NSE:INFY", f"{MS + i}-0", "ltp", i)
    call("XGROUP", "CREATE", "ticks:NSE:INFY", "g", "0")
    call("XREADGROUP", "GROUP", "g", "c", "COUNT", 10, "STREAMS", "ticks:NSE:INFY", ">")
    call("HSET", "tick:NSE:INFY", "ltp", 3, "timestamp", MS + 9)
    endpoint.select(0)


def record(
    ledger: Ledger,
    rule: int,
    db: int,
    key: bytes,
    target: bytes,
    content: bytes | None,
    expire_ms: int,
    outcome: Outcome,
) -> None:
    code = list(Outcome).index(outcome)
    ledger.record([(rule, db, key, target, content, content, expire_ms, code, None, key_hash(db, key))])


def move(endpoint: Endpoint, tape: Tape | None = None, ledger: Ledger | None = None) -> None:
    """Copy everything as a backfill would, and write it down."""
    lander, hashes = Lander(endpoint, 1, tape, PLAN.timezone), []
    for db in PLAN.source_dbs():
        endpoint.select(db)
        matcher = PLAN.matcher(db)
        for key in endpoint.call("KEYS", "*"):
            endpoint.select(db)
            kind = endpoint.call("TYPE", key).decode()
            match = matcher.match_type(key, kind)
            if match is None:
                continue
            index, rule, target = match
            if rule.kind == "hash_ticks":
                hashes.append((db, key, rule))
                continue
            endpoint.call("COPY", key, target, "DB", 1, "REPLACE")
            content = digest(endpoint.call("DUMP", key))
            expire_ms = endpoint.call("PEXPIRETIME", key)
            if ledger is not None:
                record(ledger, index, db, key, target, content, expire_ms, Outcome.COPIED)
            if rule.kind == "ticks":
                lander.stream(key, db, rule)
            elif rule.kind == "ohlc":
                lander.ohlc(key, db, rule)
    for db, key, rule in hashes:
        lander.hash_ticks([key], db, rule)
    endpoint.select(0)


def rule_of(db: int, key: bytes) -> Rule:
    match = PLAN.matcher(db).match(key)
    assert match is not None
    return match[1]


def quick(reader: Endpoint, **options: Any) -> Verification:
    return verify(reader, PLAN, options.pop("ledger", None), rounds=2, pause_s=0.01, **options)


def total(found: Verification, finding: str) -> int:
    return sum(counts.get(finding, 0) for counts in found.counts.values())


@pytest.mark.parametrize("in_server", [True, False])
def test_a_complete_copy_converges_on_a_connection_that_cannot_write(
    endpoint: Endpoint, reader: Endpoint, tape: Tape, in_server: bool
) -> None:
    fill(endpoint)
    move(endpoint, tape)
    found = quick(reader, tape=tape, in_server=in_server)
    assert (found.verdict, found.exit_code) == ("converged", 0), found
    assert (total(found, "equal"), total(found, "merged")) == (14, 3)
    assert (found.checked, found.unmatched, found.rounds) == (17, 1, 1)
    assert found.differences == found.skips == []
    assert found.as_dict()["exit_code"] == 0


def test_without_a_copy_nothing_is_proven(endpoint: Endpoint, reader: Endpoint) -> None:
    fill(endpoint)
    found = quick(reader)
    assert (found.verdict, found.exit_code) == ("not proven", 1)
    assert total(found, "missing") == 17
    assert all("missing" in line and "\n" not in line for line in found.differences)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("SET", "vol:state:256265", "x"), "type hash against string"),
        (("HSET", "vol:state:256265", "volume", "6"), "volume"),
        (("PERSIST", "vol:baseline:NSE:INFY"), "expiry"),
        (("PEXPIREAT", "vol:baseline:NSE:INFY", 4_000_000_000_124), "expiry"),
        (("LSET", "vol:profile:NSE:INFY:day", 299, "!"), "index 299"),
        (("SMOVE", "volume:baseline:NSE:INFY", "elsewhere", "7"), "length 1,001 against 1,000"),
        (("ZADD", b"volume:baseline:\xff", 1.5000000000000002, b"\xfe"), "xfe"),
        (("XACK", "ticks:NSE:INFY", "g", f"{MS}-0"), "group g"),
        (("XDEL", "ticks:NSE:INFY", f"{MS + 2999}-0"), "length"),
        (("XTRIM", "ticks:historical:NSE:INFY", "MAXLEN", 2), "not in the stream"),
        (("DEL", "ohlc_stats:NSE:INFY"), "missing in the target"),
    ],
)
def test_one_damaged_key_is_found_and_named(
    endpoint: Endpoint, reader: Endpoint, command: tuple[Any, ...], told: str
) -> None:
    fill(endpoint)
    move(endpoint)
    endpoint.select(1)
    endpoint.call(*command)
    found = quick(reader)
    assert found.verdict == "not proven"
    assert len(found.differences) == 1
    assert told in found.differences[0]
    assert found.rounds == 2


def test_equal_content_in_another_order_and_encoding_is_equal(endpoint: Endpoint, reader: Endpoint) -> None:
    endpoint.select(2)
    endpoint.call("SADD", "volume:baseline:X", *range(600), "x")
    endpoint.select(1)
    endpoint.call("SADD", "volume:baseline:X", "x", *reversed(range(600)))
    assert quick(reader).verdict == "converged"


def test_a_big_key_is_read_in_slices_and_not_dumped(endpoint: Endpoint, reader: Endpoint) -> None:
    endpoint.select(2)
    endpoint.call("SET", "volume:baseline:X", b"x" * 3_000_000)
    endpoint.call("COPY", "volume:baseline:X", "volume:baseline:X", "DB", 1)
    pair = [(b"volume:baseline:X", b"volume:baseline:X")]
    assert Comparer(reader).codes(2, 1, pair) == b"B"
    assert quick(reader).verdict == "converged"
    endpoint.select(1)
    endpoint.call("SETRANGE", "volume:baseline:X", 2_999_999, "!")
    assert quick(reader).verdict == "not proven"


def test_extra_keys_of_the_target_are_listed_and_those_of_others_are_not(endpoint: Endpoint, reader: Endpoint) -> None:
    fill(endpoint)
    move(endpoint)
    endpoint.select(1)
    endpoint.call("SET", "sys:session:nobody", 1)
    endpoint.call("SET", "ind:volume:X:ratio", 1)
    endpoint.call("SET", "ind:ta:X:no_such_indicator", 1)  # no rule could have written it
    endpoint.call("SET", "somebody else's", 1)
    endpoint.call("SET", "onetape:merging:x", 1)
    found = quick(reader)
    assert (found.verdict, found.exit_code) == ("converged with listed skips", 3)
    assert total(found, "extra") == 3
    assert any("killed" in line for line in found.skips)


def test_the_ledger_explains_what_it_can_and_nothing_else(
    endpoint: Endpoint, reader: Endpoint, tape: Tape, ledger: Ledger
) -> None:
    fill(endpoint)
    move(endpoint, tape, ledger)
    assert quick(reader, tape=tape, ledger=ledger).verdict == "converged"
    endpoint.call("HSET", "session:1", "a", 2)  # the source moved on
    endpoint.call("XADD", "ticks:NSE:INFY", "*", "ltp", 1)
    endpoint.call("DEL", "health:x")  # the source is no more
    endpoint.select(1)
    endpoint.call("SET", "ind:ta:NFO:NIFTY25NOVFUT:rsi", "newer")
    key, target = b"indicators:NFO:NIFTY25NOVFUT:rsi", b"ind:ta:NFO:NIFTY25NOVFUT:rsi"
    record(ledger, 3, 5, key, target, None, -1, Outcome.NEWER_TARGET_KEPT)
    found = quick(reader, tape=tape, ledger=ledger)
    assert (found.verdict, found.exit_code) == ("converged with listed skips", 3), found.differences
    assert [total(found, one) for one in ("stale", "source_gone", "newer_target_kept")] == [2, 1, 1]
    assert len(found.skips) == 4

    endpoint.call("SET", "ind:greeks:NFO:NIFTY25NOVFUT:delta", "who wrote this?")
    found = quick(reader, tape=tape, ledger=ledger)
    assert found.verdict == "not proven"
    assert len(found.differences) == 1


def test_a_hash_that_live_writers_go_on_writing_comes_later_and_a_new_one_too(
    endpoint: Endpoint, reader: Endpoint, tape: Tape, ledger: Ledger
) -> None:
    fill(endpoint)
    move(endpoint, tape, ledger)
    endpoint.call("HSET", "tick:NSE:INFY", "ltp", 4, "timestamp", MS + 99)
    endpoint.call("HSET", "tick:NEW", "ltp", 4, "timestamp", 2_000_000_000_000)
    found = quick(reader, tape=tape, ledger=ledger)
    assert (found.verdict, total(found, "later")) == ("converged with listed skips", 2), found.differences
    endpoint.select(0)
    endpoint.call("HSET", "tick:OLD", "ltp", 4, "timestamp", MS)
    found = quick(reader, tape=tape, ledger=ledger)
    assert (found.verdict, total(found, "missing")) == ("not proven", 1)


def test_ticks_and_bars_that_are_not_on_the_tape_are_found(endpoint: Endpoint, reader: Endpoint, tape: Tape) -> None:
    fill(endpoint)
    move(endpoint)
    found = quick(reader, tape=tape)
    assert found.verdict == "not proven"
    assert total(found, "not_on_tape") == 5  # a stream, an OHLC key, three hashes


def test_a_cursor_of_another_stream_proves_nothing(endpoint: Endpoint, reader: Endpoint, tape: Tape) -> None:
    for ms in (MS - 5, MS - 4):
        endpoint.call("XADD", "ticks:X", f"{ms}-0", "ltp", 1)
    tape.append_table({"symbol": [], "ts_event_ns": []}, cursor=("redis:ticks:X", None, f"{MS}-0"))
    endpoint.call("COPY", "ticks:X", "ticks:X", "DB", 1)
    found = quick(reader, tape=tape)
    assert total(found, "not_on_tape") == 1
    assert "another stream" in found.differences[0]


def test_what_no_tape_can_hold_is_listed(endpoint: Endpoint, reader: Endpoint, tape: Tape) -> None:
    fill(endpoint)
    endpoint.call("XADD", b"ticks:\xff", "*", "ltp", 1)
    endpoint.call("HSET", "tick:NAN", "ltp", "nan", "timestamp", MS)
    endpoint.select(2)
    endpoint.call("SET", "ohlc:X", "text")
    move(endpoint, tape)
    found = quick(reader, tape=tape)
    assert found.verdict == "converged with listed skips", found.differences
    assert total(found, "not_a_tick") == 3


def test_a_stream_that_hash_ticks_were_merged_into_still_equals_its_source(
    endpoint: Endpoint, reader: Endpoint, tape: Tape
) -> None:
    fill(endpoint)
    for i in range(5):
        endpoint.call("XADD", "ticks:historical:NSE:INFY", f"{MS + 2 * i}-0", "ltp", i)
    endpoint.call("XGROUP", "CREATE", "ticks:historical:NSE:INFY", "g", "0")
    endpoint.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 3, "STREAMS", "ticks:historical:NSE:INFY", ">")
    move(endpoint, tape)
    assert quick(reader, tape=tape).verdict == "converged"
    endpoint.select(1)
    endpoint.call("XDEL", "ticks:historical:NSE:INFY", f"{MS + 4}-0")
    assert quick(reader, tape=tape).verdict == "not proven"


def test_a_key_that_changes_its_type_while_it_is_read_does_not_end_the_verify(
    endpoint: Endpoint, reader: Endpoint, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(endpoint)
    move(endpoint)
    endpoint.select(0)
    endpoint.call("HSET", "session:1", "a", 2)  # else it is equal, and not looked at closely
    pages = content._pages
    with Endpoint.connect(server.url) as writer:

        def disturbed(endpoint: Endpoint, key: bytes, kind: bytes, count: int) -> Any:
            if key == b"session:1":
                writer.call("DEL", key)
                writer.call(*(("SET", key, "x") if kind == b"hash" else ("HSET", key, "a", "x")))
            return pages(endpoint, key, kind, count)

        monkeypatch.setattr(content, "_pages", disturbed)
        found = quick(reader)
    assert (found.verdict, total(found, "changing")) == ("not proven", 1)
    assert len(found.differences) == 1


def test_a_key_that_changes_its_type_while_its_difference_is_looked_for_is_told_as_it_was(
    endpoint: Endpoint, reader: Endpoint, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(endpoint)
    move(endpoint)
    endpoint.select(0)
    endpoint.call("HSET", "session:1", "a", 2)
    alternate = content._in_database
    with Endpoint.connect(server.url) as writer:

        def disturbed(*args: Any) -> Any:
            writer.call("SET", "session:1", "x")
            return alternate(*args)

        monkeypatch.setattr(content, "_in_database", disturbed)
        found = quick(reader)
    assert (found.verdict, total(found, "differs")) == ("not proven", 1)


def test_a_merge_target_of_another_type_is_told_of_its_keys_and_the_verify_goes_on(
    endpoint: Endpoint, reader: Endpoint, tape: Tape
) -> None:
    fill(endpoint)
    move(endpoint, tape)
    endpoint.select(1)
    endpoint.call("SET", "ticks:historical:NSE:INFY", "x")
    endpoint.call("DEL", "sys:health:x")
    found = quick(reader, tape=tape)
    assert (total(found, "differs"), total(found, "missing")) == (3, 1), found.differences


def test_a_tick_that_was_taken_out_of_its_stream_is_missing_and_not_called_later(
    endpoint: Endpoint, reader: Endpoint, tape: Tape
) -> None:
    fill(endpoint)
    move(endpoint, tape)
    endpoint.call("HSET", "tick:NSE:INFY", "ltp", 4, "timestamp", MS + 99)
    Lander(endpoint, 1, tape, PLAN.timezone).hash_ticks([b"tick:NSE:INFY"], 0, rule_of(0, b"tick:NSE:INFY"))
    endpoint.select(1)
    endpoint.call("XDEL", "ticks:historical:NSE:INFY", f"{MS + 99}-0")
    found = quick(reader, tape=tape)
    assert (total(found, "later"), total(found, "missing")) == (0, 1), found.skips
    assert "on the tape, but no longer in the stream" in found.differences[0]


@pytest.mark.parametrize("with_tape", [True, False])
def test_merged_streams_are_looked_at_as_a_whole(
    endpoint: Endpoint, reader: Endpoint, tape: Tape, with_tape: bool
) -> None:
    fill(endpoint)
    move(endpoint, tape)
    options = {"tape": tape} if with_tape else {}
    assert quick(reader, **options).verdict == "converged"
    endpoint.select(1)
    endpoint.call("XADD", "ticks:historical:ZZZ", "5-0", "ltp", 1, "onetape_id", "0" * 32)
    found = quick(reader, **options)
    assert (found.exit_code, total(found, "extra")) == (3, 1)
    assert "ticks:historical:ZZZ: has no source" in found.skips[0]
    endpoint.call("DEL", "ticks:historical:ZZZ")

    endpoint.call("XADD", "ticks:historical:NSE:INFY", "*", "who", "else")
    found = quick(reader, **options)
    assert (found.exit_code, total(found, "extra")) == (3, 1)
    endpoint.call("DEL", "ticks:historical:ZZZ")
    endpoint.call("XTRIM", "ticks:historical:NSE:INFY", "MAXLEN", 4)
    newest = endpoint.call("XREVRANGE", "ticks:historical:NSE:INFY", "+", "-", "COUNT", 1)
    endpoint.call("XDEL", "ticks:historical:NSE:INFY", newest[0][0])
    assert quick(reader, **options).exit_code == 0

    endpoint.call("PEXPIRE", "ticks:historical:NSE:INFY", 500_000)
    found = quick(reader, **options)
    assert (found.exit_code, total(found, "extra")) == (3, 1)
    endpoint.call("PERSIST", "ticks:historical:NSE:INFY")

    again = endpoint.call("XRANGE", "ticks:historical:NSE:INFY", "-", "+", "COUNT", 1)[0][1]
    endpoint.call("XADD", "ticks:historical:NSE:INFY", "*", *again)
    found = quick(reader, **options)
    assert (found.exit_code, total(found, "differs")) == (1, 1)
    assert "1 ticks are in it more than once" in found.differences[0]


def test_rounds_wait_for_a_live_writer_to_settle(endpoint: Endpoint, reader: Endpoint, server: EmbeddedServer) -> None:
    fill(endpoint)
    move(endpoint)
    endpoint.call("SET", "session:late", 1)

    def write_later() -> None:
        time.sleep(0.3)
        with Endpoint.connect(server.url) as writer:
            writer.call("COPY", "session:late", "sys:session:late", "DB", 1)

    thread = threading.Thread(target=write_later)
    thread.start()
    found = verify(reader, PLAN, rounds=10, pause_s=0.1)
    thread.join()
    assert found.verdict == "converged"
    assert 2 < found.rounds < 10


def test_a_key_that_never_rests_is_not_proven(
    endpoint: Endpoint, reader: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.call("HSET", "session:1", "a", 1)
    move(endpoint)
    endpoint.call("HSET", "session:1", "a", 2)
    monkeypatch.setattr(pairs_module.content, "read_together", lambda *_args: None)
    found = quick(reader)
    assert (found.verdict, total(found, "changing")) == ("not proven", 1)


def test_a_sample_reads_that_many_keys_of_each_database(endpoint: Endpoint, reader: Endpoint) -> None:
    fill(endpoint)
    move(endpoint)
    found = quick(reader, sample=2)
    assert (found.checked, found.sampled, found.verdict, found.target_keys) == (6, True, "converged", 0)


def test_progress_comes_to_its_end(endpoint: Endpoint, reader: Endpoint) -> None:
    fill(endpoint)
    move(endpoint)
    seen: list[tuple[int, int]] = []
    quick(reader, on_progress=lambda done, keys: seen.append((done, keys)))
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


def test_a_script_that_the_server_refuses_is_replaced_by_reading_here(endpoint: Endpoint) -> None:
    fill(endpoint)
    move(endpoint)
    comparer = Comparer(endpoint)
    assert comparer.in_server
    endpoint.call("SCRIPT", "FLUSH")
    assert comparer.codes(0, 1, [(b"session:1", b"sys:session:1"), (b"none", b"none")]) == b"=s"
    assert not comparer.in_server


def test_two_thousand_differences_are_all_counted_and_some_put_in_words(endpoint: Endpoint, reader: Endpoint) -> None:
    endpoint.pipeline([("SET", f"session:{i}", i) for i in range(2000)])
    found = quick(reader, listed_max=10)
    assert total(found, "missing") == 2000
    assert (len(found.differences), found.unlisted) == (10, 1990)


@pytest.mark.parametrize(
    ("target", "sources"),
    [
        (b"vol:state:1", [(2, b"volume_state:1")]),
        (b"ind:ta:NFO:X:rsi", [(5, b"indicators:NFO:X:rsi")]),
        (b"ind:volume:X:ratio_ma_5", [(5, b"indicators:X:volume_ratio_ma_5")]),
        (b"ind:other:X:rsi", []),
        (b"ind:other:X:else", [(5, b"indicators:X:else")]),
        (b"ind:ta:X:else", []),
        (b"sys:system:a:b", [(0, b"system:a:b")]),
        (b"ticks:historical:X", [(0, b"ticks:historical:X"), (2, b"ticks:historical:X"), (0, None), (2, None)]),
        (b"unknown", []),
    ],
)
def test_a_target_key_leads_back_to_its_sources(target: bytes, sources: list[tuple[int, bytes | None]]) -> None:
    assert [(origin.source_db, origin.key) for origin in Origins(PLAN).of(target)] == sources


def test_a_plan_of_one_glob_is_verified_too(endpoint: Endpoint, reader: Endpoint) -> None:
    fill(endpoint)
    endpoint.call("COPY", "session:1", "new:session:1", "DB", 1)
    plan = Plan.of_glob("session:*", 0, transform=lambda key: b"new:" + key)
    assert verify(reader, plan, pause_s=0).verdict == "converged"
    endpoint.select(1)
    endpoint.call("DEL", "new:session:1")
    assert verify(reader, plan, pause_s=0).verdict == "not proven"


def test_ticks_written_to_both_sides_after_the_backfill_come_later_but_older_ones_must_be_on_the_tape(
    endpoint: Endpoint, reader: Endpoint, tape: Tape, ledger: Ledger
) -> None:
    fill(endpoint)
    move(endpoint, tape, ledger)
    for db in (0, 1):
        endpoint.select(db)
        endpoint.call("XADD", "ticks:NSE:INFY", "2000000000000-0", "ltp", 1)
    found = quick(reader, tape=tape, ledger=ledger)
    assert (found.verdict, total(found, "later")) == ("converged with listed skips", 1), found.differences
    for db in (0, 1):
        endpoint.select(db)
        endpoint.call("DEL", "ticks:NSE:INFY")
        for stamp in (MS + 10**6, 2_000_000_000_000):
            endpoint.call("XADD", "ticks:NSE:INFY", f"{stamp}-0", "ltp", 1)
    found = quick(reader, tape=tape, ledger=ledger)
    assert (found.verdict, total(found, "later")) == ("not proven", 0), found.skips
