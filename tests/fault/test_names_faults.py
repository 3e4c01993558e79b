"""Names under fire: processes that race over one, and processes killed while they change many."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import onetape

T0 = 1_700_000_000_000_000_000
PROLOGUE = "import onetape, sys, time\nT0 = 1_700_000_000_000_000_000\ntape = onetape.open(sys.argv[1])\n"


def _start(path: Path, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def test_a_name_that_one_process_appends_under_while_another_makes_it_an_alias_is_one_or_the_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.db"
    onetape.open(path).close()
    count = 40
    feed = f"""
for n in range({count}):
    tape.append(onetape.Tick(f"token {{n}}", T0 + n, price=1.0))
    tape.append(onetape.Tick(f"token {{n}}", T0 + n, price=2.0))
"""
    names = f"""
taken = 0
for n in range({count}):
    try:
        tape.alias(f"token {{n}}", f"symbol {{n}}")
    except onetape.NameTaken:
        taken += 1
print(taken)
"""
    feeding, naming = _start(path, feed), _start(path, names)
    _finish(feeding)
    taken = int(_finish(naming))
    with onetape.open(path) as tape:
        aliases = {one.name for one in tape.aliases()}
        found = {info.symbol: info.ticks for info in tape.symbols()}
        assert len(aliases) == count - taken
        for n in range(count):
            symbol = f"symbol {n}" if f"token {n}" in aliases else f"token {n}"
            assert found.pop(symbol) == 2, n
            assert tape.read(f"token {n}").num_rows == 2
        assert not found


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.15, 0.3])
def test_a_kill_while_a_list_is_added_leaves_all_of_it_or_none(tmp_path: Path, after_s: float) -> None:
    path = tmp_path / "t.db"
    with onetape.open(path) as tape:
        tape.append(onetape.Tick("NSE:5", T0, price=1.0))
        code = """
print("begun", flush=True)
tape.add_aliases([(str(n), f"NSE:{n}") for n in range(30_000)])
time.sleep(60)
"""
        process = _start(path, code)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(after_s)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        count = len(tape.aliases())
        assert count in (0, 30_000)
        tape.append(onetape.Tick("5", T0 + 1, price=2.0))
        assert tape.read("NSE:5").num_rows == (2 if count else 1)
        if not count:
            with pytest.raises(onetape.NameTaken):
                tape.alias("5", "NSE:5")


def test_a_name_is_changed_while_others_append_and_no_tick_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with onetape.open(path) as tape:
        tape.alias("1", "A")
        feed = """
for n in range(3000):
    tape.append(onetape.Tick("1", T0 + n, price=float(n)))
"""
        feeds = [_start(path, feed) for _ in range(2)]
        n = 0
        while any(process.poll() is None for process in feeds):
            n += 1
            tape.alias("1", "AB"[n % 2], replace=True)
            time.sleep(0.005)
        for process in feeds:
            _finish(process)
        assert sum(info.ticks for info in tape.symbols()) == 6000
        assert {info.symbol for info in tape.symbols()} <= {"A", "B"}
        for symbol in ("A", "B"):
            newest = tape.latest(symbol)
            assert newest is None or newest.symbol == symbol
            assert len(tape.recent(symbol, 10_000)) == tape.read(symbol).num_rows


def test_a_definition_that_is_damaged_says_what_to_do(tmp_path: Path) -> None:
    import apsw

    path = tmp_path / "t.db"
    chain = [("A", "2025-12-19"), ("B", "2026-03-20")]
    with onetape.open(path) as tape:
        tape.define_continuous("C", chain, "volume")
    connection = apsw.Connection(str(path))
    for damage in ("{", '{"name": "C"}', '{"name":"C","contracts":[],"roll":{"type":"moon"}}'):
        connection.execute("UPDATE continuous SET definition = ?", (damage,))
        with onetape.open(path) as tape:
            with pytest.raises(onetape.ConfigInvalid, match="cannot be read"):
                tape.read("C")
            tape.append(onetape.Tick("A", T0, price=1.0))  # the rest works
            assert tape.read("A").num_rows > 0
            with pytest.raises(onetape.ConfigInvalid, match="define it again"):
                tape.define_continuous("C", chain, "volume")
    connection.close()
    with onetape.open(path) as tape:
        assert tape.define_continuous("C", chain, "volume", replace=True).version == 2
        assert tape.rolls("C") == []
