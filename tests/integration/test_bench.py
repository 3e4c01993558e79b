"""The benchmark runs: every topic gives its lines. How fast it is, is not a test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onetape.embedded import server_binaries

ROOT = Path(__file__).resolve().parents[2]

#: How long a quick run may take on the slowest machine, s; on a quiet one it is one minute.
_PATIENCE_S = 900


@pytest.mark.slow
@pytest.mark.timeout(_PATIENCE_S + 30)
@pytest.mark.skipif(not server_binaries(), reason="no Redis-compatible server on this machine")
def test_a_quick_benchmark_measures_every_topic(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "--quick", "--dir", str(tmp_path), "--json", str(out)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        "ONETAPE_BENCH_PEERS": str(tmp_path / "nowhere"),
    }

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S)

    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["facts"]["files on"]
    told = " ".join(line["name"] for line in report["lines"])
    for topic in ("append(Tick)", "writer()", "append_table", "latest", "recent", "follow across", "read()", "backfill",
                  "verify", "memory", "bulk append", "single ticks", "bytes", "middle symbol's day", "1-minute bars",
                  "while another process writes", "services on one tape", "on a tape of", "live backfill",
                  "to another server", "throttled", "longest wait", "dual write", "new first", "feed to a subscriber",
                  "feed to another process", "patterns on history", "the real 4 services",
                  "feed to WebSocket client", "over HTTP"):  # fmt: skip
        assert topic in told or topic in done.stdout
    for peer in ("DuckDB", "ArcticDB", "chDB", "Parquet"):
        assert f"without {peer}: no virtual environment of the peers" in done.stderr
    for line in report["lines"]:
        assert line["ours"] > 0 and line["name"] in done.stdout
        assert (line["reached"] is None) == (line["target"] == "")


@pytest.mark.slow
@pytest.mark.timeout(_PATIENCE_S + 30)
def test_every_peer_answers_what_ours_answers(tmp_path: Path) -> None:
    python = ROOT / ".venv-peers" / "bin" / "python"
    if not python.is_file():
        pytest.skip("the peers are not installed: make bench installs them")
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "history", "--quick", "--dir", str(tmp_path), "--json", str(out)]
    environment = {**os.environ, "ONETAPE_BENCH_PEERS": str(python)}

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S)

    assert done.returncode == 0, done.stderr  # rows, columns and sums differ nowhere
    peers = {line["peer"] for line in json.loads(out.read_text())["lines"]}
    assert {"DuckDB", "ArcticDB", "chDB", "Parquet"} <= peers
