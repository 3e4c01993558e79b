"""An import that is killed anywhere and begun again leaves on the tape what one that went through leaves."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.conftest import ROOT

import onetape

#: Imports the file; kills itself with the append of a number, before or after it is done.
CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import onetape
from onetape.importing import dbn_records, lean, predecessor
from onetape.importing.formats import Options, import_file

lean.BATCH_ROWS = dbn_records.BATCH_ROWS = predecessor.WINDOW = 1000
path, fatal, after = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "after"
with onetape.open("tape.db", retention_days=None) as tape:
    count = 0

    def deadly(append):
        def instead(*given, **named):
            global count
            count += 1
            if count == fatal and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            done = append(*given, **named)
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        return instead

    tape.append, tape.append_table = deadly(tape.append), deadly(tape.append_table)
    import_file(tape, path, options=Options(allow_cut=path.endswith(".dbn")))
"""


def _lean(place: Path) -> Path:
    path = place / "equity" / "usa" / "tick" / "aig" / "20131007_trade.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        rows = "".join(f"{34_200_000 + i // 3},{490_000 + i % 911},100,P,0,0\n" for i in range(4500))
        archive.writestr("20131007_aig_Trade_Tick.csv", rows)
    return path


def _dbn(place: Path) -> Path:
    dbn = pytest.importorskip("databento_dbn")
    head = dbn.Metadata("GLBX.MDP3", 0, dbn.SType.RAW_SYMBOL, dbn.SType.INSTRUMENT_ID, dbn.Schema.TRADES)
    trades = [
        dbn.TradeMsg(1, 5, 1_700_000_000 * 10**9 + i, (100 + i % 97) * 10**9, 1, dbn.Action.TRADE, dbn.Side.BID, 0, 1)
        for i in range(4500)
    ]
    path = place / "cut.dbn"
    path.write_bytes((bytes(head) + b"".join(map(bytes, trades)))[:-20])
    return path


def _minhos(place: Path) -> Path:
    path = place / "market_data.db"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE market_data(id INTEGER PRIMARY KEY, symbol TEXT, timestamp REAL, close REAL)")
        rows = [(1_700_000_000 + i, 100 + i % 97) for i in range(4500)]
        old.executemany("INSERT INTO market_data(symbol, timestamp, close) VALUES ('NQ', ?, ?)", rows)
        old.execute("CREATE TABLE market_data_1min(symbol, timestamp, open, high, low, close, volume, vwap, trades)")
        bars = [(1_699_999_980 + i * 60, i % 7 + 1.0) for i in range(1500)]
        old.executemany("INSERT INTO market_data_1min VALUES ('NQ', ?1, ?2, ?2, ?2, ?2, 1, NULL, NULL)", bars)
    return path


def _run(place: Path, path: Path, fatal: int = 0, when: str = "after") -> int:
    command = [sys.executable, "-c", CHILD, str(ROOT / "src"), str(path), str(fatal), when]
    return subprocess.run(command, cwd=place, timeout=120, check=False).returncode


def _content(place: Path) -> tuple[object, ...]:
    with onetape.open(place / "tape.db", mode="r") as tape:
        names = sorted(one.symbol for one in tape.symbols())
        ticks = {name: tape.read(name).drop_columns(["seq"]).to_pylist() for name in names}
        return ticks, tape.stats().bars_given, len(tape.quarantined())


@pytest.mark.slow
@pytest.mark.parametrize("make", [_lean, _dbn, _minhos])
def test_killed_at_every_append_and_begun_again_equals_once(tmp_path: Path, make: object) -> None:
    assert callable(make)
    whole = tmp_path / "whole"
    whole.mkdir()
    path = make(whole)
    assert _run(whole, path) == 0
    wanted = _content(whole)
    for fatal in (1, 3, 6):
        for when in ("before", "after"):
            place = tmp_path / f"{fatal}{when}"
            place.mkdir()
            ended = _run(place, path, fatal, when)
            assert ended in (-signal.SIGKILL, 0)
            assert ended == -signal.SIGKILL or fatal > 5
            assert _run(place, path) == 0
            assert _content(place) == wanted
            assert _run(place, path) == 0
            assert _content(place) == wanted
