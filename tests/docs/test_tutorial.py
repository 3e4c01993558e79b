"""The tutorial: its blocks run in their order, and what it says of their output is so."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.docs.shell import run_blocks

import onetape

PAGE = ROOT / "docs" / "tutorial.md"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[None]:
    """End what the page has put into the background, also where a block of it failed."""
    yield
    told = tmp_path / "place" / "serve.pid"
    if told.exists():
        with contextlib.suppress(OSError, ValueError):
            process = int(told.read_text())
            if b"onetape" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)


@pytest.mark.usefixtures("served")
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_tutorial_leads_to_a_system_that_survives_a_kill(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = tmp_path / PAGE.name
    page.write_text(re.sub(r"\b8080\b", str(port), PAGE.read_text()))
    assert run_blocks(page, tmp_path) >= 10
    with onetape.open(tmp_path / "place" / "market_data.db", mode="r") as tape:
        for symbol in ("ESZ6", "NQZ6"):
            prices = tape.read(symbol, 0, 2**62).column("price").to_pylist()
            assert len(prices) == 18_000
        assert tape.read("ESZ6", 0, 2**62).column("price").to_pylist() == prices, "the same trades, in the same order"
