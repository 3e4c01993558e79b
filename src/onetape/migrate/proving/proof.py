"""The proof: what a migration did and what was found equal afterwards, as a signed report that shows if it is altered.

A JSON file and a page beside it. The JSON holds the sha256 of its own content, written with sorted keys and no spaces;
the page is made from the JSON alone, so it can be made again and compared. That tells an accident or a quick edit;
whoever wants to tell more keeps the sha256 elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from onetape import clock
from onetape.errors import ConfigInvalid, EndpointError, MigrationError, ProofAltered
from onetape.migrate.phases import state
from onetape.migrate.phases.history import DONE
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import Plan
from onetape.migrate.proving import page
from onetape.migrate.proving.conservation import Conservation
from onetape.migrate.proving.conserve import conserve
from onetape.migrate.proving.holdings import OnProgress
from onetape.migrate.report import EXIT_FAILURES, EXIT_OK, EXIT_SKIPS
from onetape.migrate.verifying.verdict import CONVERGED, WITH_SKIPS, Verification
from onetape.migrate.watching.status import Status
from onetape.migrate.wire.endpoint import Endpoint, parse_info
from onetape.tape import Tape

FORMAT = 1
#: Equal rows that are listed; all that are not equal are.
ROWS_LISTED = 2000
PROVEN, PROVEN_WITH_SKIPS, UNPROVEN = "proven", "proven, with listed skips", "not proven"
EXIT_CODES = {PROVEN: EXIT_OK, PROVEN_WITH_SKIPS: EXIT_SKIPS, UNPROVEN: EXIT_FAILURES}
#: What live writers have under way when a proof is made without a backfill to go by.
_SETTLING_NS = 5 * 10**9
_NAME_MAX = 200
#: Commands that write new or old keys, so that a verify before them no longer tells of all.
_COPYING = ("backfill", "repair", "undo")
_READS = ("reads", "new_reads", "old_reads", "old_fallbacks", "misses", "errors")


class Paths(NamedTuple):
    """Where a proof was saved."""

    json: Path
    page: Path


class Checked(msgspec.Struct, frozen=True):
    """A saved proof that is what was saved. `files`: what was checked; `note`: what could not be, and why."""

    files: tuple[str, ...]
    sha256: str
    verdict: str
    made: str
    signed_by: str | None
    signed_at: str | None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return msgspec.structs.asdict(self)


class Proof(msgspec.Struct, frozen=True):
    """A report of a migration. `content`: what the JSON file holds, without its sha256."""

    content: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Return the sha256 of the content, in hex."""
        return _sha256(self.content)

    @property
    def verdict(self) -> str:
        """Return PROVEN, PROVEN_WITH_SKIPS or UNPROVEN."""
        return str(self.content["verdict"])

    @property
    def reasons(self) -> list[str]:
        """Return what keeps it from being proven, and what the skips are."""
        return list(self.content["reasons"])

    @property
    def exit_code(self) -> int:
        """Return 0 for proven, 3 with listed skips, 1 for not proven."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds."""
        return {**self.content, "sha256": self.sha256}

    def signed(self, name: str, at_ns: int | None = None) -> Proof:
        """Return it signed: with the name of who stands for it, and when. Raises ConfigInvalid for no name."""
        name = name.strip()
        if not name or len(name) > _NAME_MAX or any(unicodedata.category(char).startswith("C") for char in name):
            raise ConfigInvalid(
                f"signed by {name[:40]!r}", hint=f"the name of whoever signs: 1 to {_NAME_MAX} characters, one line"
            )
        at = clock.to_text((clock.now_ns() if at_ns is None else at_ns) // 1_000_000 * 1_000_000)
        return Proof({**self.content, "signed": {"by": name, "at": at}})

    def html(self) -> str:
        """Return the page."""
        return page.render(self.content, self.sha256)

    def save(self, directory: str | Path) -> Paths:
        """Write `migration_proof_<UTC time>.json` and `.html`, each whole or not at all. Raises MigrationError."""
        at = self.content["signed"]["at"] if self.content["signed"] else self.content["made"]
        stamp = at.replace("-", "").replace(":", "").replace(".", "_")
        paths = Paths(*(Path(directory) / f"migration_proof_{stamp}.{end}" for end in ("json", "html")))
        _write(paths.page, self.html().encode())  # the JSON last: it stands for both
        _write(paths.json, msgspec.json.format(msgspec.json.encode(self.to_dict()), indent=2) + b"\n")
        return paths


def make_proof(
    endpoint: Endpoint,
    plan: Plan,
    status: Status,
    *,
    tape: Tape | None = None,
    target: Endpoint | None = None,
    verification: Verification | None = None,
    conservation: Conservation | None = None,
    sign: str | None = None,
    throttle: Mapping[str, float] | None = None,
    progress: Sequence[tuple[float, int]] = (),
    notes: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Proof:
    """Gather all that is known of a migration, hold old keys, new keys and tape against each other, and sign it.

    `endpoint` may be one that cannot write; `target` is that of another server. `status`: Migration.status().
    `verification`: a verify just made; None: the report of the last one in the ledger. `conservation`: None: made now;
    where writers are at work, of ticks before the last backfill that came to its end. `sign`: the name of who stands
    for it, None: unsigned. `throttle`: reason → seconds that copying stood still for it. `progress`: (seconds, keys) of
    the backfill. `notes`: what else the operator wants to be in it. Raises EndpointError, TapeError, ConfigInvalid.
    """
    finished = status.phase == Phase.FINISHED
    if conservation is None and not finished:
        until_ns = _until_ns(endpoint, status)
        conservation = conserve(endpoint, plan, tape, target=target, until_ns=until_ns, on_progress=on_progress)
    verified = _verification(verification, status)
    outdated = _outdated(status) if verification is None else None
    backfill = _last_report(status, "backfill") or {}
    verdict, reasons = _judged(verified, outdated, conservation, status, finished)
    content = {
        "format": FORMAT,
        "onetape": _version(),
        "made": clock.to_text(clock.now_ns() // 1_000_000 * 1_000_000),
        "verdict": verdict,
        "reasons": reasons,
        "plan": {
            "name": status.plan_name or plan.name,
            "hash": status.plan_hash or plan.hash,
            "target_db": status.target_db,
            "timezone": plan.timezone,
            "rules": len(plan.rules),
            "steps": list(plan.steps),
        },
        "server": {
            "address": endpoint.address,
            "server": endpoint.server,
            "version": ".".join(map(str, endpoint.version)),
            "run_id": endpoint.run_id,
            "memory": _memory(endpoint),
        },
        "target": None if target is None else {"address": target.address, "server": target.server},
        "ledger": status.ledger,
        "phase": status.phase,
        "phases": _phases(status),
        "transitions": [one.to_dict() for one in status.transitions],
        "runs": status.to_dict()["runs"],
        "steps": status.steps,
        "backfill": {
            name: backfill.get(name)
            for name in ("seconds", "keys_per_s", "ticks", "errors", "notes", "unmatched", "warnings")
        },
        "verification": verified,
        "conservation": None if conservation is None else conservation.to_dict(ROWS_LISTED),
        "diverged": status.diverged,
        "reads": _reads(status.clients),
        "writers": list(status.writers),
        "throttle": dict(throttle or {}),
        "progress": [[round(seconds, 3), keys] for seconds, keys in progress],
        "notes": list(notes),
        "signed": None,
    }
    proof = Proof(msgspec.json.decode(msgspec.json.encode(content)))  # as it will be read back
    return proof if sign is None else proof.signed(sign)


def check_proof(path: str | Path) -> Checked:
    """Check a saved proof, given by its JSON file or its page; the page beside it is made again and compared.

    Raises ProofAltered, naming what differs, and ConfigInvalid for a file that is not there or is no proof.
    """
    path = Path(path)
    source, beside = path.with_suffix(".json"), path.with_suffix(".html")
    try:
        held = msgspec.json.decode(source.read_bytes())
    except OSError as error:
        raise ConfigInvalid(f"{source}: {error.strerror}", hint="give the JSON file of a proof, or its page") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProofAltered(f"{source} is not JSON any more: {error}", hint="take it from where it was kept") from error
    if not isinstance(held, dict) or "sha256" not in held or "format" not in held or "verdict" not in held:
        raise ConfigInvalid(f"{source} is no proof of a migration", hint="give what onetape migrate report has written")
    told = held.pop("sha256")
    found = _sha256(held)
    if told != found:
        raise ProofAltered(
            f"{source} was altered: its content has the sha256 {found}, and it says {told}",
            hint="take it from where it was kept, or make a new one",
            sha256=found,
        )
    if held["format"] != FORMAT:
        raise ConfigInvalid(f"{source} has format {held['format']}, this onetape reads {FORMAT}", hint="update onetape")
    files, note = [str(source)], None
    if not beside.exists():
        note = f"there is no page {beside.name} beside it"
    elif beside.read_bytes() == page.render(held, found).encode():
        files.append(str(beside))
    elif held["onetape"] == _version():
        raise ProofAltered(f"{beside} was altered: it does not say what {source.name} says", hint=f"read {source.name}")
    else:
        note = f"the page is of onetape {held['onetape']}, this is {_version()}: only the JSON could be checked"
    signed = held["signed"] or {}
    return Checked(
        tuple(files), found, str(held["verdict"]), str(held["made"]), signed.get("by"), signed.get("at"), note
    )


def _version() -> str:
    from onetape import __version__

    return __version__


def _canonical(content: dict[str, Any]) -> bytes:
    return msgspec.json.encode(content, order="sorted")


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _until_ns(endpoint: Endpoint, status: Status) -> int | None:
    """Return the time up to which all sides can be expected to be equal; None: nobody writes both sides."""
    if status.state is None or not Phase(status.phase).both_written:
        return None
    ended = [run for run in status.runs if run.command == "backfill" and run.ended_ns is not None]
    if ended:
        return ended[-1].started_ns
    return state.server_ms(endpoint) * 1_000_000 - _SETTLING_NS


def _outdated(status: Status) -> str | None:
    """Return why the last verify proves nothing any more, None where it does.

    After it keys were copied, or the old ones alone were written for a while.
    """
    ended = [run for run in status.runs if run.command == "verify" and run.ended_ns is not None]
    if not ended:
        return None
    last = ended[-1]
    for run in status.runs:
        if run.id > last.id and run.command in _COPYING:
            return f"keys were copied after the last verify, by a {run.command}: verify again"
    apart = (Phase.PLANNED, Phase.DUAL_WRITING)
    for one in status.transitions:
        if one.outcome == DONE and one.at_ns > last.started_ns and one.after != one.before and one.after in apart:
            return f"after the last verify the phase became {one.after}: verify again"
    return None


def _judged(
    verified: dict[str, Any] | None,
    outdated: str | None,
    conservation: Conservation | None,
    status: Status,
    finished: bool,
) -> tuple[str, list[str]]:
    wrong: list[str] = []
    skips: list[str] = []
    verdict = None if verified is None else verified["verdict"]
    if verdict is None:
        wrong.append("no verify has been made of all keys")
    elif verdict == WITH_SKIPS:
        skips.append(f"verify: {verdict}")
    elif verdict != CONVERGED:
        wrong.append(f"verify: {verdict}")
    if outdated is not None and not finished:
        wrong.append(outdated)
    if finished:
        wrong.append("the old keys are gone since finish: nothing is left to compare with")
    elif conservation is not None and not conservation.conserved:
        wrong.append("ticks or bars are not the same in old keys, new keys and tape")
    elif conservation is not None and not conservation.equal:
        skips.append("new keys or tape hold ticks or bars that the old keys no longer have")
    if conservation is not None and "tape" not in conservation.totals:
        skips.append("no tape was given: old and new keys alone were compared")
    failed = sum(counts.get("failed", 0) + counts.get("changed_while_copying", 0) for counts in status.steps.values())
    if failed:
        wrong.append(f"{failed:,} keys could not be brought over")
    if status.diverged:
        wrong.append(f"{status.diverged:,} keys are recorded as diverged")
    if wrong:
        return UNPROVEN, wrong + skips
    return (PROVEN_WITH_SKIPS, skips) if skips else (PROVEN, [])


def _verification(given: Verification | None, status: Status) -> dict[str, Any] | None:
    if given is not None:
        return {**given.as_dict(), "at": clock.to_text(clock.now_ns() // 1_000_000 * 1_000_000)}
    report = _last_report(status, "verify")
    if report is not None and isinstance(report.get("verification"), dict):
        return {**report["verification"], "at": report.get("ended")}
    if status.verdict is None:
        return None
    return {"verdict": status.verdict, "at": None, "note": "its report is not there any more: see the ledger"}


def _last_report(status: Status, command: str) -> dict[str, Any] | None:
    """Return the report of the last run of a command, None where it left none or it cannot be read."""
    paths = [run.report for run in status.runs if run.command == command and run.report and run.ended_ns]
    if not paths:
        return None
    try:
        found = msgspec.json.decode(Path(paths[-1]).read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _phases(status: Status) -> list[dict[str, Any]]:
    """Return the phases as they were, in order, each with when it began and when it was left."""
    done = [one for one in status.transitions if one.outcome == "done" and one.before != one.after]
    begun = min([run.started_ns for run in status.runs] + [one.at_ns for one in done], default=None)
    if begun is None:
        return []
    marks: list[tuple[str, int, str, str, bool]] = []
    if done:
        marks.append((done[0].before, begun, "", "", False))
        marks += [(one.after, one.at_ns, one.command, one.by, one.forced) for one in done]
    else:  # a historical migration: its runs are its phases
        marks.append(("planned", begun, "", "", False))
        for command, phase in (("backfill", "backfilled"), ("verify", "verified")):
            ended = [run.ended_ns for run in status.runs if run.command == command and run.ended_ns is not None]
            if ended and Phase(status.phase).at_least(Phase(phase)):
                marks.append((phase, ended[-1] if command == "verify" else ended[0], command, "", False))
    ends = [mark[1] for mark in marks[1:]] + [None]
    return [
        {
            "phase": phase,
            "from": clock.to_text(start),
            "until": None if end is None else clock.to_text(end),
            "seconds": None if end is None else round(max(0, end - start) / 1e9, 3),
            "command": command,
            "by": by,
            "forced": forced,
        }
        for (phase, start, command, by, forced), end in zip(marks, ends, strict=True)
    ]


def _reads(clients: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what the clients' heartbeats tell of their reads in all; None where none tells."""
    told = [one for one in clients.values() if isinstance(one.get("reads"), int)]
    if not told:
        return None
    sums = {name: sum(int(one.get(name) or 0) for one in told) for name in _READS}
    asked = sums["new_reads"] + sums["old_fallbacks"]
    return {"clients": len(told), **sums, "fallback_rate": sums["old_fallbacks"] / asked if asked else 0.0}


def _memory(endpoint: Endpoint) -> str | None:
    try:
        return parse_info(endpoint.call("INFO", "memory")).get("used_memory_human")
    except EndpointError:
        return None


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise MigrationError(
            f"the proof {path} cannot be written: {error.strerror}",
            hint="nothing else was changed; give another directory",
        ) from error


__all__ = ["EXIT_CODES", "PROVEN", "PROVEN_WITH_SKIPS", "UNPROVEN", "Checked", "Paths", "Proof", "check_proof",
           "make_proof"]  # fmt: skip
