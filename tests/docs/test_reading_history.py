"""The guide "Reading history": its blocks run as one program, print what the page shows, and its pictures are of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reading_history.md"
PICTURES = ROOT / "docs" / "pictures"


def test_every_block_of_the_guide_prints_what_stands_below_it(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE.read_text(), re.M | re.S)
    assert len(blocks) > 10
    mark = "--- block"
    program = "".join(f"{code}\nprint({mark!r})\n" for code, _ in blocks)
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.split(f"{mark}\n")[:-1]
    for (code, shown), printed in zip(blocks, said, strict=True):
        assert printed == shown, code


def test_the_committed_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, PICTURES / "draw.py", tmp_path], cwd=tmp_path, capture_output=True, text=True, timeout=170
    )
    assert ran.returncode == 0, ran.stderr
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    kept = {path.name: path.read_text() for path in PICTURES.glob("*.svg")}
    assert drawn.keys() == kept.keys()
    other = [name for name in kept if kept[name] != drawn[name]]
    assert not other, f"run `make pictures`, look at {other}, and commit them"
    shown = set(re.findall(r"\(pictures/([\w]+\.svg)\)", PAGE.read_text()))
    assert shown == kept.keys()
