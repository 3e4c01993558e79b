"""What is said of a migration as a whole: a plan held against the keys, where it stands, the history of one key."""

from __future__ import annotations

from typing import Any

import msgspec

from onetape import clock
from onetape.errors import EndpointError, LedgerUnusable, StateLost
from onetape.migrate.ledger.entry import Entry, Run
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History, Transition
from onetape.migrate.report import UnmatchedKeys, key_text
from onetape.migrate.steps import census
from onetape.migrate.steps.fence import saved
from onetape.migrate.wire.endpoint import Endpoint


class PlanCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A plan held against the real keys. `rules`: for each rule of the plan its keys, in the order of the file.

    Nothing collides, or there would be a PlanCollision instead. `refusals`: what a backfill would be refused
    for.
    """

    name: str
    hash: str
    target_db: int
    address: str
    steps: dict[str, int]
    rules: tuple[tuple[str, int, str, int], ...]  # step, source_db, pattern, keys
    unmatched: dict[int, UnmatchedKeys]
    keys_total: int
    bytes_to_copy: int
    bytes_free: int | None
    warnings: tuple[str, ...]
    refusals: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, keys as text."""
        return {
            **msgspec.structs.asdict(self),
            "rules": [
                {"step": step, "source_db": db, "pattern": pattern, "keys": keys}
                for step, db, pattern, keys in self.rules
            ],
            "unmatched": {
                str(db): {"count": keys.count, "first": [key_text(key) for key in keys.first]}
                for db, keys in self.unmatched.items()
            },
        }


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Where a migration stands: what the ledger says and, of a live one, what the server says.

    `phase`, `verdict`, counts by step and outcome, and runs (oldest first) are the ledger's. `state` is the state in
    Redis, None where no live migration was started or nobody asked; then `phase` is its phase. `trouble` says why the
    server could not be asked, or what it has forgotten. `clients` and `mirror` are what those say of themselves,
    `operator` who is at work, `diverged` how many keys may differ, `writers` the connections on the old databases that
    are not ours, `fenced` the users that may not write old names. `transitions`: every change of phase, oldest first.
    """

    ledger: str
    plan_name: str
    plan_hash: str
    target_db: int
    address: str
    phase: str
    verdict: str | None
    steps: dict[str, dict[str, int]]
    runs: tuple[Run, ...]
    state: dict[str, Any] | None = None
    trouble: str | None = None
    clients: dict[str, dict[str, Any]] = {}
    mirror: dict[str, Any] | None = None
    operator: dict[str, Any] | None = None
    diverged: int = 0
    writers: tuple[str, ...] = ()
    fenced: tuple[str, ...] = ()
    transitions: tuple[Transition, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, times as ISO 8601."""
        return {
            **msgspec.structs.asdict(self),
            "runs": [
                {
                    "id": run.id,
                    "command": run.command,
                    "started": clock.to_text(run.started_ns),
                    "ended": None if run.ended_ns is None else clock.to_text(run.ended_ns),
                    "report": run.report,
                }
                for run in self.runs
            ],
            "transitions": [transition.to_dict() for transition in self.transitions],
        }


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a key's history: what a run did with it, and why."""

    run: int
    at_ns: int | None
    step: str
    source_db: int
    key: bytes
    target: bytes
    outcome: str
    error: str | None
    expire_ms: int
    read: bytes | None
    written: bytes | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data: keys as text, digests in hex, the time as ISO 8601."""
        facts = msgspec.structs.asdict(self)
        del facts["at_ns"]
        return {
            **facts,
            "at": None if self.at_ns is None else clock.to_text(self.at_ns),
            "key": key_text(self.key),
            "target": key_text(self.target),
            "read": None if self.read is None else self.read.hex(),
            "written": None if self.written is None else self.written.hex(),
        }

    @classmethod
    def of(cls, entry: Entry) -> Reason:
        """Return what an entry of the ledger says."""
        return cls(
            run=entry.run,
            at_ns=entry.settled_ns,
            step=entry.step,
            source_db=entry.source_db,
            key=entry.key,
            target=entry.target,
            outcome=entry.outcome.value,
            error=entry.error,
            expire_ms=entry.expire_ms,
            read=entry.read,
            written=entry.written,
        )


def status_of(helm: Helm, *, server: bool | None = None) -> Status:
    """Return where the migration stands.

    `server`: whether Redis is asked too; None: where the ledger knows of a live migration, or there is no ledger.
    Raises LedgerUnusable where neither knows anything.
    """
    there = helm.ledger_path.exists()
    ask = (not there or helm.known() is not None) if server is None else server
    facts = _asked(helm) if ask else {}
    if not there:
        if facts.get("state") is None and "trouble" not in facts:
            Ledger.open(helm.ledger_path, mode="r")  # says that there is none
        if facts.get("state") is None:
            raise LedgerUnusable(
                f"there is no ledger {helm.ledger_path}, and {facts['trouble']}",
                hint="run a backfill first, or give --ledger and --redis",
            )
        plan = helm.plan
        return Status(
            ledger=f"none at {helm.ledger_path}", plan_name=plan.name, plan_hash=plan.hash, target_db=plan.target_db,
            verdict=None, steps={}, runs=(), **{"phase": "planned", "address": "", **facts},
        )  # fmt: skip
    with Ledger.open(helm.ledger_path, mode="r") as ledger, History(helm.ledger_path, mode="r") as history:
        known = {
            "phase": ledger.state("phase") or "planned",
            "address": ledger.state("address") or "",
        }
        return Status(
            ledger=str(helm.ledger_path),
            plan_name=ledger.state("plan_name") or "",
            plan_hash=ledger.state("plan_hash") or "",
            target_db=int(ledger.state("target_db") or 0),
            verdict=ledger.state("verdict"),
            steps=ledger.counts(),
            runs=tuple(ledger.runs()),
            transitions=tuple(history.transitions()),
            fenced=tuple(one.user for one in saved(history)),
            **{**known, **facts},
        )


def _asked(helm: Helm) -> dict[str, Any]:
    try:
        with helm.connect(writable=False) as endpoint:
            return {"address": endpoint.address, **_live_facts(helm, endpoint)}
    except EndpointError as error:
        return {"trouble": error.message}


def _live_facts(helm: Helm, endpoint: Endpoint) -> dict[str, Any]:
    trouble: dict[str, Any] = {}
    try:
        state = helm.look(endpoint)
    except StateLost as lost:
        state, trouble = states.load(endpoint, helm.plan), {"trouble": str(lost)}
    if state is None:
        return trouble
    return {
        **trouble,
        "phase": str(state.phase),
        "state": msgspec.to_builtins(state),
        "clients": helm.clients(endpoint),
        "mirror": helm.told(endpoint, helm.names.mirror),
        "operator": _without_token(helm.told(endpoint, helm.names.operator)),
        "diverged": len(helm.diverged(endpoint)),
        "writers": tuple(found.line() for found in census.strangers(endpoint, helm.plan)),
    }


def _without_token(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if facts is None else {name: value for name, value in facts.items() if name != "token"}


__all__ = ["PlanCheck", "Reason", "Status", "status_of"]
