"""The commands that look after a tape: dry until --execute, --json for programs, exit codes that say what was found."""

import json
import os
import re
import subprocess
import sys

import apsw
import pytest
from tests.conftest import ROOT

import onetape
from onetape import Tick
from onetape.cli.app import main
from onetape.cli.care import snapshot_app

T0 = 1_700_000_000_000_000_000


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("ONETAPE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ONETAPE_RETENTION_DAYS", "none")
    with onetape.open("market_data.db", retention_days=None) as tape:
        tape.append([Tick(f"S{i % 3}", T0 + i * 10**9, price=i / 4, size=1.0) for i in range(9000)])
    return tmp_path


def _run(capsys, *args):
    code = main(args)
    told = capsys.readouterr()
    return code, told.out, told.err


def _harm():
    raw = apsw.Connection("market_data.db")
    payload = bytearray(raw.execute("SELECT payload FROM chunk WHERE id = 1").get)
    payload[200] ^= 1
    raw.execute("UPDATE chunk SET payload = ? WHERE id = 1", (bytes(payload),))
    raw.close()


def test_the_doctor_ends_with_0_for_a_healthy_tape_and_with_1_for_a_damaged_one(place, capsys):
    code, out, _ = _run(capsys, "doctor")
    assert code == 0
    assert out.endswith("market_data.db: healthy\n")
    _harm()
    code, out, _ = _run(capsys, "doctor")
    assert code == 1
    assert out.startswith("problem  chunk")
    assert out.endswith("1 problem\n")
    code, out, _ = _run(capsys, "doctor", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert found[0]["weight"] == "problem" and found[0]["facts"]["id"] == 1


def test_a_repair_asks_for_execute_and_says_where_the_copy_is(place, capsys):
    _harm()
    code, out, err = _run(capsys, "doctor", "--repair")
    assert code == 0
    assert "to be set aside" in out and "--execute" in err
    assert _run(capsys, "doctor")[0] == 1
    code, out, _ = _run(capsys, "doctor", "--repair", "--execute")
    assert code == 0
    assert "before-repair-1" in out
    assert _run(capsys, "doctor")[0] == 0
    assert _run(capsys, "doctor", "--repair")[1] == "nothing to repair\n"
    assert _run(capsys, "doctor", "--execute")[0] == 2


def test_backup_and_restore(place, capsys):
    code, out, _ = _run(capsys, "backup", "b.db", "--json")
    made = json.loads(out)
    assert code == 0 and made["records"] == 9000
    assert _run(capsys, "backup", "b.db")[0] == 2
    assert _run(capsys, "restore", "b.db", "--to", "market_data.db")[0] == 2
    code, out, err = _run(capsys, "restore", "b.db", "--to", "new.db")
    assert code == 0 and "--execute" in err and not (place / "new.db").exists()
    assert _run(capsys, "restore", "b.db", "--to", "new.db", "--execute")[0] == 0
    with onetape.open("new.db") as tape:
        assert tape.digest().digest == made["digest"]


def test_upgrade_of_the_newest_format_has_nothing_to_do(place, capsys):
    code, out, _ = _run(capsys, "upgrade", "--execute")
    assert code == 0 and "nothing" in out
    assert _run(capsys, "upgrade", "--tape", "no.db")[0] == 2


def test_mem_lists_symbols_and_their_bytes(place, capsys):
    code, out, _ = _run(capsys, "mem", "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {one["symbol"]: one["records"] for one in told} == {"S0": 1000, "S1": 1000, "S2": 1000}
    assert all(0 < one["bytes"] < 60_000 for one in told)
    assert "3 symbols, 3,000 records" in _run(capsys, "mem", "--limit", "2")[1]


def test_prune_says_what_would_go_and_what_snapshots_hold(place, capsys, monkeypatch):
    assert _run(capsys, "snapshot", "create", "eod")[0] == 0
    later = onetape.now_ns() + 90 * 86_400_000_000_000
    monkeypatch.setattr("onetape.tape.upkeep.now_ns", lambda: later)
    code, out, _ = _run(capsys, "prune", "--days", "30")
    assert code == 0
    assert re.search(r"would go\s+0 ticks", out) and re.search(r"held by eod\s+9,000 ticks", out)
    code, out, _ = _run(capsys, "prune", "--days", "30", "--execute", "--json")
    assert json.loads(out)["removed"] == 0
    assert _run(capsys, "snapshot", "delete", "eod", "--execute")[0] == 0
    assert json.loads(_run(capsys, "prune", "--days", "30", "--execute", "--json")[1])["removed"] == 9000
    assert _run(capsys, "prune", "--days", "30", "--bar-days", "10")[0] == 2


def test_snapshots_are_created_shown_verified_and_deleted(place, capsys):
    assert _run(capsys, "snapshot", "list")[2] == "no snapshots\n"
    code, out, _ = _run(capsys, "snapshot", "create", "eod", "--note", "the close", "--json")
    assert code == 0 and json.loads(out)["records"] == 9000
    assert _run(capsys, "snapshot", "create", "eod")[0] == 2
    assert json.loads(out)["digest"] in _run(capsys, "snapshot", "show", "eod")[1]
    assert "eod" in _run(capsys, "snapshot", "list")[1]
    assert _run(capsys, "snapshot", "verify", "eod")[0] == 0
    assert _run(capsys, "snapshot", "verify", "no")[0] == 2
    raw = apsw.Connection("market_data.db")
    raw.execute("UPDATE snapshot SET digest = 'no'")
    raw.close()
    assert _run(capsys, "snapshot", "verify", "eod")[0] == 1
    code, _, err = _run(capsys, "snapshot", "delete", "eod")
    assert code == 0 and "--execute" in err
    assert _run(capsys, "snapshot", "show", "eod")[0] == 0
    assert _run(capsys, "snapshot", "delete", "eod", "--execute")[0] == 0
    assert _run(capsys, "snapshot", "show", "eod")[0] == 2


_PAGES = ("doctor", "backup", "restore", "upgrade", "mem", "prune", "snapshot")


@pytest.mark.parametrize("name", _PAGES)
def test_the_page_of_a_command_runs_as_it_stands(tmp_path, name):
    text = (ROOT / "docs" / "commands" / f"{name}.md").read_text()
    assert text.startswith(f"# onetape {name}\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "onetape").write_text(f'#!/bin/sh\nexec {sys.executable} -m onetape "$@"\n')
    (tmp_path / "bin" / "onetape").chmod(0o755)
    (tmp_path / "place").mkdir()
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT / "src"),
        "LC_ALL": "C.UTF-8",
        "HOME": str(tmp_path),
    }
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path / "place",
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


def test_every_part_of_snapshot_is_in_its_page():
    text = (ROOT / "docs" / "commands" / "snapshot.md").read_text()
    for command in snapshot_app.registered_commands:
        assert f"onetape snapshot {command.name}" in text
