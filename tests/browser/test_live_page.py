"""The page in a real browser: candles move, history scrolls, a restart leaves no gap; on a phone, dark, by keyboard.

The system is served by a process of its own and fed by another (shown.py). What the page holds is read from its window
of bars, and compared with the tape. ONETAPE_PICTURES=1 takes the pictures of the documentation anew.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

import onetape
from onetape import Tick

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium on this machine: make apt")

S, MS = 10**9, 10**6
PATIENCE_MS = 60_000
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
#: Lets a test see the bars that the page holds.
_WATCH = """
import('/static/js/chart/window.js').then(({ BarWindow }) => {
  const replace = BarWindow.prototype.replace;
  BarWindow.prototype.replace = function (...given) { globalThis.shown = this; return replace.apply(this, given); };
}).catch(() => {});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(_FLAGS))
        yield made
        made.close()


class Shown:
    """A tape with history, a process that serves it, and one that feeds it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "market_data.db"
        self.processes: list[subprocess.Popen[str]] = []
        self.port = 0

    def history(self, minutes: int, symbols: tuple[str, ...] = ("ESZ6", "NQZ6")) -> None:
        now = onetape.now_ns() // (60 * S) * 60 * S
        with onetape.open(self.path, retention_days=None) as tape:
            for number, symbol in enumerate(symbols):
                chance = random.Random(number)
                times = [now - (minutes - at) * 60 * S + 5 * S + k * 13 * S for at in range(minutes) for k in range(4)]
                moves = (chance.choice((-0.5, -0.25, 0.0, 0.25, 0.5)) for _ in times)
                prices = list(itertools.accumulate(moves, initial=5000.0 + number * 13_000))[1:]
                sizes = [float(chance.randint(1, 9)) for _ in times]
                tape.append_table({"symbol": symbol, "ts_event_ns": times, "price": prices, "size": sizes})

    def start(self, what: str, told: dict[str, Any]) -> subprocess.Popen[str]:
        made = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("shown.py")), what, str(self.path), json.dumps(told)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.processes.append(made)
        return made

    def serve(self, **settings: Any) -> subprocess.Popen[str]:
        made = self.start("serve", {"port": self.port, **settings})
        assert made.stdout is not None
        address = made.stdout.readline().strip()
        assert address.startswith("http"), "the page is not served"
        self.port = int(address.rpartition(":")[2])
        return made

    def feed(self, *symbols: str, every_s: float = 0.05) -> subprocess.Popen[str]:
        made = self.start("feed", {"symbols": list(symbols or ("ESZ6",)), "every_s": every_s})
        assert made.stdout is not None
        made.stdout.readline()
        threading.Thread(target=made.stdout.read, daemon=True).start()  # it says a line at each tick
        return made

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Shown]:
    made = Shown(tmp_path)
    yield made
    made.end()


@pytest.fixture
def opened(browser: Any, system: Shown) -> Iterator[Callable[..., Any]]:
    contexts = []

    def open_(path: str = "/", width: int = 1280, height: int = 800, **how: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.add_init_script(_WATCH)
        page.goto(system.url + path)
        return page

    yield open_
    for context in contexts:
        context.close()


def rows(page: Any) -> list[list[Any]]:
    return page.evaluate("globalThis.shown ? globalThis.shown.rows : []")  # type: ignore[no-any-return]


def until(page: Any, true: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE_MS / 1000
    while not true():
        assert time.monotonic() < end, f"not in time: {what}"
        page.wait_for_timeout(50)


def live(page: Any) -> None:
    page.wait_for_selector('#connection[data-state="live"], #connection[data-state="stale"]')
    until(page, lambda: rows(page), "bars")


def picture(page: Any, name: str) -> None:
    if os.environ.get("ONETAPE_PICTURES"):
        page.wait_for_timeout(800)
        page.screenshot(path=str(ROOT / "docs" / "pictures" / f"{name}.png"))


def test_candles_move_with_the_market(system: Shown, opened: Any) -> None:
    system.history(300)
    system.serve(rich=True)
    system.feed("ESZ6", "NQZ6")
    page = opened("/#/chart/ESZ6/1min")
    live(page)
    seen: set[float] = set()

    def moved() -> bool:
        seen.add(rows(page)[-1][4])
        return len(seen) > 3

    until(page, moved, "the last bar's close moves")
    assert "ESZ6" in page.inner_text(".legend")
    picture(page, "page_chart")
    page.goto(system.url + "/#/chart/NQZ6/1min")
    until(page, lambda: "NQZ6" in page.inner_text(".legend") and rows(page)[-1][4] > 4000, "the other symbol")
    assert page.errors == []


def test_history_scrolls_back_without_limit_and_in_bounded_memory(system: Shown, opened: Any) -> None:
    system.history(20_000, ("ESZ6",))
    system.serve()
    page = opened("/#/chart/ESZ6/1min")
    live(page)
    first = rows(page)[0][0]
    page.focus(".canvas")
    for _ in range(400):
        page.keyboard.press("PageUp")
        page.wait_for_timeout(30)
        if rows(page)[0][0] <= first - 12_000 * 60_000:
            break
    held = rows(page)
    assert held[0][0] <= first - 12_000 * 60_000
    assert len(held) <= 8000
    times = [row[0] for row in held]
    assert times == list(range(times[0], times[-1] + 60_000, 60_000))
    page.keyboard.press("End")
    with onetape.open(system.path, mode="r") as tape:
        newest = tape.bar_list("ESZ6")[-1].ts_start_ns // MS
    until(page, lambda: rows(page)[-1][0] >= newest, "back at the newest bar")
    assert page.errors == []


def test_a_restart_of_the_server_leaves_no_gap(system: Shown, opened: Any) -> None:
    system.history(10, ("ESZ6",))
    with socket.create_server(("127.0.0.1", 0)) as free:  # one port before and after
        system.port = free.getsockname()[1]
    server = system.serve()
    system.feed("ESZ6", every_s=0.1)
    page = opened("/#/chart/ESZ6/1s")
    live(page)
    until(page, lambda: len(rows(page)) > 3, "some bars")
    server.kill()
    server.wait()
    page.wait_for_selector('#connection[data-state="waiting"], #connection[data-state="connecting"]')
    away = rows(page)[-1][0]
    page.wait_for_timeout(4000)
    system.serve()
    live(page)
    until(page, lambda: rows(page)[-1][0] > away + 6000, "bars after the restart")
    held = {row[0]: row[1:6] for row in rows(page)}
    with onetape.open(system.path, mode="r") as tape:
        last = max(held)
        wanted = {
            bar.ts_start_ns // MS: [bar.open, bar.high, bar.low, bar.close, bar.volume]
            for bar in tape.bar_list("ESZ6", "1s")
            if min(held) <= bar.ts_start_ns // MS < last - 1000
        }
    assert len(wanted) >= 8
    assert {at: held.get(at) for at in wanted} == wanted
    assert page.errors == []


@pytest.mark.parametrize("name", ["chart/ESZ6/1min", "tape", "patterns", "migration", "system"])
def test_every_page_fits_a_phone(system: Shown, opened: Any, name: str) -> None:
    system.history(300)
    system.serve(rich=True)
    page = opened(f"/#/{name}", width=360, height=740, is_mobile=True, has_touch=True)
    page.wait_for_selector(f'main[data-page="{name.partition("/")[0]}"]')
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for target in page.query_selector_all(".pages a"):
        box = target.bounding_box()
        assert box is not None and box["height"] >= 24
    assert page.errors == []
    if name.startswith("chart"):
        picture(page, "page_phone")


@pytest.mark.parametrize(("name", "told"), [("tape", "ESZ6"), ("patterns", "engulfing"), ("migration", "verified"),
                                            ("system", "exchange")])  # fmt: skip
def test_the_other_pages_tell_what_they_are_for(system: Shown, opened: Any, name: str, told: str) -> None:
    system.history(600)
    system.serve(rich=True)
    page = opened(f"/#/{name}", color_scheme="dark" if name == "migration" else "light")
    until(page, lambda: told in page.inner_text("main").lower() or told in page.inner_text("main"), told)
    assert page.errors == []
    if name in ("patterns", "migration"):  # the others show where the tape is
        picture(page, f"page_{name}")


def test_dark_and_light_by_the_system_and_by_a_key(system: Shown, opened: Any) -> None:
    system.history(30)
    system.serve()
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    dark, light = opened(color_scheme="dark"), opened(color_scheme="light")
    assert dark.evaluate(colour) != light.evaluate(colour)
    before = light.evaluate(colour)
    live(light)
    light.keyboard.press("t")
    until(light, lambda: light.evaluate(colour) == dark.evaluate(colour) != before, "the key turns it dark")


def test_a_symbol_is_found_and_an_interval_chosen_by_keyboard(system: Shown, opened: Any) -> None:
    system.history(60, ("ESZ6", "NQZ6", "CLF7"))
    system.serve()
    page = opened("/#/chart/ESZ6/1min")
    live(page)
    page.keyboard.press("/")
    page.keyboard.type("clf")
    page.wait_for_timeout(500)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    until(page, lambda: "CLF7" in page.evaluate("location.hash"), "the symbol")
    page.focus(".canvas")
    page.keyboard.press("5")
    until(page, lambda: page.evaluate("location.hash").endswith("/5min"), "the interval")
    assert page.errors == []


def test_gaps_are_shaded_and_revised_bars_marked(system: Shown, opened: Any) -> None:
    system.history(120, ("ESZ6",))
    now = onetape.now_ns() // (60 * S) * 60 * S
    with onetape.open(system.path, retention_days=None) as tape:
        tape.mark_missing("ESZ6", now - 60 * 60 * S, now - 50 * 60 * S, source="exchange")
        system.serve()
        page = opened("/#/chart/ESZ6/1min")
        live(page)
        tape.append(Tick("ESZ6", onetape.now_ns(), 5001.0, 1.0))
        until(page, lambda: page.evaluate("shown.gaps.length") > 0, "a gap")
        kinds = {gap[2] for gap in page.evaluate("shown.gaps")}
        assert "missing" in kinds
        late = now - 30 * 60 * S + 20 * S
        tape.append(Tick("ESZ6", late, 5900.0, 1.0))  # late: it changes a bar of half an hour ago
        at = (now - 30 * 60 * S) // MS
        until(page, lambda: {row[0]: row for row in rows(page)}[at][2] == 5900.0, "the revised bar")
        assert page.evaluate(f"shown.revised.has({at})") or {row[0]: row for row in rows(page)}[at][6] > 0
    assert page.errors == []


def test_a_hostile_name_is_shown_as_text(system: Shown, opened: Any) -> None:
    name = "<img src=x onerror=alert(1)>"
    system.history(30, (name,))
    system.serve()
    page = opened("/")
    told: list[str] = []
    page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
    until(page, lambda: name in page.inner_text("main"), "the name as text")
    for path in ("/#/tape", "/#/system"):
        page.goto(system.url + path)
        page.wait_for_timeout(500)
    assert told == [] and page.query_selector("main img") is None


def test_a_page_without_the_token_asks_for_it(system: Shown, opened: Any) -> None:
    system.history(30)
    token = "a-token-of-many-letters"
    system.serve(token=token)
    page = opened("/")
    page.wait_for_selector("input[type=password]")
    assert page.query_selector(".canvas") is None
    page.fill("input[type=password]", "a-wrong-token-of-letters")
    page.keyboard.press("Enter")
    page.wait_for_selector("input[type=password]")
    page.fill("input[type=password]", token)
    page.keyboard.press("Enter")
    page.wait_for_selector(".canvas")
    assert token not in page.url
