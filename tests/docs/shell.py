"""The shell blocks of a page, run in order in one empty directory, with the `onetape` of this source on the path."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)


def run_blocks(page: Path, tmp_path: Path, **environment: str) -> int:
    """Run them, and return how many there were. A block that fails, warns or shows a traceback fails the test."""
    binaries, place = tmp_path / "bin", tmp_path / "place"
    binaries.mkdir()
    place.mkdir()
    for name, command in {"onetape": f'{sys.executable} -m onetape "$@"', "python3": f'{sys.executable} "$@"'}.items():
        (binaries / name).write_text(f"#!/bin/sh\nexec {command}\n")
        (binaries / name).chmod(0o755)
    blocks = _BLOCK.findall(page.read_text())
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=place,
            env={
                "PATH": f"{binaries}:/usr/bin:/bin",
                "PYTHONPATH": str(ROOT / "src"),
                "LC_ALL": "C.UTF-8",
                "HOME": str(tmp_path),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{page.name}:\n{block}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "warning" not in done.stderr.lower(), f"{page.name}:\n{block}\n{done.stderr}"
    return len(blocks)
