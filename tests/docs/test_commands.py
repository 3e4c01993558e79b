"""docs/commands.md: every command has help, a section and an example, and every example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tests.conftest import ROOT

from onetape.cli.app import app
from onetape.config import Settings
from onetape.embedded import EmbeddedServer
from onetape.importing.names import BAR_NAMES, TICK_NAMES

PAGE = ROOT / "docs" / "commands.md"


def _commands() -> list[str]:
    root = typer.main.get_command(app)
    found = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found += [f"{name} {sub}" for sub in below] if below else [name]
    return found


def test_every_command_has_a_section_with_an_example() -> None:
    text = PAGE.read_text()
    for name in _commands():
        section = re.search(rf"^## onetape {name}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
        assert section, f"docs/commands.md has no section '## onetape {name}'"
        assert re.search(rf"^\s*onetape {name}\b", section[1], re.M), f"no example of onetape {name}"


def test_every_command_and_option_explains_itself() -> None:
    root = typer.main.get_command(app)
    for name in _commands():
        command = root
        for part in name.split():
            command = command.commands[part]  # type: ignore[attr-defined]
        assert command.help, f"onetape {name} has no help"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"onetape {name}: {parameter.name} has no help"


def test_every_setting_and_usual_name_is_in_the_page() -> None:
    text = PAGE.read_text()
    for name in Settings.model_fields:
        assert f"| `{name}` | `ONETAPE_{name.upper()}`" in text
    for names in (TICK_NAMES, BAR_NAMES):
        for field in names:
            assert field in text
    for field in ("symbol", "ts_event_ns", "price", "size", "volume", "ts_recv_ns"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{field}` |"))
        missing = [name for name in TICK_NAMES[field] if not re.search(rf"\b{name}\b", row.split("|", 2)[2])]
        assert not missing, f"{field}: {missing}"


@pytest.mark.slow
def test_every_example_runs(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    import redis

    old = redis.Redis(port=fresh_server.port, db=5)
    old.set("indicators:NSE:RELIANCE:rsi", "61.5", ex=3600)
    old.set("indicators:NSE:TCS:delta", "0.5")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "onetape").write_text(f'#!/bin/sh\nexec {sys.executable} -m onetape "$@"\n')
    (binaries / "onetape").chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    environment = {
        "PATH": f"{binaries}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT / "src"),
        "ONETAPE_REDIS_URL": f"redis://localhost:{fresh_server.port}",
        "LC_ALL": "C.UTF-8",
        "HOME": str(tmp_path),
    }
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) > 10
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "warning" not in done.stderr.lower(), done.stderr
    assert redis.Redis(port=fresh_server.port, db=1).get("ind:ta:NSE:RELIANCE:rsi") == b"61.5"
