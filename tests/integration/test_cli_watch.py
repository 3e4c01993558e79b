"""onetape migrate mirror, watch and metrics as an operator runs them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from tests import mirroring as m

from onetape.embedded import EmbeddedServer

PLAN = """
name = "mirrored"
[[rule]]
step = "values"
source_db = 5
pattern = "old:{name}"
target = "new:{name}"
"""


@pytest.fixture
def place(tmp_path: Path, fresh_server: EmbeddedServer) -> Path:
    (tmp_path / "plan.toml").write_text(PLAN)
    (tmp_path / "onetape.toml").write_text(f'redis_url = "{fresh_server.url}"\nplan = "plan.toml"\n')
    from onetape.migrate.plans.plan import Plan

    m.begin(fresh_server.url, Plan.load(tmp_path / "plan.toml"))
    return tmp_path


def start(place: Path, *args: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "onetape", "migrate", *args]
    return subprocess.Popen(  # type: ignore[call-overload]
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run(place: Path, *args: str, code: int = 0) -> str:
    process = start(place, *args)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    return out + err


def test_a_mirror_follows_until_it_is_terminated_and_says_what_it_did(
    place: Path, fresh_server: EmbeddedServer
) -> None:
    old, new = redis.Redis(port=fresh_server.port, db=5), redis.Redis(port=fresh_server.port, db=1)
    process = start(place, "mirror", "--no-tape", "--metrics-port", "0")
    deadline_s = time.monotonic() + 60
    i = 0
    while new.get("new:a") != b"%d" % i:
        assert time.monotonic() < deadline_s
        i += 1
        old.set("old:a", i)
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "mirror old to new" in out and "kept 0" in out
    assert "http://127.0.0.1:" in err
    assert (place / "market_data.db.ledger.mirror").exists()


def test_a_mirror_that_keeps_a_newer_key_ends_with_code_3(place: Path, fresh_server: EmbeddedServer) -> None:
    redis.Redis(port=fresh_server.port, db=5).set("old:a", 1)
    redis.Redis(port=fresh_server.port, db=1).set("new:a", 2)
    told = run(place, "mirror", "--no-tape", "--once", "--no-hints", code=3)
    assert "1 keys differ and were kept" in told or "--repair" in told


def test_a_mirror_without_a_live_migration_is_refused(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    told = run(tmp_path, "mirror", "--no-tape", "--redis", fresh_server.url, code=2)
    assert "onetape migrate start" in told


def test_a_watch_in_a_pipe_writes_lines_and_ends_with_its_reader(place: Path) -> None:
    process = start(place, "watch", "--every", "0.2")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    process.stdout.close()
    assert process.wait(60) == 0
    assert all("dual_writing" in line for line in lines)


def test_a_watch_as_json_and_once(place: Path) -> None:
    view = json.loads(run(place, "watch", "--once", "--json"))
    assert view["phase"] == "dual_writing" and view["state"]["version"] == 1
    assert "[dual writing]" in run(place, "watch", "--once")
    assert 'phase="dual_writing"} 1.0' in run(place, "metrics")


def test_a_watch_without_a_server_says_so_and_fails(place: Path, fresh_server: EmbeddedServer) -> None:
    fresh_server.kill()
    assert "cannot be reached" in run(place, "watch", "--once", code=1)


def test_a_watch_on_a_terminal_draws_a_screen_and_gives_it_back(place: Path, fresh_server: EmbeddedServer) -> None:
    redis.Redis(port=fresh_server.port, db=1).hset(
        "onetape:migration:mirrored:clients", "x", json.dumps({"name": "evil\x1b[2J[bold]name", "version": 0})
    )
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "onetape", "migrate", "watch", "--every", "0.2"],
        cwd=place, stdout=follower, stderr=follower, stdin=follower, env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(follower)
    seen = b""
    deadline_s = time.monotonic() + 60
    while seen.count(b"dual writing") < 3:
        assert time.monotonic() < deadline_s
        seen += os.read(leader, 65536)
    process.send_signal(signal.SIGINT)
    try:
        while part := os.read(leader, 65536):
            seen += part
    except OSError:
        pass
    assert process.wait(60) == 130
    assert b"\x1b[?1049h" in seen and b"\x1b[?1049l" in seen  # the other screen, and back
    assert b"\\x1b[2J[bold]name" in seen
