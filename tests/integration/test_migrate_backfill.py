"""The backfill on real servers: what arrives, what is kept, what is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.legacy_keys import EXPIRES_MS, clients, content, differences, fill

import onetape
from onetape.embedded import EmbeddedServer
from onetape.errors import (
    ConfigInvalid,
    EndpointError,
    LedgerUnusable,
    OnetapeError,
    PlanCollision,
    PlanInvalid,
    PreflightRefused,
)
from onetape.migrate import Endpoint, Migration, Plan
from onetape.migrate.landing import merge as merging
from onetape.migrate.ledger.ledger import Ledger
from onetape.progress import Progress

Clients = dict[int, redis.Redis]


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Clients]:
    made = clients(server.port)
    yield made
    for one in made.values():
        one.close()


@pytest.fixture
def migration(server: EmbeddedServer, client: Clients, tmp_path: Path) -> Migration:
    return Migration(server.url, ledger_path=tmp_path / "ledger.db", report_dir=tmp_path)


def _keyspace(client: Clients) -> object:
    sizes = {name: facts["keys"] for name, facts in client[0].info("keyspace").items()}
    return sizes, {db: {key: content(one, key) for key in one.scan_iter()} for db, one in client.items() if db != 2}


def test_every_family_arrives_under_its_new_name(migration: Migration, client: Clients) -> None:
    fill(client)
    report = migration.backfill()
    assert report.exit_code == 0
    assert differences(client) == []
    assert report.steps == {
        "volume": {"copied": 120},
        "indicators": {"copied": 502},
        "system": {"copied": 81},
        "ticks": {"copied": 105},
        "ohlc": {"copied": 40},
        "baselines": {"copied": 40},
    }
    assert client[1].get("ind:greeks:NFO:SYM1:delta") == b"1.5"
    assert client[1].get("ind:volume:NFO:SYM2:ratio") == b"2.5"
    assert client[1].get("ind:other:NFO:SYM3:unheard_of") == b"3.5"


def test_a_second_backfill_changes_nothing_and_doubles_no_list(migration: Migration, client: Clients) -> None:
    fill(client)
    migration.backfill()
    before = {key: content(client[1], key) for key in client[1].scan_iter()}
    rows = len(migration.why("volume_averages:NFO:S3"))
    again = migration.backfill()
    assert again.totals == {"unchanged": 888}
    assert {key: content(client[1], key) for key in client[1].scan_iter()} == before
    assert len(migration.why("volume_averages:NFO:S3")) == rows


def test_expiry_is_kept_to_the_millisecond_and_none_stays_none(migration: Migration, client: Clients) -> None:
    client[5].set("indicators:A:rsi", 1, pxat=EXPIRES_MS)
    client[5].set("indicators:B:rsi", 1)
    migration.backfill()
    assert client[1].execute_command("PEXPIRETIME", "ind:ta:A:rsi") == EXPIRES_MS
    assert client[1].ttl("ind:ta:B:rsi") == -1
    client[5].pexpireat("indicators:A:rsi", EXPIRES_MS + 1)
    client[5].expire("indicators:B:rsi", 5000)
    assert migration.backfill().totals == {"copied": 2}
    assert client[1].execute_command("PEXPIRETIME", "ind:ta:A:rsi") == EXPIRES_MS + 1
    assert content(client[1], "ind:ta:B:rsi") == content(client[5], "indicators:B:rsi")


def test_a_key_that_expired_since_is_no_failure(migration: Migration, client: Clients) -> None:
    client[5].set("indicators:A:rsi", 1, px=1)
    client[5].set("indicators:B:rsi", 1)
    time.sleep(0.01)
    report = migration.backfill()
    assert report.exit_code == 0 and report.totals["copied"] == 1
    assert client[1].keys() == [b"ind:ta:B:rsi"]


def test_binary_keys_and_values_and_empty_ones_arrive(migration: Migration, client: Clients) -> None:
    blob = bytes(range(256))
    for symbol in (blob.replace(b":", b""), b"\r\n", b"*", b"", b"{a}"):
        client[5].set(b"indicators:" + symbol + b":rsi", blob)
        client[5].hset(b"indicators:" + symbol + b":ema", mapping={blob: b"", b"": blob})
    client[5].set(b"indicators:empty:ema", b"")
    assert migration.backfill().exit_code == 0
    assert client[1].get(b"ind:ta:\r\n:rsi") == blob
    assert client[1].hgetall(b"ind:ta:" + blob.replace(b":", b"") + b":ema") == {blob: b"", b"": blob}
    assert client[1].get(b"ind:ta:empty:ema") == b""
    assert differences(client) == []


def test_a_newer_target_is_kept_counted_and_explained(migration: Migration, client: Clients) -> None:
    client[5].set("indicators:A:rsi", "old")
    client[1].set("ind:ta:A:rsi", "new")
    report = migration.backfill()
    assert report.totals == {"newer_target_kept": 1} and report.exit_code == 0
    assert client[1].get("ind:ta:A:rsi") == b"new"
    assert [line.outcome for line in migration.why("ind:ta:A:rsi")][-1:] == ["newer_target_kept"]
    assert migration.backfill().totals == {"newer_target_kept": 1}


def test_a_target_written_by_somebody_after_our_copy_is_kept(migration: Migration, client: Clients) -> None:
    client[5].set("indicators:A:rsi", "old")
    migration.backfill()
    client[1].set("ind:ta:A:rsi", "new")
    client[5].set("indicators:A:rsi", "older still being written")
    assert migration.backfill().totals == {"newer_target_kept": 1}
    assert client[1].get("ind:ta:A:rsi") == b"new"


def test_our_copy_follows_its_source(migration: Migration, client: Clients) -> None:
    client[2].rpush("volume_averages:A", 1)
    migration.backfill()
    for round_ in range(3):
        client[2].rpush("volume_averages:A", round_)
        assert migration.backfill().totals == {"copied": 1}
        assert content(client[1], "vol:baseline:A") == content(client[2], "volume_averages:A")


def test_a_copy_that_was_deleted_is_made_again(migration: Migration, client: Clients) -> None:
    client[2].set("volume_state:1", "x")
    migration.backfill()
    client[1].delete("vol:state:1")
    assert migration.backfill().totals == {"copied": 1}
    assert client[1].get("vol:state:1") == b"x"


def test_a_dry_run_writes_nothing_and_counts_what_would_be(
    migration: Migration, client: Clients, tmp_path: Path
) -> None:
    fill(client)
    before = _keyspace(client)
    with onetape.open(tmp_path / "tape.db") as tape:
        migration.tape = tape
        dry = migration.backfill(dry_run=True)
        assert tape.stats().ticks == 0
        assert _keyspace(client) == before
        assert not migration.ledger_path.exists()
        real = migration.backfill()
        assert dry.steps == real.steps
        assert dry.ticks_landed == real.ticks_landed == 440
        assert migration.backfill(dry_run=True).totals == {"unchanged": 888}


def test_a_dry_run_needs_no_right_to_write(client: Clients, server: EmbeddedServer, tmp_path: Path) -> None:
    fill(client, 20)
    rights = "~* &* +@read +@connection +@transaction +info +dbsize +unwatch"
    client[0].execute_command("ACL", "SETUSER", "reader", "on", ">pw", *rights.split())
    url = server.url.replace("redis://", "redis://reader:pw@")
    assert Migration(url, ledger_path=tmp_path / "l.db").backfill(dry_run=True).totals["copied"] > 100


def test_the_connection_of_a_dry_run_cannot_write(server: EmbeddedServer, client: Clients) -> None:
    with Endpoint.connect(server.url, writable=False) as endpoint:
        for args in (("SET", "a", 1), ("copy", "a", "b"), ("CONFIG", "SET", "x", "y"), ("EVAL", "return 1", 0)):
            with pytest.raises(EndpointError, match="may not write"):
                endpoint.call(*args)
        with pytest.raises(EndpointError, match="may not write"):
            endpoint.pipeline([("GET", "a"), ("DEL", "a")])
        assert endpoint.call("GET", "a") is None


def test_limit_is_at_most_that_many_keys_a_step(migration: Migration, client: Clients) -> None:
    fill(client)
    dry = migration.backfill(dry_run=True, limit=7)
    report = migration.backfill(limit=7)
    for found in (dry, report):
        assert {step: sum(counts.values()) for step, counts in found.steps.items()} == dict.fromkeys(found.steps, 7)
    assert migration.status().phase == "planned"
    assert migration.backfill().exit_code == 0
    assert differences(client) == []
    assert migration.status().phase == "backfilled"


def test_limit_0_does_nothing(migration: Migration, client: Clients) -> None:
    fill(client, 5)
    assert migration.backfill(limit=0).totals == {}
    assert client[1].dbsize() == 0


def test_steps_can_be_chosen(migration: Migration, client: Clients) -> None:
    fill(client, 10)
    client[2].set("mystery", 1)
    report = migration.backfill(steps=["ohlc", "baselines"])
    assert {step for step, counts in report.steps.items() if counts} == {"ohlc", "baselines"}
    assert report.unmatched[2].first == (b"mystery",)
    with pytest.raises(OnetapeError, match="no step 'nonsense'"):
        migration.backfill(steps=["nonsense"])
    assert migration.backfill().exit_code == 0
    assert {line.step for line in migration.why("ohlc_latest:NFO:S3")} == {"ohlc"}


def test_unmatched_keys_are_listed_by_database(migration: Migration, client: Clients) -> None:
    client[0].set(b"\xff\x00", 1)
    client[0].zadd("ticks:not_a_stream", {"a": 1})
    client[5].set("indicators:no_name", 1)
    report = migration.backfill()
    assert {db: set(keys.first) for db, keys in report.unmatched.items()} == {
        0: {b"\xff\x00", b"ticks:not_a_stream"},
        5: {b"indicators:no_name"},
    }
    assert client[1].dbsize() == 0
    saved = json.loads(Path(str(report.path)).read_text())
    assert set(saved["unmatched"]["by_database"]["0"]["first"]) == {"\\xff\x00", "ticks:not_a_stream"}
    assert migration.plan().unmatched == report.unmatched


def test_two_keys_with_one_target_are_refused_by_name(migration: Migration, client: Clients) -> None:
    fill(client, 5)
    for db in (0, 2):
        client[db].xadd("ticks:SAME", {"last_price": 1})
    for call in (migration.plan, migration.backfill):
        with pytest.raises(PlanCollision) as caught:
            call()
        assert "'ticks:SAME'" in str(caught.value) and "db 0" in str(caught.value) and "db 2" in str(caught.value)
    assert client[1].dbsize() == 0
    assert not migration.ledger_path.exists() or migration.status().steps == {}


def test_renaming_that_makes_two_keys_one_is_refused(client: Clients, server: EmbeddedServer, tmp_path: Path) -> None:
    client[2].mset({"a:1": 1, "a:2": 2})
    plan = Plan.of_glob("a:*", 2, transform=lambda key: b"all")
    with pytest.raises(PlanCollision):
        Migration(server.url, plan=plan, ledger_path=tmp_path / "l.db").backfill()
    assert client[1].dbsize() == 0


def test_any_glob_with_any_renaming_can_be_copied(client: Clients, server: EmbeddedServer, tmp_path: Path) -> None:
    client[2].mset({"volume_state:1": 1, "volume_state:2": 2, "other": 3})
    plan = Plan.of_glob("volume_state:*", 2, transform=lambda key: key.replace(b"volume_state", b"vs"))
    report = Migration(server.url, plan=plan, ledger_path=tmp_path / "l.db").backfill()
    assert report.totals == {"copied": 2} and not report.unmatched
    assert sorted(client[1].keys()) == [b"vs:1", b"vs:2"]


def test_keys_can_be_renamed_within_one_database(client: Clients, server: EmbeddedServer, tmp_path: Path) -> None:
    text = """
    name = "one"
    target_db = 0
    [[rule]]
    step = "s"
    source_db = 0
    pattern = "old:{x}"
    target = "new:{x}"
    [[rule]]
    step = "s"
    source_db = 0
    pattern = "same:{x}"
    """
    client[0].mset({"old:1": "a", "old:2": "b", "same:1": "c"})
    migration = Migration(server.url, plan=Plan.parse(text), ledger_path=tmp_path / "l.db")
    assert migration.backfill().totals == {"copied": 2, "unchanged": 1}
    assert client[0].get("new:2") == b"b" and client[0].get("old:2") == b"b"
    assert migration.backfill().totals == {"unchanged": 3}


def test_renaming_that_the_glob_would_take_up_again_is_refused(
    client: Clients, server: EmbeddedServer, tmp_path: Path
) -> None:
    client[1].mset({"a:1": 1, "b": 2})
    plan = Plan.of_glob("a:*", 1, transform=lambda key: b"a:new:" + key)
    for _ in range(2):
        with pytest.raises(PlanInvalid, match="'a:\\*' matches as well"):
            Migration(server.url, plan=plan, ledger_path=tmp_path / "l.db").backfill()
    assert client[1].dbsize() == 2
    Migration(
        server.url, plan=Plan.of_glob("a:*", 1, transform=lambda key: b"n" + key), ledger_path=tmp_path / "n.db"
    ).backfill()
    assert client[1].get("na:1") == b"1"


def test_a_host_that_no_name_can_have_is_one_line() -> None:
    for url in ("redis://a..b:6379", f"redis://{'x' * 70}.org", "unix:///a%00b"):
        with pytest.raises(EndpointError, match="cannot be reached") as caught:
            Endpoint.connect(url)
        assert "\n" not in str(caught.value)


def test_numbers_that_mean_nothing_are_refused(migration: Migration, client: Clients) -> None:
    fill(client, 5)
    with pytest.raises(ConfigInvalid, match="limit = -1"):
        migration.backfill(limit=-1)
    for sample in (0, -2):
        with pytest.raises(ConfigInvalid, match="sample"):
            migration.verify(sample=sample)


def test_a_ledger_of_another_plan_or_server_is_not_read(
    migration: Migration, client: Clients, server: EmbeddedServer, fresh_server: EmbeddedServer
) -> None:
    fill(client, 5)
    migration.backfill()
    other_plan = Migration(server.url, plan=Plan.load().with_target(7), ledger_path=migration.ledger_path)
    other_server = Migration(fresh_server.url, ledger_path=migration.ledger_path)
    for other, why in ((other_plan, "another plan"), (other_server, "another server")):
        with pytest.raises(LedgerUnusable, match=why):
            other.verify()
        with pytest.raises(LedgerUnusable, match=why):
            other.backfill(dry_run=True)


def test_a_verify_beside_a_backfill_keeps_its_result(migration: Migration, client: Clients, tmp_path: Path) -> None:
    fill(client, 5)
    migration.backfill()
    with Ledger.open(migration.ledger_path):
        found = migration.verify()
    assert found.verdict == "converged" and found.report is not None and Path(found.report).exists()
    assert found.note is not None and "not in the ledger" in found.note
    assert migration.status().verdict is None
    assert migration.verify().note is None


@pytest.mark.parametrize(
    "command", ["XADD", "RENAME", "XSETID", "XGROUP|CREATE", "XCLAIM", "XDEL", "XINFO|STREAM", "XRANGE", "PERSIST"]
)
def test_a_right_that_only_a_merge_needs_is_missed_before_anything_is_written(
    client: Clients, server: EmbeddedServer, tmp_path: Path, command: str
) -> None:
    client[0].set("session:1", "x")
    client[0].execute_command("ACL", "SETUSER", "mover", "on", ">pw", "~*", "+@all", f"-{command.lower()}")
    try:
        url = server.url.replace("redis://", "redis://mover:pw@")
        with pytest.raises(PreflightRefused) as caught:
            Migration(url, ledger_path=tmp_path / "l.db").backfill()
        name = command.partition("|")[0]
        assert [why for why in caught.value.facts["reasons"] if why.startswith(f"rights: {name} is not allowed")]
        assert client[1].dbsize() == 0
    finally:
        client[0].execute_command("ACL", "DELUSER", "mover")


def test_ticks_can_be_in_the_target_already(client: Clients, server: EmbeddedServer, tmp_path: Path) -> None:
    client[1].xadd("ticks:A", {"last_price": 1, "volume": 2}, id="1700000000000-0")
    client[1].hset("realtime:B:1700000000", mapping={"last_price": 3, "volume": 1})
    plan = Plan.load().with_source("ticks", 1)
    with onetape.open(tmp_path / "tape.db") as tape:
        migration = Migration(server.url, plan=plan, ledger_path=tmp_path / "l.db", tape=tape)
        report = migration.backfill(steps=["ticks"])
        assert report.totals == {"unchanged": 1, "copied": 1}
        assert tape.latest("A") is not None and tape.latest("B") is not None
        assert client[1].xlen("ticks:A") == 1 and client[1].xlen("ticks:historical:B") == 1
        again = migration.backfill(steps=["ticks"])
        assert again.totals == {"unchanged": 2} or again.totals == {"unchanged": 3}
        assert again.ticks_landed == 0, "what was merged is on the tape already"
        assert sorted(info.symbol for info in tape.symbols()) == ["A", "B"]
    # A tape that has never seen the hash, which may have expired, takes the merged entry instead.
    client[1].delete("realtime:B:1700000000")
    with onetape.open(tmp_path / "new.db") as tape:
        migration = Migration(server.url, plan=plan, ledger_path=tmp_path / "new.ledger", tape=tape)
        assert migration.backfill(steps=["ticks"]).ticks_landed == 2
        assert tape.latest("B").price == 3.0
        assert migration.backfill(steps=["ticks"]).ticks_landed == 0


def test_tick_hashes_merged_into_a_copied_stream_are_never_taken_out_again(
    client: Clients, server: EmbeddedServer, tmp_path: Path
) -> None:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as tape:
        migration = Migration(server.url, ledger_path=tmp_path / "l.db", tape=tape)
        client[0].xadd("ticks:historical:A", {"last_price": 1, "volume": 1}, id="1700000005000-0")
        client[2].hset("realtime:A:1700000000", mapping={"last_price": 2, "volume": 1})
        assert migration.backfill().totals == {"copied": 2}
        assert [entry[1][b"last_price"] for entry in client[1].xrange("ticks:historical:A")] == [b"2", b"1"]
        assert migration.backfill().totals == {"unchanged": 2}
        assert migration.verify().verdict == "converged"
        # A new writer, the old stream and another hash go on.
        client[1].xadd("ticks:historical:A", {"last_price": 9, "volume": 1}, id="1700000008000-0")
        client[0].xadd("ticks:historical:A", {"last_price": 3, "volume": 1}, id="1700000009000-0")
        client[2].hset("realtime:A:1700000007", mapping={"last_price": 4, "volume": 1})
        for _ in range(3):
            assert migration.backfill().totals["newer_target_kept"] == 1
            prices = [entry[1][b"last_price"] for entry in client[1].xrange("ticks:historical:A")]
            assert prices == [b"2", b"1", b"4", b"9"]
        assert sorted(tape.read("A")["price"].to_pylist()) == [1, 2, 3, 4]
        found = migration.verify()
        assert found.exit_code == 3, found.differences
        assert any("ticks were merged into it" in line for line in found.skips)
        why = migration.why("ticks:historical:A")
        assert any(line.error is not None and "would take out" in line.error for line in why)


def test_what_is_no_tick_or_bar_is_counted_listed_and_remembered(
    client: Clients, server: EmbeddedServer, tmp_path: Path
) -> None:
    client[0].xadd("ticks:A", {"last_price": 1}, id="1700000005000-0")
    client[0].xadd("ticks:A", {"note": "x"}, id="1700000005001-0")
    client[2].set("ohlc:A", "text")
    client[2].hset("realtime:A:1700000000", mapping={"note": "x"})
    with onetape.open(tmp_path / "tape.db", retention_days=None) as tape:
        migration = Migration(server.url, ledger_path=tmp_path / "l.db", tape=tape, report_dir=tmp_path)
        report = migration.backfill()
        assert (report.exit_code, report.totals, report.note_count) == (0, {"copied": 3}, 3)
        told = {note.key: note.error for note in report.notes}
        assert told[b"ticks:A"].startswith("1 of 2 entries are no ticks, first 1700000005001-0")
        assert set(told) == {b"ticks:A", b"ohlc:A", b"realtime:A:1700000000"}
        assert report.path is not None
        notes = json.loads(Path(report.path).read_text())["notes"]
        assert notes["count"] == 3 and {note["key"] for note in notes["first"]} == {key.decode() for key in told}
        for key in told:
            assert any(told[key] in (line.error or "") for line in migration.why(key))
        assert migration.status().steps["ticks"] == {"copied": 2}
        for _ in range(2):
            found = migration.verify()
            assert found.exit_code == 3, found.differences
            assert sum(counts.get("not_a_tick", 0) for counts in found.counts.values()) == 3
            assert any("1 of 2 entries are no ticks" in line for line in found.skips)
            migration.backfill()


def test_a_stream_is_written_anew_once_for_all_keys_of_a_symbol_however_their_times_are_written(
    client: Clients, server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client[1].xadd("ticks:historical:NFO:X", {"last_price": 1}, id="1900000000000-0")  # all others are late
    for minute in range(30):
        client[2].hset(f"realtime:NFO:X:2025-11-21T09:{minute:02}:03", mapping={"last_price": minute + 1})
    rebuilt = merging._rebuild
    times: list[int] = []

    def counted(*args: Any) -> bool:
        times.append(1)
        return rebuilt(*args)

    monkeypatch.setattr(merging, "_rebuild", counted)
    migration = Migration(server.url, ledger_path=tmp_path / "l.db")
    assert migration.backfill().totals == {"copied": 30}
    assert client[1].xlen("ticks:historical:NFO:X") == 31 and client[1].dbsize() == 1
    assert len(times) == 1
    line = migration.why("realtime:NFO:X:2025-11-21T09:15:03")[0]
    assert line.target == b"ticks:historical:NFO:X"


def test_a_rule_can_skip_keys(client: Clients, server: EmbeddedServer, tmp_path: Path) -> None:
    text = """
    name = "skipping"
    [[rule]]
    step = "s"
    source_db = 2
    pattern = "cache:{x}"
    skip = true
    [[rule]]
    step = "s"
    source_db = 2
    pattern = "{x}"
    """
    client[2].mset({"cache:1": 1, "kept": 2})
    report = Migration(server.url, plan=Plan.parse(text), ledger_path=tmp_path / "l.db").backfill()
    assert report.totals == {"copied": 1, "skipped": 1}
    assert client[1].keys() == [b"kept"]


def test_a_value_over_the_limit_fails_alone_with_a_hint(
    client: Clients, server: EmbeddedServer, tmp_path: Path
) -> None:
    for i in range(20):
        client[5].set(f"indicators:S{i}:rsi", b"x" * 3_000_000)
    client[5].set("indicators:HUGE:rsi", b"x" * 9_000_000)
    options = {"ledger_path": tmp_path / "l.db", "value_bytes_max": 8_000_000}
    report = Migration(server.url, **options).backfill()  # type: ignore[arg-type]
    assert report.totals == {"copied": 20, "failed": 1} and report.exit_code == 1
    assert report.errors[0].key == b"indicators:HUGE:rsi" and "value_bytes_max" in report.errors[0].error
    options["value_bytes_max"] = 20_000_000
    assert Migration(server.url, **options).backfill().totals == {"copied": 1, "unchanged": 20}  # type: ignore[arg-type]
    assert differences(client) == []


def test_a_big_key_of_every_shape_arrives(migration: Migration, client: Clients) -> None:
    pipe = client[2].pipeline()
    for at in range(0, 100_000, 5000):
        some = [f"member-{i}" for i in range(at, at + 5000)]
        pipe.sadd("volume_state:set", *some)
        pipe.hset("volume_state:hash", mapping={name: name for name in some})
        pipe.rpush("volume_state:list", *some)
        pipe.zadd("volume_state:zset", {name: i for i, name in enumerate(some, at)})
    pipe.execute()
    assert migration.backfill().totals == {"copied": 4}
    assert differences(client) == []
    assert migration.backfill().totals == {"unchanged": 4}


def test_the_report_file_says_what_was_done(migration: Migration, client: Clients, tmp_path: Path) -> None:
    fill(client, 10)
    report = migration.backfill()
    assert report.path is not None and Path(report.path).name.startswith("migration_report_2")
    saved = json.loads(Path(report.path).read_text())
    assert saved["totals"] == report.totals and saved["steps"] == report.steps
    assert saved["plan"]["hash"] == Plan.load().hash
    assert saved["errors"] == {"count": 0, "first": []}
    assert not list(tmp_path.glob("*.tmp"))
    assert migration.status().runs[0].report == report.path


def test_a_report_that_cannot_be_written_is_one_line(client: Clients, server: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OnetapeError, match="cannot be written") as caught:
        Migration(server.url, ledger_path=tmp_path / "l.db", report_dir=tmp_path / "file").backfill()
    assert "\n" not in str(caught.value) and caught.value.hint


def test_progress_ends_at_all_of_all(migration: Migration, client: Clients) -> None:
    fill(client)
    client[5].set("unmatched", 1)
    told: list[Progress] = []
    migration.backfill(on_progress=told.append)
    assert (told[-1].done, told[-1].total, told[-1].left_s) == (888, 888, 0.0)
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert {progress.step for progress in told} == set(Plan.load().steps)


def test_plan_tells_counts_bytes_and_refusals_and_writes_nothing(migration: Migration, client: Clients) -> None:
    fill(client)
    before = _keyspace(client)
    check = migration.plan()
    assert check.keys_total == 888 and check.steps["indicators"] == 502
    assert check.bytes_to_copy > 50_000 and check.refusals == ()
    client[0].config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert "allkeys-lru" in migration.plan().refusals[0]
    finally:
        client[0].config_set("maxmemory-policy", "noeviction")
    assert _keyspace(client) == before
    json.dumps(check.to_dict())


def test_why_knows_a_key_by_both_names(migration: Migration, client: Clients) -> None:
    client[5].set(b"indicators:\xff:rsi", "1", pxat=EXPIRES_MS)
    migration.backfill()
    client[5].set(b"indicators:\xff:rsi", "2")
    migration.backfill()
    by_old, by_new = migration.why(b"indicators:\xff:rsi"), migration.why(b"ind:ta:\xff:rsi")
    assert by_old == by_new
    assert [(line.run, line.outcome, line.expire_ms) for line in by_old] == [
        (1, "copied", EXPIRES_MS),
        (2, "copied", -1),
    ]
    assert migration.why("never heard of") == []
    json.dumps([line.to_dict() for line in by_old])


def test_status_counts_each_key_once(migration: Migration, client: Clients) -> None:
    fill(client, 30)
    for _ in range(3):
        client[5].append("indicators:NFO:SYM0:rsi", "!")
        migration.backfill()
    status = migration.status()
    assert status.steps["indicators"] == {"copied": 32}
    assert [run.command for run in status.runs] == ["backfill"] * 3
    assert all(run.ended_ns is not None for run in status.runs)
    json.dumps(status.to_dict())
