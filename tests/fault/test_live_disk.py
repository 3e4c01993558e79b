"""A disk that fills under the ledger, in every command that writes to it: it says so, and the next run converges."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fault.live_storm import new_name, operating, storming
from tests.fault.test_live_kills import COMMANDS, again, carried_back, converged, strangers
from tests.unit.migrate.live_system import PLAN, LiveSystem

from onetape.embedded import EmbeddedServer
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def fill_but(disk: Path, free: int) -> Path:
    """Leave that many bytes free."""
    stat = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"x" * max(0, stat.f_bavail * stat.f_frsize - free))
    return filler


@pytest.mark.parametrize("free", [0, 16_384, 65_536])
@pytest.mark.parametrize(
    "command", ["start", "backfill", "verify", "cutover", "repair", "rollback reads_switched", "finish"]
)
@pytest.mark.parametrize("server_of_session", ["valkey"], indirect=True)
def test_a_full_disk_ends_a_command_and_never_the_data(
    server: EmbeddedServer, disk: Path, command: str, free: int
) -> None:
    live = LiveSystem(server, disk)
    live.fill()
    for i in range(3000):
        live.old.set(f"indicators:M{i}:with_a_name_that_takes_some_room_in_a_ledger", "x" * 20)
    before = Phase.VERIFIED if command == "repair" else COMMANDS[command][0]
    after = Phase.VERIFIED if command == "repair" else COMMANDS[command][1]
    live.to(before)
    with storming(live, 1) as storm:
        if command == "rollback reads_switched":
            strangers(live)
        if command == "repair":
            for i in range(0, 3000, 3):
                live.new.set(f"ind:M{i}:with_a_name_that_takes_some_room_in_a_ledger", os.urandom(300))
        filler = fill_but(disk, free)
        with operating(live, command) as operator:
            name, _code, told = operator.join()
        assert name in ("done", "LedgerUnusable"), (name, told)
        if name != "done":
            assert "disk is full" in told or "disk I/O" in told or "full" in told, told
        storm.more(2)
        filler.unlink()
        live.new.delete(Names.of(PLAN).operator)
        again(live, command)
        assert live.phase is after
        storm.more(2)
    if after is Phase.FINISHED:
        storm.expect(live.new, new_name)
        return
    if command == "rollback reads_switched":
        carried_back(live)
    converged(live, storm)
