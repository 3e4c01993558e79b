"""A replay on the page: it is paused, moved and sped up from the system page, and where it stands is told there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser.test_page import ARGS, CHROMIUM, PATIENCE_MS, looking
from tests.integration.test_serve import Served, config
from tests.waiting import waited_for

import onetape
from onetape import Tick

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: the page is not looked at")

T0 = 1_763_740_800_000_000_000  # 2025-11-21 16:00 UTC
S = 10**9
CONFIG = """
tape = "live.db"
[services.state]
[[source]]
kind = "replay"
name = "again"
tape = "recorded.db"
speed = 1
paused = true
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with onetape.open(tmp_path / "recorded.db", retention_days=None) as tape:
        tape.append([Tick("ESZ6", T0 + at * S, price=5000 + at % 7, size=1) for at in range(3600)])
    config(tmp_path, CONFIG)
    made = Served(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def test_a_replay_is_moved_and_played_from_the_page(served: Served) -> None:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        with looking(browser, timezone_id="America/New_York") as page:
            missing: list[str] = []
            page.on("response", lambda told: missing.append(told.url) if told.status >= 400 else None)
            page.goto(f"{served.url}/#/system")
            row = page.locator("tr", has_text="again")
            row.get_by_label("Go to a time in again").fill("2025-11-21T11:50:00")  # 16:50 UTC
            row.get_by_label("Speed of again").select_option("60")
            row.get_by_role("button", name="Play").click()
            page.wait_for_function(
                "() => /11:5[0-9]:[0-9]{2}.*60×/.test(document.querySelector('.controls small')?.textContent)",
                timeout=PATIENCE_MS,
            )
            waited_for(lambda: ticks(served) > 30, "the replay goes on")
            page.goto(f"{served.url}/#/chart/ESZ6/1min")
            page.wait_for_function("() => document.querySelector('.canvas')?.dataset.bars > 0", timeout=PATIENCE_MS)
            page.wait_for_timeout(1500)
            assert missing == []  # not even of an order book, which nobody keeps here
        browser.close()
    first = min(one["t_ms"] for one in served.get("/api/v1/ticks?symbol=ESZ6&limit=1000")[1]["ticks"])
    assert first == (T0 + 3000 * S) // 1_000_000


def ticks(served: Served) -> int:
    return sum(one["ticks"] for one in served.get("/api/v1/symbols")[1]["symbols"])
