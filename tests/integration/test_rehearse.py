"""A rehearsal: all phases on a private copy, killed at every step, with writers at work; the original stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from onetape.embedded import EmbeddedServer
from onetape.errors import ConfigInvalid
from onetape.migrate.rehearse import Options, rehearse

PLAN = """
name = "tried"
[[rule]]
step = "values"
source_db = 5
pattern = "old:{name}"
target = "new:{name}"
[[rule]]
step = "ticks"
source_db = 0
pattern = "ticks:{symbol}"
kind = "ticks"
types = ["stream"]
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return str(path)


def filled(server: EmbeddedServer) -> redis.Redis:
    old = redis.Redis(port=server.port, db=5)
    old.mset({f"old:{i}": b"%d" % i * 4000 for i in range(700)})  # so much that big keys go in slices
    old.sadd("old:many", *range(60_000))
    old.set(b"old:\xff", "x", pxat=4_000_000_000_123)
    old.set("nobody:knows", 1)
    for i in range(20):
        redis.Redis(port=server.port).xadd("ticks:A", {"last_price": i}, id=f"{1_700_000_000_000 + i}-0")
    return old


def everything(server: EmbeddedServer) -> dict[tuple[int, bytes], bytes]:
    found = {}
    for db in (0, 1, 5):
        client = redis.Redis(port=server.port, db=db)
        found.update({(db, key): client.dump(key) for key in client.scan_iter()})
    return found


def test_a_rehearsal_passes_under_kills_and_leaves_the_original_alone(
    fresh_server: EmbeddedServer, plan: str, tmp_path: Path
) -> None:
    filled(fresh_server)
    redis.Redis(port=fresh_server.port, db=1).set("new:there", "before")
    before = everything(fresh_server)
    (tmp_path / "place").mkdir()
    found = rehearse(plan, tmp_path / "place", url=fresh_server.url)
    assert found.problems == ()
    assert found.exit_code == 0
    assert everything(fresh_server) == before
    assert found.kills >= 15
    assert found.counted is not None and found.counted.writes > 100 and not found.counted.wrong
    assert found.unmatched == {"5": 1}
    told = found.estimate
    assert told is not None
    assert (told.keys, told.steps) == (703, {"values": 702, "ticks": 1})
    assert told.memory_factor > 1 and told.keys_per_s > 0
    big = found.biggest[0]
    assert (big.key, big.type, big.sliced) == ("old:many", "set", True)
    json.dumps(found.to_dict())


def test_an_rdb_file_is_rehearsed_without_its_server(fresh_server: EmbeddedServer, plan: str, tmp_path: Path) -> None:
    filled(fresh_server)
    redis.Redis(port=fresh_server.port, db=1).set("onetape:migration:tried", "left by an earlier one")
    redis.Redis(port=fresh_server.port).save()
    saved = fresh_server.directory / "dump.rdb"
    held = saved.read_bytes()
    fresh_server.kill()
    (tmp_path / "place").mkdir()
    found = rehearse(plan, tmp_path / "place", rdb=saved, options=Options(kills=False, writers=False))
    assert found.problems == () and found.loaded.keys == 704
    assert saved.read_bytes() == held


def test_a_share_of_the_keys_gives_an_estimate_for_all(fresh_server: EmbeddedServer, plan: str, tmp_path: Path) -> None:
    filled(fresh_server)
    (tmp_path / "place").mkdir()
    options = Options(scale=10, kills=False, writers=False, keys_per_s_paced=100)
    found = rehearse(plan, tmp_path / "place", url=fresh_server.url, options=options)
    assert found.estimate is not None
    assert 60 <= found.loaded.keys <= 75 and 600 <= found.estimate.keys <= 750
    assert found.estimate.seconds_paced["backfill"] >= 6


@pytest.mark.parametrize("content", [b"", b"no such thing", b"REDIS9999" + b"\xff" * 40])
def test_a_file_that_is_none_is_refused_by_name(content: bytes, plan: str, tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(content)
    with pytest.raises(ConfigInvalid, match=r"dump\.rdb"):
        rehearse(plan, tmp_path, rdb=path)


def test_what_the_real_run_would_be_refused_for_is_named_first(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    old = redis.Redis(port=fresh_server.port, db=5)
    old.mset({"a:1": 1, "b:1": 2})
    path = tmp_path / "plan.toml"
    rules = "".join(
        f'[[rule]]\nstep = "s"\nsource_db = 5\npattern = "{word}:{{name}}"\ntarget = "new:{{name}}"\n' for word in "ab"
    )
    path.write_text('name = "two to one"\n' + rules)
    found = rehearse(str(path), tmp_path, url=fresh_server.url)
    assert found.exit_code == 2 and "new:1" in found.problems[0]
    assert found.done == ()


def test_the_command_tells_the_steps_and_the_verdict(fresh_server: EmbeddedServer, plan: str, tmp_path: Path) -> None:
    filled(fresh_server)
    command = [sys.executable, "-m", "onetape", "migrate", "rehearse", "--no-kills", "--no-writers", "--plan", plan]
    done = subprocess.run(
        [*command, "--redis", fresh_server.url], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: passed" in done.stdout and "old:many" in done.stdout and "in slices" in done.stdout
