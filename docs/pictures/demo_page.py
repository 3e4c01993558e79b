"""Photographs the page of `onetape demo --web` for the tutorial: python docs/pictures/demo_page.py (two minutes).

It takes the simulated market, so that no recorded data is in the pictures. It needs playwright and a chromium.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"
#: Until the feed has broken and is back, and a late trade and a correction have come, s.
_UNTIL_S = 75
_PAGES = {"demo_chart": "#/chart/SIM:FUTURE", "demo_system": "#/system"}
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


def main() -> None:
    environment = {**os.environ, "ONETAPE_SAMPLE_DATA": "/nowhere", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "onetape", "demo", "--web", "--port", "0"]
    demo = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        address = next(line.split()[1] for line in demo.stdout if line.strip().startswith("Open"))
        time.sleep(_UNTIL_S)
        with sync_playwright() as player:
            browser = player.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
            page = browser.new_page(viewport={"width": 1200, "height": 720})
            for name, place in _PAGES.items():
                page.goto(f"{address}/{place}")
                page.wait_for_timeout(4_000)
                page.screenshot(path=HERE / f"{name}.png", timeout=90_000)
            browser.close()
    finally:
        demo.terminate()
        demo.wait()


if __name__ == "__main__":
    main()
