"""`onetape export` and back: what a person types, what they read, and what a kill in between leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import onetape
from onetape.cli.app import main

T0 = 1_767_600_000_000_000_000


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONETAPE_RETENTION_DAYS", "none")
    with onetape.open("market_data.db", retention_days=None) as tape:
        for symbol in ("ES", "BTC/USD"):
            tape.append([onetape.Tick(symbol, T0 + i * 10**9, price=i * 0.1, size=1.0) for i in range(100)])
    return tmp_path


@pytest.mark.parametrize("target", ["out.csv", "out.csv.gz", "out.parquet", "out.arrow", "out --format parquet"])
def test_a_tape_goes_to_files_and_back(place: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--to", *target.split()]) == 0
    assert "200 ticks of 2 symbols" in capsys.readouterr().out
    assert main(["import", target.split()[0], "--tape", "new.db"]) == 0
    with onetape.open("market_data.db", mode="r") as old, onetape.open("new.db", mode="r") as new:
        for symbol in ("ES", "BTC/USD"):
            assert new.read(symbol).drop_columns("seq") == old.read(symbol).drop_columns("seq")
    assert main(["import", target.split()[0], "--tape", "new.db"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_bars_go_to_files_and_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "ES", "--to", "b.csv", "--what", "bars", "--interval", "1min", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["symbols"], told["interval"]) == (2, 1, "1min")
    assert main(["import", "b.csv", "--kind", "bars", "--tape", "new.db"]) == 0
    with onetape.open("market_data.db", mode="r") as old, onetape.open("new.db", mode="r") as new:
        given = new.bars("ES", "1min").drop_columns("source")
        assert given == old.bars("ES", "1min").drop_columns("source")
        assert set(new.bars("ES", "1min").column("source").to_pylist()) == {"given"}


def test_what_is_wrong_is_one_line_and_exit_code_2(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "there.csv").write_text("mine")
    for arguments, message in (
        (["--to", "there.csv"], "is there already"),
        (["--to", "x"], "does not say which format"),
        ([], "where to?"),
        (["--to", "x.csv", "--interval", "1min"], "--interval is for bars"),
        (["ES2", "--to", "x.csv"], "no symbol 'ES2'"),
        (["--to", "x.csv", "--columns", "prise"], "no tick has a column 'prise'"),
        (["--to", "x.csv", "--start", "2026-01-02", "--end", "2026-01-01"], "is not before"),
    ):
        assert main(["export", *arguments]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    assert (place / "there.csv").read_text() == "mine"
    assert main(["export", "--to", "there.csv", "--replace", "--tape", "none.db"]) == 2


def test_an_import_killed_at_any_batch_goes_on_and_ends_as_one_that_was_not(place: Path) -> None:
    rows = 3000
    with onetape.open("big.db", retention_days=None) as tape:
        tape.append([onetape.Tick("A", T0 + i, price=float(i), size=1.0) for i in range(rows)])
    assert main(["export", "--tape", "big.db", "--to", "a.parquet"]) == 0
    code = """
        import os, signal, sys, onetape
        from onetape.importing import format, formats
        format.BATCH_ROWS = 500
        append, left = onetape.Tape.append_table, [int(sys.argv[1])]
        def killed(self, data, **identity):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return append(self, data, **identity)
        onetape.Tape.append_table = killed
        with onetape.open("killed.db", retention_days=None) as tape:
            print(formats.import_file(tape, "a.parquet")[0].stored)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for count in (1, 2, 4):
        child = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(count)], env=environment, check=False)
        assert child.returncode == -signal.SIGKILL
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code), "99"], env=environment, check=True)
    with onetape.open("killed.db", retention_days=None) as tape:
        assert tape.read("A").column("price").to_pylist() == [float(i) for i in range(rows)]
