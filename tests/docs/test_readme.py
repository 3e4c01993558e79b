"""Every code block of the README runs, in order, as a newcomer would type them."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import redis
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)


@pytest.fixture
def legacy(fresh_server):
    """A few legacy keys, among them the one the README asks about."""
    state = redis.Redis(port=fresh_server.port, db=2)
    state.hset("volume_state:12345", mapping={"volume": 1000, "last_price": "101.5"})
    state.set("volume_averages:RELIANCE", "17.5", ex=3600)
    state.xadd("ticks:NFO:NIFTY25NOVFUT", {"last_price": "24000.5", "timestamp": "1700000000000"})
    redis.Redis(port=fresh_server.port, db=5).set("indicators:RELIANCE:rsi", "61.2")
    redis.Redis(port=fresh_server.port, db=0).set("session:today", "{}")
    return fresh_server


def test_every_block_of_the_readme_runs(tmp_path, legacy):
    environment = {**os.environ, "ONETAPE_REDIS_URL": legacy.url, "NO_COLOR": "1"}
    environment.pop("ONETAPE_TAPE", None)
    python = "\n".join(code for language, code in BLOCKS if language == "python")
    ran = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "6012.5" in ran.stdout
    commands = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines() if line.strip()]
    assert len(commands) >= 12
    for command in commands:
        words = shlex.split(command)
        if words[0] == "make":
            planned = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert planned.returncode == 0, planned.stderr
            continue
        assert words[0] == "onetape", command
        ran = subprocess.run(
            [sys.executable, "-m", "onetape", *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
        assert ran.stdout.strip(), command
    moved = redis.Redis(port=legacy.port, db=1)
    assert moved.hget("vol:state:12345", "volume") == b"1000"
    assert moved.get("ind:ta:RELIANCE:rsi") == b"61.2"


def test_every_link_of_the_readme_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
