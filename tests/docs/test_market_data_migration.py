"""docs/MARKET_DATA_MIGRATION.md runs as it stands, and so does the example that it leads to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.docs.shell import run_blocks

PATHS = f"{ROOT / 'src'}:{ROOT / 'compat'}"


def test_every_block_of_the_page_runs_in_order_in_one_directory(tmp_path: Path) -> None:
    page = ROOT / "docs" / "MARKET_DATA_MIGRATION.md"
    assert run_blocks(page, tmp_path, PYTHONPATH=PATHS, ONETAPE_EXAMPLES=str(ROOT / "examples")) == 7
    there = {path.name for path in (tmp_path / "place" / "data").iterdir()}
    assert {"market_data.db", "market_data.old.db", "back.db"} <= there


def test_the_example_runs_and_ends_and_all_services_say_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "unified_market_data_usage.py", "place"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PATHS, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    told = dict(re.findall(r"^([^:]+): +(.+)$", done.stdout, re.M))
    assert told["latest, by the adapter"] == told["latest, by the state manager"] == "6074.75"
    assert told["history, newest 3, ascending"] == "[6074.25, 6074.5, 6074.75]"
    assert told["subscribers were told of"] == "300 records"
    assert (tmp_path / "place" / "data" / "market_data.db").is_file()
