"""kill -9 of a migrator at every step of a batch: what follows is a run that converges, and nothing is there twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.legacy_keys import clients, differences, fill

import onetape
from onetape.embedded import EmbeddedServer
from onetape.migrate import Migration

_RUN = """
import sys
import onetape
from onetape.migrate import Migration
with onetape.open(sys.argv[2] + "/tape.db") as tape:
    Migration(sys.argv[1], ledger_path=sys.argv[2] + "/ledger.db", tape=tape).backfill()
"""
#: Every point at which something was just sent, written or learned, and how often it is passed before the kill.
POINTS = [
    *(f"{point}:{n}" for point in ("read", "intended", "acted") for n in (1, 2, 3, 5, 8)),
    *(f"recorded:{n}" for n in (1, 2, 3, 5)),
    *(f"landed:{n}" for n in (1, 3, 20)),
    *(f"merged:{n}" for n in (1, 3, 5)),
]


def _killed(server: EmbeddedServer, directory: Path, point: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, server.url, str(directory)],
        env={**os.environ, "ONETAPE_KILL_AT": point},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.mark.parametrize("point", POINTS)
def test_a_run_after_a_kill_converges_with_nothing_doubled(server: EmbeddedServer, tmp_path: Path, point: str) -> None:
    client = clients(server.port)
    fill(client, 1000)  # enough for eight groups
    _killed(server, tmp_path, point)
    # The legacy writers go on between the kill and the next run.
    client[2].rpush("volume_averages:NFO:S3", "later")
    client[5].set("indicators:NFO:SYM7:unheard_of", "moved on")
    client[0].xadd("ticks:NFO:S1", {"last_price": 7, "volume": 1}, id="1700001000000-0")
    with onetape.open(tmp_path / "tape.db") as tape:
        migration = Migration(server.url, ledger_path=tmp_path / "ledger.db", tape=tape)
        report = migration.backfill()
        assert report.exit_code == 0, report.errors
        assert differences(client) == []
        assert len(tape.read("NFO:S1", "2023-01-01", "2024-01-01")) == 61
        assert len(tape.read("NFO:H4", "2023-01-01", "2024-01-01")) == 20
        assert migration.verify(pause_s=0.1).verdict == "converged"
        again = migration.backfill()
        assert set(again.totals) == {"unchanged"} and again.ticks_landed == 0


def test_kill_after_kill_after_kill_converges(server: EmbeddedServer, tmp_path: Path) -> None:
    client = clients(server.port)
    fill(client)
    for point in ("acted:1", "intended:1", "acted:1", "intended:2", "read:4", "recorded:2", "merged:1"):
        _killed(server, tmp_path, point)
        client[5].set("indicators:NFO:SYM0:rsi", point)
    with onetape.open(tmp_path / "tape.db") as tape:
        report = Migration(server.url, ledger_path=tmp_path / "ledger.db", tape=tape).backfill()
    assert report.exit_code == 0, report.errors
    assert differences(client) == []


def test_the_ledger_of_a_killed_migrator_is_free_at_once(server: EmbeddedServer, tmp_path: Path) -> None:
    fill(clients(server.port), 10)
    _killed(server, tmp_path, "intended:1")
    migration = Migration(server.url, ledger_path=tmp_path / "ledger.db")
    assert "intended" in str(migration.status().steps)
    assert migration.backfill().exit_code == 0
    assert "intended" not in str(migration.status().steps)
