"""What a watcher sees of a live migration: phase, progress, clients, mirror, and the same as metrics."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest
import redis
from tests import mirroring as m

from onetape.embedded import EmbeddedServer
from onetape.errors import ConfigInvalid
from onetape.migrate import Migration
from onetape.migrate.phases import published
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.state import Names
from onetape.migrate.watching import metrics
from onetape.migrate.watching.view import Viewer
from onetape.migrate.wire.endpoint import Endpoint
from onetape.progress import Progress

NAMES = Names.of(m.PLAN)


def helm(server: EmbeddedServer, place: Path) -> Helm:
    return Helm(server.url, m.PLAN, place / "ledger")


def test_a_view_before_anything_began_says_planned_and_no_more(server: EmbeddedServer, tmp_path: Path) -> None:
    with Viewer(helm(server, tmp_path)) as viewer:
        view = viewer.view()
    assert (view.phase, view.state, view.trouble, view.clients, view.steps) == ("planned", None, "", (), {})
    assert json.loads(json.dumps(view.to_dict()))["phases"][-1] == "finished"


def test_a_view_tells_clients_that_are_late_or_silent(server: EmbeddedServer, tmp_path: Path) -> None:
    m.begin(server.url)
    client = redis.Redis(port=server.port, db=1)
    now_ms = int(time.time() * 1000)
    beat = {"name": "feed", "kind": "writer", "version": 1, "at_ms": now_ms}
    reader = {"kind": "reader", "version": 0, "at_ms": now_ms - 60_000, "new_reads": 90, "old_fallbacks": 10}
    client.hset(NAMES.clients, "a", json.dumps(beat))
    client.hset(NAMES.clients, "b", json.dumps({**reader, "fallback_rate_60s": 0.1, "switched_60s": 100}))
    client.hset(NAMES.clients, "c", b"\xff not json")
    client.hset(NAMES.diverged, b"5:old:\xff", b"{}")
    with Viewer(helm(server, tmp_path)) as viewer:
        view = viewer.view()
    assert view.phase == "dual_writing" and view.diverged == 1
    assert view.late == ("b", "c") and view.silent == ("b", "c")
    assert view.reads.new_reads == 90 and view.reads.fallback_rate == pytest.approx(0.1)
    text = metrics.text(view)
    assert 'onetape_migration_phase{phase="dual_writing"} 1.0' in text
    assert "onetape_migration_clients_late 2.0" in text and "onetape_migration_reads_fallback_total 10.0" in text


def test_a_command_at_work_is_seen_with_its_rate_and_why_it_stands_still(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    m.begin(server.url)

    class Slowed:
        reason = "the market opens"

        def waited(self) -> dict[str, float]:
            return {"market": 3.21}

    told = published.Publisher(lambda: Endpoint.connect(server.url), NAMES, "backfill", Slowed())
    with Viewer(helm(server, tmp_path)) as viewer:
        with told:
            told(Progress("values", 50, 200, 5.0, 10.0, 15.0))
            deadline_s = time.monotonic() + 60
            while (view := viewer.view()).progress is None or view.progress.done == 0:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
        assert view.progress.command == "backfill" and view.progress.reason == "the market opens"
        assert view.progress.waited == {"market": 3.2}
        assert 'throttled_seconds{reason="market"} 3.2' in metrics.text(view)
        assert viewer.view().progress is None  # it took its word back
    assert redis.Redis(port=server.port, db=1).keys("onetape:*progress") == []


def test_a_backfill_and_a_verify_of_a_live_migration_tell_where_they_are(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.Redis(port=server.port, db=5).mset({f"old:{i}": i for i in range(500)})
    migration = Migration(server.url, plan=m.PLAN, ledger_path=tmp_path / "ledger")
    migration.start(execute=True)
    seen: list[published.At] = []
    real = published.publish
    monkeypatch.setattr(published, "publish", lambda e, n, at: (seen.append(at), real(e, n, at)))
    monkeypatch.setattr(published, "_EVERY_S", 0.01)
    migration.backfill()
    assert {at.command for at in seen} == {"backfill"}
    migration.verify(pause_s=0.05)
    assert {at.command for at in seen} == {"backfill", "verify"}
    with Viewer(migration.helm) as viewer:
        view = viewer.view()
    assert view.outcomes == {"copied": 500} and view.verdict == "converged"


def test_a_view_without_a_server_says_so_and_what_the_ledger_knows(
    fresh_server: EmbeddedServer, tmp_path: Path
) -> None:
    redis.Redis(port=fresh_server.port, db=5).set("old:a", 1)
    migration = Migration(fresh_server.url, plan=m.PLAN, ledger_path=tmp_path / "ledger")
    migration.start(execute=True)
    migration.backfill()
    with Viewer(migration.helm) as viewer:
        assert viewer.view().trouble == ""
        fresh_server.kill()
        view = viewer.view()
        assert "lost" in view.trouble or "reached" in view.trouble
        assert view.phase == "backfilled" and view.outcomes == {"copied": 1}
        assert "onetape_migration_up 0.0" in metrics.text(view)
        fresh_server.start()
        assert "forgotten" in viewer.view().trouble


def test_a_mirror_at_work_is_in_the_view(server: EmbeddedServer, tmp_path: Path) -> None:
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running, Viewer(helm(server, tmp_path)) as viewer:
        redis.Redis(port=server.port, db=5).set("old:a", 1)
        running.until(lambda: running.now.copied == 1)
        view = viewer.view()
    assert view.mirror is not None and view.mirror["copied"] == 1 and "token" not in view.mirror
    assert view.state is not None and view.state.mirrored
    assert "onetape_migration_mirror_copied_total 1.0" in metrics.text(view)


def test_metrics_are_served_on_this_machine_alone(server: EmbeddedServer, tmp_path: Path) -> None:
    m.begin(server.url)
    with Viewer(helm(server, tmp_path)) as viewer, metrics.Served(viewer.view, 0) as served:
        url = f"http://127.0.0.1:{served.port}/metrics"
        for _ in range(2):
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert b"onetape_migration_version 1.0" in answer.read()
        with pytest.raises(ConfigInvalid, match="metrics"):
            metrics.Served(viewer.view, served.port)
