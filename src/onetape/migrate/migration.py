"""The migration: the one object users hold.

Plan, backfill, verify, status and why, over one server and one ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from onetape import clock
from onetape.errors import ConfigInvalid, LedgerBusy, PreflightRefused
from onetape.migrate import preflight
from onetape.migrate.backfill import (
    VALUE_BYTES_MAX,
    Backfill,
    OnProgress,
    Options,
    check_collisions,
    fault_point,
)
from onetape.migrate.endpoint import Endpoint, connect_again
from onetape.migrate.ledger import Entry, Ledger, Run
from onetape.migrate.listing import Listing, Unmatched
from onetape.migrate.plan import Plan
from onetape.migrate.report import Report, UnmatchedKeys, key_text
from onetape.migrate.report import save as save_report
from onetape.migrate.ticks import Lander
from onetape.migrate.verdict import Verification
from onetape.migrate.verify import verify
from onetape.progress import Progress
from onetape.tape import Tape


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
    """What the ledger says: phase, verdict of the last verify, counts by step and outcome, runs (oldest
    first).
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


class Migration:
    """A plan, a server, a ledger and perhaps a tape. Holds no connection between calls.

    `url`: redis://[USER:PASSWORD@]HOST[:PORT], rediss:// or unix://. `ledger_path`: created by the first
    backfill. `tape`: where ticks and bars land; None: they are copied and merged in Redis only. `report_dir`:
    where backfills and verifies write their JSON reports; None: nowhere. `checks=False` leaves out the
    preflight.
    """

    def __init__(
        self,
        url: str,
        *,
        plan: Plan | None = None,
        ledger_path: str | Path = "migration.db",
        tape: Tape | None = None,
        report_dir: str | Path | None = None,
        timeout_s: float = 10.0,
        value_bytes_max: int = VALUE_BYTES_MAX,
        checks: bool = True,
        at: Callable[[str], None] | None = None,
    ) -> None:
        self.url = url
        self._plan = plan or Plan.load()
        self.ledger_path = Path(ledger_path)
        self.tape = tape
        self.report_dir = None if report_dir is None else Path(report_dir)
        self._timeout_s = timeout_s
        self._value_bytes_max = value_bytes_max
        self._checks = checks
        self._at = at or fault_point()

    def plan(self, on_progress: OnProgress | None = None) -> PlanCheck:
        """Hold the plan against the real keys; only reads.

        Raises PlanCollision if two keys would become one, EndpointError.
        """
        plan = self._plan
        with self._reader() as reader:
            refusals, found = self._preflight_findings()
            check_collisions(reader, plan)
            listing = Listing(reader, plan)
            counts: Counter[int] = Counter()
            try:
                for step in plan.steps:
                    for page in listing.pages(step):
                        counts.update(page.rules)
                        if on_progress is not None:
                            on_progress(Progress(step, counts.total(), listing.total, 0.0, 0.0, None))
                unmatched = _unmatched(listing.unmatched)
            finally:
                listing.close()
            steps = dict.fromkeys(plan.steps, 0)
            for index, number in counts.items():
                steps[plan.rules[index].step] += number
            return PlanCheck(
                name=plan.name,
                hash=plan.hash,
                target_db=plan.target_db,
                address=reader.address,
                steps=steps,
                rules=tuple(
                    (rule.step, rule.source_db, rule.pattern or rule.glob, counts[index])
                    for index, rule in enumerate(plan.rules)
                ),
                unmatched=unmatched,
                keys_total=counts.total(),
                bytes_to_copy=found.bytes_to_copy if found else 0,
                bytes_free=found.bytes_free if found else None,
                warnings=found.warnings if found else (),
                refusals=refusals,
            )

    def _preflight_findings(self) -> tuple[tuple[str, ...], preflight.Preflight | None]:
        try:
            with Endpoint.connect(self.url, timeout_s=self._timeout_s) as endpoint:
                return (), preflight.check(endpoint, self._plan)
        except PreflightRefused as refused:
            return tuple(refused.facts["reasons"]), None

    def backfill(
        self,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        steps: Iterable[str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Report:
        """Bring all keys over, and land ticks and bars; run again, it goes on where it was and changes nothing else.

        dry_run: say what would be done, on a connection that cannot write. limit: at most that many keys a
        step. steps: only these. Keys that fail are in the report, and the others go on: see Report.exit_code.
        Raises, before anything is written, PreflightRefused, PlanCollision, PlanInvalid, LedgerBusy and
        LedgerUnusable; and EndpointError or LedgerUnusable when server or ledger are lost on the way: then
        run again.
        """
        if limit is not None and limit < 0:
            raise ConfigInvalid(f"limit = {limit}", hint="a number of keys a step; None is no limit")
        started_ns = clock.now_ns()
        plan = self._plan
        chosen = plan.steps if steps is None else plan.only(steps).steps
        with self._reader() as reader:
            options = Options(
                steps=chosen,
                limit=limit,
                value_bytes_max=self._value_bytes_max,
                on_progress=on_progress,
                at=self._at,
            )
            if dry_run:
                return self._dry_run(reader, options, started_ns)
            warnings = self._preflight()
            with Ledger.open(self.ledger_path) as ledger:
                ledger.bind(self._plan, address=reader.address, run_id=reader.run_id)
                ledger.begin_run("backfill")
                with self._writer() as writer:
                    lander = Lander(writer, plan.target_db, self.tape, plan.timezone)
                    job = Backfill(reader, self._writer, plan, ledger, lander, options)
                    job.run()
                report = self._report(job, reader, started_ns, warnings)
                if limit is None and steps is None and ledger.state("phase") == "planned":
                    ledger.set_state(phase="backfilled")
                ledger.end_run(report.path)
                return report

    def _dry_run(self, reader: Endpoint, options: Options, started_ns: int) -> Report:
        plan = self._plan
        ledger = Ledger.open(self.ledger_path, mode="r") if self.ledger_path.exists() else None
        try:
            if ledger is not None:
                ledger.check(plan, address=reader.address, run_id=reader.run_id)
            with self._reader() as landing:
                lander = Lander(landing, plan.target_db, self.tape, plan.timezone, dry_run=True)
                job = Backfill(reader, None, plan, ledger, lander, options)
                job.run()
        finally:
            if ledger is not None:
                ledger.close()
        return self._report(job, reader, started_ns, (), dry_run=True)

    def verify(
        self,
        *,
        rounds: int = 3,
        pause_s: float = 1.0,
        sample: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Verification:
        """Compare all keys, both ways, on a connection that cannot write; record the verdict in the ledger.

        See onetape.migrate.verify.verify for the arguments. A JSON report is written as for a backfill. While a
        backfill is at work with the ledger, the verdict cannot be recorded: then `note` says so.
        Raises ConfigInvalid, EndpointError, and LedgerUnusable where the ledger is of another plan or server.
        """
        if sample is not None and sample < 1:
            raise ConfigInvalid(f"sample = {sample}", hint="a number of keys, at least 1; None is all of them")
        ledger = Ledger.open(self.ledger_path, mode="r") if self.ledger_path.exists() else None
        try:
            with self._reader() as reader:
                address = reader.address
                if ledger is not None:
                    ledger.check(self._plan, address=address, run_id=reader.run_id)
                result = verify(
                    reader,
                    self._plan,
                    ledger,
                    tape=self.tape,
                    rounds=rounds,
                    pause_s=pause_s,
                    sample=sample,
                    on_progress=on_progress,
                )
        finally:
            if ledger is not None:
                ledger.close()
        return self._record_verdict(result, address)

    def _record_verdict(self, result: Verification, address: str) -> Verification:
        now_ns = clock.now_ns()
        if self.report_dir is not None:
            content = {
                "command": "verify",
                "ended": clock.to_text(now_ns),
                "plan": {"name": self._plan.name, "hash": self._plan.hash, "target_db": self._plan.target_db},
                "server": {"address": address},
                "ledger": str(self.ledger_path),
                "verification": result.as_dict(),
            }
            result = msgspec.structs.replace(result, report=str(save_report(content, self.report_dir, now_ns)))
        if not self.ledger_path.exists() or result.sampled:
            return result
        try:
            with Ledger.open(self.ledger_path) as ledger:
                ledger.begin_run("verify")
                proven = result.exit_code in (0, 3) and ledger.state("phase") == "backfilled"
                ledger.set_state(verdict=result.verdict, **({"phase": "verified"} if proven else {}))
                ledger.end_run(result.report)
        except LedgerBusy as busy:
            return msgspec.structs.replace(result, note=f"the verdict is not in the ledger: {busy.message}")
        return result

    def status(self) -> Status:
        """Return what the ledger says. Raises LedgerUnusable where there is none."""
        with Ledger.open(self.ledger_path, mode="r") as ledger:
            return Status(
                ledger=str(self.ledger_path),
                plan_name=ledger.state("plan_name") or "",
                plan_hash=ledger.state("plan_hash") or "",
                target_db=int(ledger.state("target_db") or 0),
                address=ledger.state("address") or "",
                phase=ledger.state("phase") or "planned",
                verdict=ledger.state("verdict"),
                steps=ledger.counts(),
                runs=tuple(ledger.runs()),
            )

    def why(self, key: bytes | str) -> list[Reason]:
        """Return the history of a key, given by its old or its new name, oldest first; [] if the ledger has
        none.
        """
        wanted = key.encode() if isinstance(key, str) else key
        with Ledger.open(self.ledger_path, mode="r") as ledger:
            return [_reason(entry) for entry in ledger.why(wanted)]

    def _reader(self) -> Endpoint:
        return Endpoint.connect(self.url, writable=False, timeout_s=self._timeout_s)

    def _writer(self) -> Endpoint:
        return connect_again(self.url, timeout_s=self._timeout_s)

    def _preflight(self) -> tuple[str, ...]:
        if not self._checks:
            return ()
        with Endpoint.connect(self.url, timeout_s=self._timeout_s) as endpoint:
            return preflight.check(endpoint, self._plan).warnings

    def _report(
        self,
        job: Backfill,
        reader: Endpoint,
        started_ns: int,
        warnings: tuple[str, ...],
        *,
        dry_run: bool = False,
    ) -> Report:
        report = Report(
            command="backfill",
            dry_run=dry_run,
            plan_name=self._plan.name,
            plan_hash=self._plan.hash,
            target_db=self._plan.target_db,
            address=reader.address,
            server=reader.server,
            version=".".join(map(str, reader.version)),
            ledger=str(self.ledger_path),
            started_ns=started_ns,
            ended_ns=clock.now_ns(),
            steps=job.tally.steps(),
            ticks_landed=job.tally.ticks_landed,
            ticks_known=job.tally.ticks_known,
            error_count=job.tally.error_count,
            errors=tuple(job.tally.errors),
            note_count=job.tally.note_count,
            notes=tuple(job.tally.notes),
            unmatched=_unmatched(job.unmatched),
            warnings=warnings,
        )
        return report if self.report_dir is None else report.save(self.report_dir)


def _unmatched(found: dict[int, Unmatched]) -> dict[int, UnmatchedKeys]:
    return {db: UnmatchedKeys(keys.count, tuple(keys.first)) for db, keys in found.items() if keys.count}


def _reason(entry: Entry) -> Reason:
    return Reason(
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


__all__ = ["Migration", "PlanCheck", "Reason", "Status"]
