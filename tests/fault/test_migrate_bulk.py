"""Copies without digests, where writers write both sides: killed, raced or cut off they lose and overwrite nothing."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
import redis
from tests.legacy_keys import clients, content, differences, fill, new_name
from tests.other_servers import binary

from onetape.embedded import EmbeddedServer
from onetape.migrate import Ledger, Migration
from onetape.migrate.backfill import backfill
from onetape.migrate.copying import bulk
from onetape.migrate.copying.bulk import BulkCopier
from onetape.migrate.copying.decide import DIGEST_OPEN
from onetape.migrate.ledger.file import FORMAT

_RUN = """
import sys
from onetape.migrate import Migration
from onetape.migrate.copying import bulk
bulk.BATCH_KEYS = 60
Migration(sys.argv[1], ledger_path=sys.argv[2] + "/ledger.db").backfill(digests="verify")
"""
Clients = dict[int, redis.Redis]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "BATCH_KEYS", 60)


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Clients]:
    made = clients(server.port)
    fill(made)
    yield made
    for one in made.values():
        one.close()


def _migration(server: EmbeddedServer, directory: Path, at: Callable[[str], None] | None = None) -> Migration:
    return Migration(server.url, ledger_path=directory / "ledger.db", at=at)


def _both(client: Clients, db: int, key: str, value: str) -> None:
    """Write as a client does that writes both sides: the old key, and the new one as the old one is then."""
    other = new_name(db, key.encode())
    assert other is not None
    with client[db].pipeline(transaction=True) as transaction:
        transaction.append(key, value)
        transaction.unlink("")  # nothing, in between
        transaction.execute_command("COPY", key, other, "DB", 1, "REPLACE")
        transaction.execute()


@pytest.mark.parametrize("point", [f"{name}:{n}" for name in ("intended", "acted", "recorded") for n in (1, 2, 4, 7)])
def test_a_run_after_a_kill_converges_and_knows_its_work(
    server: EmbeddedServer, client: Clients, tmp_path: Path, point: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, server.url, str(tmp_path)],
        env={**os.environ, "ONETAPE_KILL_AT": point},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    for n in range(40):
        _both(client, 5, f"indicators:NFO:SYM{n * 7}:rsi", "meanwhile")
    migration = _migration(server, tmp_path)
    assert migration.backfill(digests="verify").exit_code == 0
    assert differences(client) == []
    assert migration.verify(pause_s=0.1).verdict == "converged"
    with Ledger.open(tmp_path / "ledger.db", mode="r") as ledger:
        assert not ledger.digests_open
    again = migration.backfill()
    assert set(again.totals) == {"unchanged"}


@pytest.mark.parametrize("point", ["intended", "acted"])
def test_writers_of_both_sides_may_race_with_every_batch(
    server: EmbeddedServer, client: Clients, tmp_path: Path, point: str
) -> None:
    times = itertools.count()

    def race(passed: str) -> None:
        if passed == point:
            n = next(times)
            for name in ("rsi", "delta", "volume_ratio", "unheard_of"):
                _both(client, 5, f"indicators:NFO:SYM{n * 11 % 500}:{name}", "!")
            client[5].delete(f"indicators:NFO:SYM{n * 13 % 500}:macd")
            client[1].delete(f"ind:ta:NFO:SYM{n * 13 % 500}:macd")

    report = _migration(server, tmp_path, race).backfill(digests="verify")
    assert report.exit_code == 0, report.errors
    assert next(times) > 5
    assert differences(client) == []
    assert _migration(server, tmp_path).verify(pause_s=0.1).verdict == "converged"


def test_a_key_that_somebody_else_put_there_just_before_the_copy_is_kept(
    server: EmbeddedServer, client: Clients, tmp_path: Path
) -> None:
    def race(passed: str) -> None:
        if passed == "intended":
            client[1].set("ind:ta:NFO:SYM0:rsi", "newer")

    report = _migration(server, tmp_path, race).backfill(digests="verify")
    assert client[1].get("ind:ta:NFO:SYM0:rsi") == b"newer"
    assert report.totals["newer_target_kept"] == 1
    _migration(server, tmp_path).backfill(digests="verify")
    assert client[1].get("ind:ta:NFO:SYM0:rsi") == b"newer"


def test_a_writer_of_the_old_name_only_is_found_out_and_nobody_guesses_who_is_newer(
    server: EmbeddedServer, client: Clients, tmp_path: Path
) -> None:
    migration = _migration(server, tmp_path)
    migration.backfill(digests="verify")
    client[5].set("indicators:NFO:SYM0:rsi", "only here")
    before = client[1].get("ind:ta:NFO:SYM0:rsi")
    report = migration.backfill(digests="verify")
    assert report.totals["newer_target_kept"] == 1
    assert client[1].get("ind:ta:NFO:SYM0:rsi") == before
    assert migration.why("indicators:NFO:SYM0:rsi")[-1].error == DIGEST_OPEN
    verified = migration.verify(rounds=1)
    assert verified.verdict == "not proven"
    assert [line for line in verified.differences if "SYM0:rsi" in line and "verify --repair" in line]


def test_once_a_verify_took_the_digests_a_later_change_of_the_source_is_followed(
    server: EmbeddedServer, client: Clients, tmp_path: Path
) -> None:
    migration = _migration(server, tmp_path)
    migration.backfill(digests="verify")
    assert migration.verify().verdict == "converged"
    client[5].set("indicators:NFO:SYM0:rsi", "followed", px=60_000_000)
    client[2].rpush("volume_averages:NFO:S3", "followed")
    client[1].set("ind:ta:NFO:SYM1:rsi", "somebody else's")
    report = migration.backfill()
    assert report.totals["copied"] == 2
    assert client[1].get("ind:ta:NFO:SYM0:rsi") == b"followed"
    assert client[1].pexpiretime("ind:ta:NFO:SYM0:rsi") == client[5].pexpiretime("indicators:NFO:SYM0:rsi")
    assert client[1].get("ind:ta:NFO:SYM1:rsi") == b"somebody else's"
    assert migration.verify(rounds=1).verdict == "converged with listed skips"


def test_a_server_that_tells_only_what_is_left_of_an_expiry_has_its_digests_taken_too(tmp_path: Path) -> None:
    with EmbeddedServer(binary("redis6")) as server:
        client = clients(server.port)
        client[5].set("indicators:NFO:A:rsi", 1)
        client[5].set("indicators:NFO:B:rsi", 1, ex=1000)
        client[5].hset("indicators:NFO:C:rsi", mapping={str(n): "x" * 100 for n in range(300)})
        migration = _migration(server, tmp_path)
        migration.backfill(digests="verify")
        assert migration.verify(pause_s=0.1).verdict == "converged"
        with Ledger.open(tmp_path / "ledger.db", mode="r") as ledger:
            assert [entry.key for entry in ledger.newest() if entry.is_open] == []
        client[5].set("indicators:NFO:A:rsi", 2)
        client[5].set("indicators:NFO:B:rsi", 2, keepttl=True)
        client[5].hdel("indicators:NFO:C:rsi", "7")
        assert migration.backfill(digests="verify").totals == {"copied": 3}
        assert migration.verify(pause_s=0.1).verdict == "converged"
        for one in client.values():
            one.close()


def test_sets_and_hashes_in_tables_are_known_by_their_digest(
    server: EmbeddedServer, client: Clients, tmp_path: Path
) -> None:
    members = [f"member {n}" for n in range(700)]
    client[5].sadd("indicators:NFO:TABLE:rsi", *members)
    client[2].hset("volume_averages:NFO:TABLE", mapping=dict.fromkeys(members, "1"))
    migration = _migration(server, tmp_path)
    migration.backfill(digests="verify")
    assert migration.verify().verdict == "converged"
    for key in ("indicators:NFO:TABLE:rsi", "volume_averages:NFO:TABLE"):
        known = migration.why(key)[-1]
        assert known.written and known.read == known.written, key
    # The copy's table grows and shrinks: its DUMP is another, its content is not.
    more = [f"other {n}" for n in range(5000)]
    client[1].sadd("ind:ta:NFO:TABLE:rsi", *more)
    client[1].srem("ind:ta:NFO:TABLE:rsi", *more)
    client[5].sadd("indicators:NFO:TABLE:rsi", "one more")
    assert migration.backfill().totals["copied"] == 1
    assert content(client[1], "ind:ta:NFO:TABLE:rsi") == content(client[5], "indicators:NFO:TABLE:rsi")


@pytest.mark.parametrize("point", ["intended", "acted"])
@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_connection_that_is_cut_in_the_middle_is_taken_up_again(
    server: EmbeddedServer, client: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, number: int
) -> None:
    times = itertools.count(1)
    made: list[BulkCopier] = []

    class Watched(BulkCopier):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(backfill, "BulkCopier", Watched)

    def cut(passed: str) -> None:
        if passed == point and next(times) == number:
            for flight in made[0]._flying:
                flight.endpoint._sock.shutdown(socket.SHUT_RDWR)
            for n in range(0, 500, 3):
                client[1].set(f"ind:ta:NFO:SYM{n}:rsi", "newer", nx=True)

    newer = {f"ind:ta:NFO:SYM{n}:rsi" for n in range(0, 500, 3)}
    report = _migration(server, tmp_path, cut).backfill(digests="verify")
    assert report.exit_code in (0, 3), report.errors
    assert next(times) > number, "the connection was never cut"
    for key in newer:  # what the other one put there is there, and what we put there he did not get over
        old = "indicators" + key.removeprefix("ind:ta")
        assert client[1].get(key) in (b"newer", client[5].get(old)), key
    others = [line for line in differences(client) if "(b'string', b'newer', -1)" not in line]
    assert others == []
    assert sum(report.totals.values()) == sum(_migration(server, tmp_path).backfill(dry_run=True).totals.values())


def test_a_key_that_goes_away_before_its_copy_is_told_as_gone(
    server: EmbeddedServer, client: Clients, tmp_path: Path
) -> None:
    def race(passed: str) -> None:
        if passed == "intended":
            client[5].delete(*(f"indicators:NFO:SYM{n}:rsi" for n in range(100)))

    before = client[5].dbsize()
    report = _migration(server, tmp_path, race).backfill(digests="verify")
    gone = before - client[5].dbsize()
    assert report.exit_code == 0
    assert report.totals.get("expired", 0) <= gone
    assert differences(client) == []


def test_status_and_why_read_a_ledger_whose_batches_are_still_packed(
    server: EmbeddedServer, client: Clients, tmp_path: Path
) -> None:
    migration = _migration(server, tmp_path)
    report = migration.backfill(digests="verify")
    status = migration.status()
    counted = {outcome: sum(step.get(outcome, 0) for step in status.steps.values()) for outcome in report.totals}
    assert counted == report.totals
    (line,) = migration.why("indicators:NFO:SYM0:rsi")
    assert (line.outcome, line.written) == ("copied", b"")
    assert migration.why("ind:ta:NFO:SYM0:rsi") == [line]
    assert set(migration.backfill(dry_run=True).totals) == {"unchanged"}
    migration.verify()
    assert [line.outcome for line in migration.why("indicators:NFO:SYM0:rsi")] == ["copied", "unchanged"]
    counted = {outcome: sum(step.get(outcome, 0) for step in migration.status().steps.values()) for outcome in counted}
    assert counted == report.totals


def test_a_ledger_of_the_first_format_goes_on(server: EmbeddedServer, client: Clients, tmp_path: Path) -> None:
    migration = _migration(server, tmp_path)
    migration.backfill()
    db = apsw.Connection(str(tmp_path / "ledger.db"))
    db.execute("DROP TABLE pack; DROP TABLE undone")
    db.pragma("user_version", 1)
    db.close()
    assert migration.status().steps["volume"] == {"copied": 120}
    client[5].set("indicators:NFO:LATER:rsi", "later")
    report = migration.backfill(digests="verify")
    assert report.totals["copied"] == 1 and report.totals["unchanged"] > 500
    with Ledger.open(tmp_path / "ledger.db"):
        pass
    db = apsw.Connection(str(tmp_path / "ledger.db"))
    assert db.pragma("user_version") == FORMAT
    db.close()
