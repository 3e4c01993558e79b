"""A proof says what was found, who stands for it, and whether it was altered since; its page runs and loads nothing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from tests import legacy_keys

import onetape
from onetape.embedded import EmbeddedServer
from onetape.errors import ConfigInvalid, MigrationError, ProofAltered
from onetape.migrate import Migration, Plan
from onetape.migrate.proving.conserve import conserve
from onetape.migrate.proving.page import render
from onetape.migrate.proving.proof import Proof, check_proof, make_proof
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

PLAN = Plan.load()
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "&lt;b&gt;",
    "\u202eevil\u2066",
    "a\x00b\x1b[2J",
]


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as tape:
        yield tape


@pytest.fixture
def client(server: EmbeddedServer) -> dict[int, redis.Redis]:
    client = legacy_keys.clients(server.port)
    legacy_keys.fill(client, 40)
    for i in range(40):  # bars and ticks of the test's system do not fit each other
        client[2].delete(f"ohlc_latest:NFO:S{i}")
    return client


@pytest.fixture
def migration(server: EmbeddedServer, client: object, tape: Tape, tmp_path: Path) -> Migration:
    return Migration(server.url, ledger_path=tmp_path / "l.db", tape=tape, report_dir=tmp_path, checks=False)


def prove(server: EmbeddedServer, migration: Migration, **how: Any) -> Proof:
    with Endpoint.connect(server.url, writable=False) as endpoint:
        return make_proof(endpoint, PLAN, migration.status(), tape=migration.tape, **how)


def parsed(page: str) -> ElementTree.Element:
    """The page as XML, which it is too: whatever is not closed or escaped raises."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))


def tags(page: str) -> set[str]:
    return {element.tag.rpartition("}")[2] for element in parsed(page).iter()}


def words(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(parsed(page).itertext()))


def test_a_whole_migration_is_proven_signed_saved_and_checked(
    server: EmbeddedServer, migration: Migration, tmp_path: Path
) -> None:
    migration.start(execute=True)
    migration.backfill()
    migration.verify()
    migration.switch_reads(execute=True)
    proof = prove(server, migration, sign="  Asha Rao  ", notes=["Change 4711"], throttle={"latency over 3 ms": 2.5})
    assert (proof.verdict, proof.reasons, proof.exit_code) == ("proven", [], 0)
    paths = proof.save(tmp_path / "proofs")
    assert sorted(path.name for path in (tmp_path / "proofs").iterdir()) == [paths.page.name, paths.json.name]
    for path in paths:
        checked = check_proof(path)
        assert (checked.sha256, checked.signed_by, checked.verdict) == (proof.sha256, "Asha Rao", "proven")
        assert (checked.files, checked.note) == ((str(paths.json), str(paths.page)), None)
    held = msgspec.json.decode(paths.json.read_bytes())
    assert [one["phase"] for one in held["phases"]] == [
        "planned",
        "dual_writing",
        "backfilled",
        "verified",
        "reads_switched",
    ]
    assert [one["command"] for one in held["transitions"]] == ["start", "backfill", "verify", "switch-reads"]
    assert held["verification"]["verdict"] == "converged"
    assert held["conservation"]["totals"]["tape"]["ticks"] == 400
    assert sum(held["steps"]["indicators"].values()) == 42
    page = paths.page.read_text()
    assert tags(page) >= {"svg", "rect", "table", "section"}
    for told in ("Proven", "Asha Rao", "Change 4711", "latency over 3 ms", proof.sha256, "reads switched", "400"):
        assert told in words(page), told


def test_the_page_forbids_itself_everything_and_is_equal_for_equal_content(
    server: EmbeddedServer, migration: Migration
) -> None:
    migration.backfill()
    proof = prove(server, migration)
    page = proof.html()
    assert page == proof.html() == render(msgspec.json.decode(msgspec.json.encode(proof.content)), proof.sha256)
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/)", page)
    assert "script" not in tags(page)
    assert "prefers-color-scheme: dark" in page and "@media print" in page and "max-width: 34rem" in page


def test_names_that_would_run_are_shown(server: EmbeddedServer, client: Any, migration: Migration) -> None:
    for name in HOSTILE:
        client[0].xadd(f"ticks:{name}", {"ltp": 1, "ltq": 2, "ts": 1_700_000_000_000})
        client[5].set(f"{name}:unmatched", 1)
        client[2].hset(f"ohlc_latest:{name}", mapping={"open": 1, "high": 9, "low": 1, "close": 2, "ts": 1_700_000_000})
        client[0].hset(f"tick:{name}", mapping={"ltp": "x"})
    client[5].set(b"\xff<script>", 1)
    migration.backfill()
    migration.verify()
    client[1].delete(*(f"ticks:{name}" for name in HOSTILE))
    proof = prove(server, migration, sign="<b>Me</b>", notes=HOSTILE, throttle=dict.fromkeys(HOSTILE, 1.0))
    page = proof.html()
    found = parsed(page)
    assert not {"script", "img", "b"} & tags(page)
    named = {name.lower() for element in found.iter() for name in element.attrib}
    assert not {name for name in named if name.startswith("on") or name in ("href", "src")}
    shown = words(page)
    assert "</script><script>alert(1)</script>" in shown and "&lt;b&gt;" in shown and "<b>Me</b>" in shown
    assert "\\u{202e}evil\\u{2066}" in shown and "a\\u{0}b\\u{1b}[2J" in shown
    assert not set("\u202e\u2066\x00\x1b") & set(page)
    assert proof.verdict == "not proven"


def test_an_altered_proof_says_so(server: EmbeddedServer, migration: Migration, tmp_path: Path) -> None:
    migration.backfill()
    paths = prove(server, migration, sign="Asha Rao").save(tmp_path)
    whole, page = paths.json.read_bytes(), paths.page.read_bytes()
    for altered in (
        whole.replace(b"not proven", b"proven", 1),
        whole.replace(b"Asha Rao", b"Asha Rau"),
        whole.replace(b'"ticks": 400', b'"ticks": 401', 1),
    ):
        assert altered != whole
        paths.json.write_bytes(altered)
        with pytest.raises(ProofAltered, match="was altered: its content has the sha256"):
            check_proof(paths.json)
    paths.json.write_bytes(whole[:-200])
    with pytest.raises(ProofAltered, match="is not JSON any more"):
        check_proof(paths.page)
    paths.json.write_bytes(whole)
    paths.page.write_bytes(page.replace(b"Not proven", b"Proven"))
    with pytest.raises(ProofAltered, match="does not say what"):
        check_proof(paths.json)
    # Keys in another order, and other blanks, are the same report.
    paths.page.write_bytes(page)
    held = msgspec.json.decode(whole)
    paths.json.write_bytes(msgspec.json.encode(_reversed(held)))
    assert len(check_proof(paths.json).files) == 2
    paths.page.unlink()
    assert "no page" in str(check_proof(paths.json).note)


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _reversed(one) for name, one in reversed(value.items())}
    return [_reversed(one) for one in value] if isinstance(value, list) else value


def test_a_page_of_another_version_is_left_unchecked_and_said(
    server: EmbeddedServer, migration: Migration, tmp_path: Path
) -> None:
    proof = prove(server, _backfilled(migration))
    older = Proof({**proof.content, "onetape": "0.0.9"})
    paths = older.save(tmp_path)
    paths.page.write_bytes(b"<p>as it looked then</p>")
    assert "only the JSON could be checked" in str(check_proof(paths.json).note)


def _backfilled(migration: Migration) -> Migration:
    migration.backfill()
    return migration


def test_files_that_are_no_proof_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid):
        check_proof(tmp_path / "none.json")
    for content in (b"[]", b"{}", b'{"sha256": 1}', b"null"):
        (tmp_path / "other.json").write_bytes(content)
        with pytest.raises(ConfigInvalid, match="no proof"):
            check_proof(tmp_path / "other.json")


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "x" * 201, "\x1b[31m"])
def test_a_signature_is_a_name(server: EmbeddedServer, migration: Migration, name: str) -> None:
    proof = prove(server, _backfilled(migration))
    with pytest.raises(ConfigInvalid, match="signed by"):
        proof.signed(name)
    assert proof.content["signed"] is None
    assert "Nobody has signed" in words(proof.html())


def test_what_is_not_proven_is_said_with_each_reason(
    server: EmbeddedServer, client: Any, migration: Migration, tape: Tape
) -> None:
    migration.backfill()
    assert prove(server, migration).reasons == ["no verify has been made of all keys"]
    verification = migration.verify()
    assert prove(server, migration, verification=verification).verdict == "proven"
    client[1].delete("ticks:NFO:S0")
    proof = prove(server, migration)
    assert (proof.verdict, proof.exit_code) == ("not proven", 1)
    assert proof.reasons == ["ticks or bars are not the same in old keys, new keys and tape"]
    assert "new lacks 60 ticks" in words(proof.html())
    migration.verify()
    assert "verify: not proven" in prove(server, migration).reasons


def test_a_verify_before_the_last_copy_proves_nothing_any_more(
    server: EmbeddedServer, client: Any, migration: Migration
) -> None:
    _backfilled(migration)
    migration.verify()
    client[5].set("indicators:NFO:LATE:rsi", 1)
    client[1].set("ind:ta:NFO:LATE:rsi", "somebody else's")
    migration.backfill()
    proof = prove(server, migration)
    assert proof.verdict == "not proven"
    assert proof.reasons == ["keys were copied after the last verify, by a backfill: verify again"]
    verification = migration.verify(pause_s=0.1)
    assert prove(server, migration).verdict == prove(server, migration, verification=verification).verdict
    assert "again" not in str(prove(server, migration).reasons)


def test_a_verify_before_a_way_back_proves_nothing_any_more(
    server: EmbeddedServer, client: Any, migration: Migration
) -> None:
    migration.start(execute=True)
    migration.backfill()
    migration.verify()
    assert prove(server, migration).verdict == "proven"
    migration.rollback(to="planned", execute=True)
    client[2].set("volume_state:1", "written under its old name alone")
    assert prove(server, migration).reasons == ["after the last verify the phase became planned: verify again"]
    migration.start(execute=True)
    assert prove(server, migration).verdict == "not proven"


def test_what_old_keys_no_longer_have_makes_it_proven_with_skips(
    server: EmbeddedServer, client: Any, migration: Migration
) -> None:
    migration.backfill()
    migration.verify()
    client[2].delete("realtime:NFO:H0:1700000000")
    proof = prove(server, migration)
    assert (proof.verdict, proof.exit_code) == ("proven, with listed skips", 3)
    assert proof.reasons == ["new keys or tape hold ticks or bars that the old keys no longer have"]


def test_a_proof_without_a_tape_says_that_there_was_none(server: EmbeddedServer, client: Any, tmp_path: Path) -> None:
    migration = Migration(server.url, ledger_path=tmp_path / "l.db", report_dir=tmp_path, checks=False)
    migration.backfill()
    migration.verify()
    proof = prove(server, migration)
    assert proof.reasons == ["no tape was given: old and new keys alone were compared"]
    assert "tape" not in proof.content["conservation"]["totals"]
    parsed(proof.html())


def test_a_historical_migration_has_the_phases_of_its_runs(server: EmbeddedServer, migration: Migration) -> None:
    assert migration.backfill().exit_code == 0
    migration.verify()
    phases = prove(server, migration).content["phases"]
    assert [one["phase"] for one in phases] == ["planned", "backfilled", "verified"]
    assert phases[0]["until"] == phases[1]["from"] <= phases[1]["until"]
    assert phases[-1]["until"] is None


def test_writers_at_work_do_not_make_a_proof_fail(server: EmbeddedServer, client: Any, migration: Migration) -> None:
    migration.start(execute=True)
    migration.backfill()
    migration.verify()
    client[0].xadd("ticks:NFO:S0", {"last_price": 1, "volume": 2})  # after the backfill: not landed yet
    client[1].xadd("ticks:NFO:S0", {"last_price": 1, "volume": 2})
    proof = prove(server, migration)
    assert proof.verdict == "proven", proof.reasons
    assert "were compared: writers are at work" in words(proof.html())


def test_after_finish_there_is_nothing_left_to_prove(server: EmbeddedServer, migration: Migration) -> None:
    status = msgspec.structs.replace(_backfilled(migration).status(), phase="finished", verdict="converged", diverged=2)
    with Endpoint.connect(server.url, writable=False) as endpoint:
        proof = make_proof(endpoint, PLAN, status, tape=migration.tape)
    assert proof.verdict == "not proven"
    assert proof.reasons == [
        "the old keys are gone since finish: nothing is left to compare with",
        "2 keys are recorded as diverged",
    ]
    assert "Not compared." in words(proof.html())


def test_what_readers_told_of_themselves_is_added_up(server: EmbeddedServer, migration: Migration) -> None:
    told = {"new_reads": 90, "old_fallbacks": 10, "old_reads": 5, "reads": 105}
    status = _backfilled(migration).status()
    status = msgspec.structs.replace(status, clients={"a": told, "b": told, "writer": {"writes": 3}})
    with Endpoint.connect(server.url, writable=False) as endpoint:
        proof = make_proof(endpoint, PLAN, status, tape=migration.tape)
    assert proof.content["reads"] == {
        "clients": 2,
        "reads": 210,
        "new_reads": 180,
        "old_reads": 10,
        "old_fallbacks": 20,
        "misses": 0,
        "errors": 0,
        "fallback_rate": 0.1,
    }
    assert "20 (10.000%)" in words(proof.html())


def test_reports_that_are_gone_or_broken_leave_the_ledger_to_speak(
    server: EmbeddedServer, migration: Migration, tmp_path: Path
) -> None:
    migration.backfill()
    migration.verify()
    for at, path in enumerate(sorted(tmp_path.glob("migration_report_*.json"))):
        if at % 2:
            path.write_bytes(b"{" * 10)
        else:
            path.unlink()
    proof = prove(server, migration)
    assert proof.content["verification"]["verdict"] == "converged"
    assert proof.verdict == "proven"
    parsed(proof.html())


def test_a_directory_that_cannot_be_written_is_an_error_of_its_own(
    server: EmbeddedServer, migration: Migration, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MigrationError, match="cannot be written"):
        prove(server, _backfilled(migration)).save(tmp_path / "file" / "below")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_proof_of_many_symbols_lists_what_differs_and_some_of_the_rest(
    server: EmbeddedServer, client: Any, migration: Migration
) -> None:
    pipe = client[0].pipeline()
    for i in range(2300):
        pipe.xadd(f"ticks:NSE:N{i:04}", {"ltp": 1, "ltq": 2, "ts": 1_700_000_000_000 + i}, id="1700000000000-0")
    pipe.execute()
    migration.backfill()
    migration.verify()
    client[1].delete("ticks:NSE:N2299")
    with Endpoint.connect(server.url, writable=False) as endpoint:
        found = conserve(endpoint, PLAN, migration.tape)
        proof = make_proof(endpoint, PLAN, migration.status(), tape=migration.tape, conservation=found)
    held = proof.content["conservation"]
    assert len(held["rows"]) == 2000 and held["rows_unlisted"] == 310
    assert held["rows"][0]["symbol"] == "NSE:N2299"
    assert held["balances"] == {"equal": 2309, "more": 0, "lost": 1, "doubled": 0, "extra": 0, "differs": 0}
    assert held["days"] == [{"day": "2023-11-15", "old": 2700, "new": 2699, "tape": 2700}]
    assert "310 equal rows are not listed" in words(proof.html())
    assert len(proof.html()) < 1_000_000
