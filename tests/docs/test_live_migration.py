"""The runbook: its commands run in their order against a server, and its client is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests.conftest import ROOT
from tests.docs.shell import run_blocks

from onetape.embedded import EmbeddedServer, server_binaries
from onetape.migrate.phases.phase import Phase

PAGE = ROOT / "docs" / "live_migration.md"


@pytest.fixture
def server_with_log() -> Iterator[EmbeddedServer]:
    if not server_binaries():
        pytest.skip("no Redis-compatible server on this machine")
    with EmbeddedServer(options={"appendonly": "yes"}) as server:
        yield server


def test_the_runbook_leads_through_all_phases(server_with_log: EmbeddedServer, tmp_path: Path) -> None:
    port = server_with_log.port
    for db, key in ((5, "indicators:NSE:RELIANCE:rsi"), (0, "session:1"), (2, "volume_state:256265")):
        with redis.Redis(port=port, db=db) as plain:
            plain.set(key, "61.5")
    with redis.Redis(port=port, db=0) as plain:
        plain.xadd("ticks:NSE:INFY", {"last_price": 1, "timestamp": 1_700_000_000_000})
    (python,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    code = python.replace('host="localhost"', f"port={port}") + "r.close()\n"
    exec(compile(code, PAGE.name, "exec"), {})
    assert run_blocks(PAGE, tmp_path, ONETAPE_REDIS_URL=server_with_log.url) >= 7
    with redis.Redis(port=port, db=1) as new:
        assert new.get("ind:ta:NSE:RELIANCE:rsi") == b"61.5"
        assert new.xlen("ticks:NSE:INFY") == 1
    for db in (0, 2, 5):
        with redis.Redis(port=port, db=db) as old:
            assert old.dbsize() == 0


def test_every_phase_is_on_the_page() -> None:
    text = PAGE.read_text()
    for phase in Phase:
        assert phase in text
