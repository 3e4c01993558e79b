"""`onetape demo` as a newcomer runs it: verified, repeatable, honest about its data, and gone without a trace."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis

import onetape
from onetape.embedded import EmbeddedServer, server_binaries

SMALL = ("--ticks", "4000", "--symbols", "50")
SOURCE = Path(onetape.__file__).parent.parent

pytestmark = pytest.mark.skipif(not server_binaries(), reason="no Redis-compatible server on this machine")


def environment(samples: Path | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONETAPE_")}
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "ONETAPE_SAMPLE_DATA": str(samples or "/nowhere")}


def start(folder: Path, *options: str, samples: Path | None = None, group: bool = False) -> subprocess.Popen[str]:
    # Where tests run in the background SIGINT may be ignored, and a child would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "onetape", "demo", *SMALL, *options],
        cwd=folder,
        env=environment(samples),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
    )


def run(folder: Path, *options: str, samples: Path | None = None) -> tuple[int, str, str]:
    process = start(folder, *options, samples=samples)
    out, err = process.communicate(timeout=150)
    return process.returncode, out, err


def measured(folder: Path, *options: str, samples: Path | None = None) -> dict[str, Any]:
    code, out, err = run(folder, "--json", *options, samples=samples)
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_newcomer_sees_a_verified_tape_and_commands_that_work(tmp_path: Path) -> None:
    code, out, err = run(tmp_path)
    assert (code, err) == (0, "")
    assert "simulator (seed 1), not from a market" in out
    assert "Verdict: converged." in out
    assert "It copied no key and put no tick on the tape." in out
    assert "\x1b" not in out  # a pipe gets no colours
    assert max(map(len, out.splitlines())) < 140
    folder = tmp_path / "demo-data"
    assert (folder / "market_data.db").is_file() and list(folder.glob("migration_report_*.json"))
    reports = re.findall(r"\S*migration_report_\S+\.json", out)
    assert reports and all((tmp_path / report).is_file() for report in reports)
    commands = [line.strip() for line in out.splitlines() if re.match(r"   \S.* -m onetape ", line)]
    assert len(commands) == 6
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and done.stdout, (command, done.stderr)


def test_every_number_is_there_for_machines_too_and_adds_up(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert found["verified"] is True
    assert found["verification"]["verdict"] == "converged"
    legacy = found["legacy"]
    assert (legacy["symbols"], legacy["ticks_real"], legacy["ticks_simulated"]) == (50, 0, 4000)
    assert legacy["ticks_in_streams"] + legacy["ticks_in_hashes"] == 4000
    assert [run["name"] for run in found["backfills"]] == ["backfill", "catch-up", "last backfill", "second backfill"]
    repeat = found["backfills"][-1]
    assert repeat["ticks_landed"] == 0
    assert all(set(outcomes) <= {"unchanged"} for outcomes in repeat["steps"].values())
    proof = found["proof"]
    assert proof["missing"] == [] and proof["legacy_ticks"] == 4000 and proof["stream_writes"] > 0
    with onetape.open(tmp_path / "demo-data" / "market_data.db", mode="r") as tape:
        assert tape.stats().ticks == found["tape"]["ticks"] == 4000 + proof["live_ticks"]
    assert sum(map(len, found["plan"]["unmatched"].values())) >= 7


def test_a_second_run_replaces_the_first_and_says_so(tmp_path: Path) -> None:
    measured(tmp_path, "--keep", "mine")
    code, out, _err = run(tmp_path, "--keep", "mine")
    assert code == 0
    assert re.search(r"mine/ holds the \d+ files of the run of", out)
    assert len(list((tmp_path / "mine").glob("migration_report_*.json"))) < 10


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo-data").mkdir()
    mine = tmp_path / "demo-data" / "market_data.db"
    mine.write_bytes(b"a tape of somebody")
    code, out, err = run(tmp_path)
    assert (code, out) == (2, "")
    assert "not the demo's" in err and len(err.splitlines()) == 1
    assert mine.read_bytes() == b"a tape of somebody"


def test_real_ticks_are_used_and_counted_apart(tmp_path: Path, sample_data: Path) -> None:
    found = measured(tmp_path, samples=sample_data)
    assert found["verified"] is True
    assert found["legacy"]["ticks_real"] > 2000
    assert found["legacy"]["ticks_real"] + found["legacy"]["ticks_simulated"] == 4000


def test_the_demo_runs_on_a_server_of_the_users_and_refuses_one_with_data(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    found = measured(tmp_path, "--server", server.url)
    assert found["verified"] is True
    target = redis.Redis(port=server.port, db=1)
    assert target.dbsize() > 1000
    code, _out, err = run(tmp_path, "--server", server.url, "--keep", "other")
    assert code == 2 and "holds" in err and "keys" in err
    assert target.dbsize() > 1000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_it_and_leaves_no_process(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path, "--ticks", "60000")
    pids = wait_for_children(process, 2)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == code
    wait_until_gone(pids)


@pytest.mark.parametrize("seconds", [0.8, 1.6, 2.4])
def test_ctrl_c_in_a_terminal_reaches_all_processes_at_once_and_ends_them(tmp_path: Path, seconds: float) -> None:
    process = start(tmp_path, "--ticks", "60000", group=True)
    pids = wait_for_children(process, 1)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "")
    wait_until_gone(pids)


def test_a_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path, "--ticks", "60000")
    pids = wait_for_children(process, 2)
    process.kill()
    process.communicate(timeout=120)
    wait_until_gone(pids)


def test_a_demo_that_cannot_be_proven_fails_and_says_why(tmp_path: Path, server: EmbeddedServer) -> None:
    """A writer nobody told of writes to the target: the migration keeps what it wrote, and the demo is not verified."""
    process = start(tmp_path, "--server", server.url)
    target = redis.Redis(port=server.port, db=1)
    deadline = time.monotonic() + 60
    while not target.exists("sys:health:feed"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    target.hset("sys:health:feed", "status", "written by somebody newer")
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "not verified" in err and "sys:health:feed" in err


def wait_for_children(process: subprocess.Popen[str], count: int) -> list[int]:
    """Return the process ids of the demo's server and writers, once both run."""
    deadline = time.monotonic() + 60
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while True:
        found = [int(pid) for pid in path.read_text().split()]
        if len(found) >= count:
            return found
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process outlived the demo"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
