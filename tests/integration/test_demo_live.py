"""`onetape demo --migrate`: all phases and back from each under writers and readers, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.test_demo import environment

from onetape.embedded import server_binaries

pytestmark = pytest.mark.skipif(not server_binaries(), reason="no Redis-compatible server on this machine")


def test_a_live_system_goes_through_all_phases_and_back_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "onetape", "demo", "--migrate", "--json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["nothing_lost"] is True
    assert found["check"]["lost"] == found["check"]["doubled"] == 0
    assert found["check"]["counters"] > 40 and found["check"]["numbers"] > 500 and found["check"]["deletions"] > 50
    assert found["check"]["ticks_on_tape"] > 100
    assert found["phases"] == [
        "dual_writing", "planned", "dual_writing", "backfilled", "dual_writing", "backfilled", "verified",
        "backfilled", "verified", "reads_switched", "verified", "reads_switched", "cut_over", "reads_switched",
        "cut_over", "finished",
    ]  # fmt: skip
    assert all(not reader["back"] and reader["reads"] > 100 for reader in found["readers"])
    assert sum(reader["client"]["stats"]["new_reads"] for reader in found["readers"]) > 100
    clients = [client for writer in found["writers"] for client in writer.values()]
    assert all(client["phase"] == "finished" and client["lost"] == 0 for client in clients)
    assert (tmp_path / "demo-migration" / "market_data.db").is_file()
