"""docs/commands: every command has help and a page, and every example of every page runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from tests.conftest import ROOT
from tests.docs.shell import run_blocks

from onetape.cli.app import app
from onetape.config import Settings
from onetape.embedded import EmbeddedServer
from onetape.importing.names import BAR_NAMES, TICK_NAMES

FOLDER = ROOT / "docs" / "commands"
PAGES = sorted(path.name for path in FOLDER.glob("*.md"))


def _commands() -> list[str]:
    root = typer.main.get_command(app)
    found = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found += [f"{name} {sub}" for sub in below] if below else [name]
    return found


def _sections(text: str) -> dict[str, str]:
    """What stands below each heading `onetape …`, examples of bash alone: {"alias add": "…"}."""
    parts = re.split(r"^#{1,2} onetape (.+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", _commands())
def test_every_command_has_a_page_with_an_example(name: str) -> None:
    page = FOLDER / f"{name.split()[0]}.md"
    assert page.exists(), f"no docs/commands/{page.name}"
    text = page.read_text()
    assert text.startswith(f"# onetape {name.split()[0]}\n")
    assert name in _sections(text), f"{page.name} has no heading 'onetape {name}'"
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    assert any(re.search(rf"\bonetape {name}(?=\s|$)", block, re.M) for block in blocks), f"no example of {name}"


def test_every_page_is_of_a_command_and_in_the_index() -> None:
    index = (FOLDER / "README.md").read_text()
    known = {name.split()[0] for name in _commands()}
    for page in PAGES:
        if page != "README.md":
            assert page.removesuffix(".md") in known, f"docs/commands/{page} is of no command"
            assert f"]({page})" in index, f"docs/commands/README.md does not lead to {page}"


@pytest.mark.parametrize("name", _commands())
def test_every_command_and_option_explains_itself(name: str) -> None:
    command = typer.main.get_command(app)
    for part in name.split():
        command = command.commands[part]  # type: ignore[attr-defined]
    assert command.help, f"onetape {name} has no help"
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"onetape {name}: {parameter.name} has no help"


def test_every_option_that_a_page_names_exists() -> None:
    root = typer.main.get_command(app)
    known = {"--version", "--debug", "--install-completion", "--help", "--keep"}  # the last is of gzip
    for name in _commands():
        command = root
        for part in name.split():
            command = command.commands[part]  # type: ignore[attr-defined]
        known |= {text for one in command.params for text in (*one.opts, *one.secondary_opts)}
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (FOLDER / page).read_text()))
        assert named <= known, f"{page}: {sorted(named - known)}"


def test_every_setting_is_in_the_index_and_every_usual_name_in_the_page_of_import() -> None:
    index = (FOLDER / "README.md").read_text()
    for name in Settings.model_fields:
        assert f"| `{name}` | `ONETAPE_{name.upper()}`" in index
    text = (FOLDER / "import.md").read_text()
    for names in (TICK_NAMES, BAR_NAMES):
        for field in names:
            assert field in text
    for field in ("symbol", "ts_event_ns", "price", "size", "volume", "ts_recv_ns"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{field}` |"))
        missing = [name for name in TICK_NAMES[field] if not re.search(rf"\b{name}\b", row.split("|", 2)[2])]
        assert not missing, f"{field}: {missing}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "migrate.md"])
def test_every_example_of_a_page_runs_in_an_empty_directory(page: str, tmp_path: Path) -> None:
    assert run_blocks(FOLDER / page, tmp_path) > 0


def test_every_example_of_migrate_runs_against_a_server(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    import redis

    old = redis.Redis(port=fresh_server.port, db=5)
    old.set("indicators:NSE:RELIANCE:rsi", "61.5", ex=3600)
    old.set("indicators:NSE:TCS:delta", "0.5")
    old.close()  # whoever uses the old databases keeps a cutover from being made
    url = f"redis://localhost:{fresh_server.port}"
    assert run_blocks(FOLDER / "migrate.md", tmp_path, ONETAPE_REDIS_URL=url) >= 15
    assert redis.Redis(port=fresh_server.port, db=1).get("ind:ta:NSE:RELIANCE:rsi") == b"61.5"
    assert redis.Redis(port=fresh_server.port, db=5).dbsize() == 0
