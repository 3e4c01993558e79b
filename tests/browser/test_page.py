"""The page, looked at closely: nothing of elsewhere, no bar left out on the way back, contrast, focus, shades, a token.

Chromium looks at a real tape that a process of its own serves. Every test fails where the page logs an error, runs into
its Content-Security-Policy, or asks another place for anything.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onetape
from onetape import Tick
from onetape.clock import now_ns
from onetape.record import MINUTE_NS

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: the page is not looked at")

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip(f"no browser at {CHROMIUM}: the page is not looked at", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
#: How long anything may take on the slowest machine, ms.
PATIENCE_MS = 60_000
MS = 1_000_000
BARS = 9000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        made = running.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield made
        made.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with looking(browser) as made:
        yield made


@contextmanager
def looking(browser: Any, **options: Any) -> Iterator[Any]:
    """A page of a fresh browser. What it logs as an error, or asks of another place, fails the test."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_default_timeout(PATIENCE_MS)
    made = context.new_page()
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    made.on("request", lambda asked: wrong.append(asked.url) if "//127.0.0.1:" not in asked.url else None)
    yield made
    context.close()
    assert not wrong


class Child:
    """A process that serves or feeds; it ends with us."""

    def __init__(self, what: str, tape: Path, **options: Any) -> None:
        script = ROOT / "tests" / "browser" / "shown.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script), what, str(tape), json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline().strip()
        assert self._process.poll() is None, "it ended at once"

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def children() -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def start(what: str, tape: Path, **options: Any) -> Child:
        made.append(Child(what, tape, **options))
        return made[-1]

    yield start
    for child in made:
        child.kill()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tape with 9,000 minutes up to now, a gap that is known and a bar that was revised."""
    path = tmp_path_factory.mktemp("page") / "tape.db"
    now = now_ns() // MINUTE_NS * MINUTE_NS
    starts = now - np.arange(BARS, 0, -1) * MINUTE_NS
    starts = starts[(starts < now - 50 * MINUTE_NS) | (starts >= now - 40 * MINUTE_NS)]
    prices = 5000 + np.cumsum(np.random.default_rng(1).integers(-2, 3, len(starts))) / 4
    names = np.full(len(starts), "ESZ6")
    with onetape.open(path, retention_days=None) as tape:
        tape.append_table({"symbol": names, "ts_event_ns": starts, "price": prices, "size": np.ones(len(starts))})
        tape.append([Tick("ESZ6", now - 20 * MINUTE_NS + 5, price=5003.0, size=2.0)])
        tape.append([Tick("NQZ6", now - 3 * MINUTE_NS + at * MINUTE_NS, price=18000.0, size=1.0) for at in range(3)])
        tape.cover("ESZ6", int(starts[0]), now - 50 * MINUTE_NS, source="exchange")
        tape.mark_missing("ESZ6", now - 50 * MINUTE_NS, now - 40 * MINUTE_NS, source="exchange")
        tape.cover("ESZ6", now - 40 * MINUTE_NS, now, source="exchange")
    return path


@pytest.fixture(scope="module")
def address(history: Path) -> Iterator[str]:
    """A server of that tape, rich in everything that a page can show."""
    child = Child("serve", history, port=0, rich=True)
    yield child.said
    child.kill()


def wait(page: Any, condition: str, *facts: Any) -> None:
    """Wait for a condition on `chart`, the facts that the chart tells of itself; `facts` are $0, $1, …"""
    page.wait_for_function(
        "([condition, facts]) => { const node = document.querySelector('.canvas');"
        f" const chart = node?.dataset ?? {{}}; const [$0, $1] = facts; return {condition}; }}",
        arg=[condition, list(facts)], timeout=PATIENCE_MS,
    )  # fmt: skip


def drawn(page: Any) -> list[list[Any]]:
    return page.evaluate("document.querySelector('.canvas').rows()")


def rows_of(path: Path, symbol: str, interval: str) -> list[list[Any]]:
    with onetape.open(path, mode="r") as tape:
        return [
            [bar.ts_start_ns // MS, bar.open, bar.high, bar.low, bar.close, bar.volume, bar.revision]
            for bar in tape.bar_list(symbol, interval)
        ]


def test_scrolling_back_loads_all_of_history_and_keeps_a_bounded_part(page: Any, address: str, history: Path) -> None:
    expected = rows_of(history, "ESZ6", "1min")
    page.goto(f"{address}/#/chart/ESZ6/1min")
    wait(page, "Number(chart.bars) >= 300")
    canvas = page.locator(".canvas")
    canvas.focus()
    for _ in range(10):
        canvas.press("-")
    deadline = time.monotonic() + 60
    while int(canvas.get_attribute("data-first") or 0) > expected[0][0]:
        assert time.monotonic() < deadline
        canvas.press("PageUp")
        page.wait_for_timeout(100)
    wait(page, "Number(chart.bars) <= 6000 && chart.live === 'false'")
    kept = [row[:7] for row in drawn(page)]
    assert kept == expected[: len(kept)]  # none left out, none twice
    while canvas.get_attribute("data-live") != "true":  # and forth again, over what was dropped
        assert time.monotonic() < deadline
        canvas.press("PageDown")
        page.wait_for_timeout(100)
    kept = [row[:7] for row in drawn(page)]
    assert kept == expected[-len(kept) :]


def test_the_theme_is_the_systems_until_another_is_chosen(browser: Any, address: str) -> None:
    for scheme, other in (("dark", "light"), ("light", "dark")):
        with looking(browser, color_scheme=scheme) as page:
            page.goto(address)
            page.wait_for_selector("main[data-page=chart]")
            assert page.locator("html").get_attribute("data-theme") == scheme
            page.locator("#theme").click()
            page.reload()
            assert page.locator("html").get_attribute("data-theme") == other


def test_text_can_be_read_in_both_themes(browser: Any, address: str) -> None:
    for scheme in ("dark", "light"):
        with looking(browser, color_scheme=scheme) as page:
            page.goto(f"{address}/#/system")
            page.wait_for_selector("td")
            ratios = page.evaluate(
                """() => { const probe = document.createElement('i'); document.body.append(probe);
                const light = (name) => { probe.style.color = `var(--${name})`;
                  const [r, g, b] = getComputedStyle(probe).color.match(/[\\d.]+/g).map((part) => part / 255)
                    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
                  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
                return ['text', 'text-2', 'text-3', 'accent', 'up', 'down', 'good', 'warn', 'bad'].flatMap((name) =>
                  ['back', 'surface', 'raised'].map((back) => { const [a, b] = [light(name), light(back)];
                    return [name, back, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; })); }"""
            )
            assert [ratio for ratio in ratios if ratio[2] < 4.5] == []


def test_the_keyboard_reaches_everything(page: Any, address: str) -> None:
    page.goto(f"{address}/#/chart/ESZ6/1min")
    wait(page, "Number(chart.bars) >= 300")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Symbol"
    page.keyboard.type("nq")
    page.wait_for_selector("[role=option][aria-selected=true] b:text('NQZ6')")
    page.keyboard.press("Enter")
    page.wait_for_url("**/#/chart/NQZ6/1min")
    page.keyboard.press("5")
    page.wait_for_url("**/#/chart/NQZ6/5min")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className || document.activeElement.dataset.page"))
        bare = page.evaluate(
            "(() => { const at = document.activeElement; return at !== document.body"
            " && getComputedStyle(at).outlineStyle === 'none' ? at.outerHTML.slice(0, 200) : null; })()"
        )
        assert bare is None
    assert {"canvas", "symbol", "tape", "system"} <= reached
    page.locator("#main").press("?")
    assert page.locator("#help").is_visible()


def test_gaps_are_shaded_and_revised_bars_are_marked(page: Any, address: str) -> None:
    page.goto(f"{address}/#/chart/ESZ6/1min")
    wait(page, "Number(chart.gaps) >= 1 && Number(chart.shades) >= 1 && Number(chart.revised) >= 1")
    assert "1 revised" in page.locator(".notes").inner_text()
    assert "gap" in page.locator(".canvas").get_attribute("aria-label")


def test_without_the_token_there_is_a_page_that_asks_for_it(
    page: Any, history: Path, children: Callable[..., Child]
) -> None:
    address = children("serve", history, port=0, token="a token of the tests").said
    assert page.goto(address).status == 401
    page.get_by_label("Token").fill("a token that is wrong")
    page.get_by_role("button", name="Open").click()
    page.wait_for_url("**/?token=*")
    assert page.get_by_role("heading", name="A token is needed").is_visible()
    page.get_by_label("Token").fill("a token of the tests")
    page.get_by_role("button", name="Open").click()
    wait(page, "Number(chart.bars) >= 1")
    assert "token" not in page.url
    page.context.clear_cookies()  # it ends while the page is open
    page.locator(".pages [data-page=tape]").click()
    page.wait_for_selector("h1:text('A token is needed')")


def test_a_time_in_the_past_is_gone_to(page: Any, address: str, history: Path) -> None:
    starts = [row[0] for row in rows_of(history, "ESZ6", "1min")]
    page.goto(f"{address}/#/chart/ESZ6/1min")
    wait(page, "Number(chart.bars) >= 300")
    page.locator("#zone").click()  # UTC
    wanted = starts[1000]
    page.get_by_label("Go to a time").fill(time.strftime("%Y-%m-%dT%H:%M", time.gmtime(wanted / 1000)))
    page.get_by_label("Go to a time").dispatch_event("change")
    wait(page, "chart.live === 'false' && Number(chart.first) < $0 && Number(chart.last) > $0", wanted)
    page.get_by_role("button", name="Newest").click()
    wait(page, "chart.live === 'true' && Number(chart.last) === $0", starts[-1])


def test_the_library_of_the_chart_is_named_with_its_licence(page: Any, address: str) -> None:
    page.goto(address)
    assert page.locator(".credit a").get_attribute("href") == "https://www.tradingview.com/"
    vendor = ROOT / "src" / "onetape" / "web" / "static" / "vendor"
    assert "Apache License" in (vendor / "lightweight-charts.LICENSE").read_text()
    assert "5.2.1" in (vendor / "lightweight-charts.standalone.production.js").read_text()[:200]
