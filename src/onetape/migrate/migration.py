"""The migration: the one object users hold.

Plan, backfill, verify, status and why, over one server and one ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from onetape import clock
from onetape.errors import ConfigInvalid, EndpointError, LedgerBusy, PreflightRefused
from onetape.migrate.backfill.backfill import VALUE_BYTES_MAX, Backfill, Digests, OnProgress, Options
from onetape.migrate.backfill.collisions import check_collisions
from onetape.migrate.backfill.fault_point import fault_point
from onetape.migrate.landing.ticks import Lander
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.phases import phase as phases
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History
from onetape.migrate.phases.move import Move
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.published import Publisher
from onetape.migrate.phases.state import Lease, State
from onetape.migrate.plans.plan import Plan
from onetape.migrate.remote import Bridge, away, connect_both
from onetape.migrate.remote.fitness import check_both
from onetape.migrate.report import EXIT_FAILURES, EXIT_OK, Report, UnmatchedKeys
from onetape.migrate.report import save as save_report
from onetape.migrate.steps import course, gate
from onetape.migrate.steps.cutover import cutover
from onetape.migrate.steps.finish import finish
from onetape.migrate.steps.gate import Limits
from onetape.migrate.steps.repair import repair
from onetape.migrate.steps.reverse import rollback
from onetape.migrate.steps.undo import undo
from onetape.migrate.steps.unfence import lift
from onetape.migrate.survey import preflight
from onetape.migrate.survey.listing import Listing, Unmatched
from onetape.migrate.throttling.pace import Pace
from onetape.migrate.throttling.pacing import Pacing
from onetape.migrate.throttling.throttle import Settings
from onetape.migrate.verifying.verdict import Verification
from onetape.migrate.verifying.verify import verify
from onetape.migrate.watching.status import PlanCheck, Reason, Status, status_of
from onetape.migrate.wire.endpoint import Endpoint, connect_again
from onetape.progress import Progress, ProgressMeter
from onetape.tape import Tape


class Migration:
    """A plan, a server, a ledger and perhaps a tape. Holds no connection between calls.

    `url`: redis://[USER:PASSWORD@]HOST[:PORT], rediss://, unix:// or sentinel://, see address.py. `target_url`: another
    server as the target, also cluster://; None: another database of the same one. `ledger_path`: created by the first
    backfill. `tape`: where ticks and bars land; None: they are copied and merged in Redis only. `report_dir`:
    where backfills and verifies write their JSON reports; None: nowhere. `checks=False` leaves out the
    preflight.
    """

    def __init__(
        self,
        url: str,
        *,
        target_url: str | None = None,
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
        self.target_url = target_url
        self._plan = plan or Plan.load()
        #: The plan as the connections see it: on a bridge the target is another server's database.
        self._seen = self._plan if target_url is None else away(self._plan)
        self.ledger_path = Path(ledger_path)
        self.tape = tape
        self.report_dir = None if report_dir is None else Path(report_dir)
        self._timeout_s = timeout_s
        self._value_bytes_max = value_bytes_max
        self._checks = checks
        self._at = at or fault_point()
        self.helm = Helm(url, self._plan, self.ledger_path, timeout_s=timeout_s, at=self._at)

    def plan(self, on_progress: OnProgress | None = None) -> PlanCheck:
        """Hold the plan against the real keys; only reads.

        Raises PlanCollision if two keys would become one, EndpointError.
        """
        plan = self._plan
        with self._reader() as reader:
            refusals, found = self._preflight_findings()
            check_collisions(reader, self._seen)
            listing = Listing(reader, self._seen)
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
            with self._writer() as endpoint:
                return (), self._check(endpoint)
        except PreflightRefused as refused:
            return tuple(refused.facts["reasons"]), None

    def backfill(
        self,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        steps: Iterable[str] | None = None,
        on_progress: OnProgress | None = None,
        digests: Digests | None = None,
        pace: Pacing | None = None,
        throttle: Settings | None = None,
    ) -> Report:
        """Bring all keys over, and land ticks and bars; run again, it goes on where it was and changes nothing else.

        dry_run: say what would be done, on a connection that cannot write. limit: at most that many keys a
        step. steps: only these. digests: taken before each copy, or by the next verify, which is faster, and safe
        while all writers write both sides; None: as the migration's state asks for. throttle: what it keeps to; while
        a live migration is under way, its state's settings and pause come on top. pace: in the place of the one that
        is made of these. Keys that fail are in the report, and the others go on: see Report.exit_code.
        Raises, before anything is written, PreflightRefused, PlanCollision, PlanInvalid, LedgerBusy and
        LedgerUnusable; and EndpointError or LedgerUnusable when server or ledger are lost on the way, MemoryShort
        when the server's memory would not do: then run again.
        """
        if limit is not None and limit < 0:
            raise ConfigInvalid(f"limit = {limit}", hint="a number of keys a step; None is no limit")
        started_ns = clock.now_ns()
        plan = self._plan
        chosen = plan.steps if steps is None else plan.only(steps).steps
        whole = limit is None and steps is None
        with self._reader() as reader, ExitStack() as stack:
            live = None if dry_run and not self._checks else self._live(reader)
            if live is not None:
                self.helm.own(live)
                phases.step("backfill", live.phase)
            options = Options(
                steps=chosen,
                limit=limit,
                value_bytes_max=self._value_bytes_max,
                on_progress=on_progress,
                digests=digests or ("copy" if live is None or live.mirrored else "verify"),
                at=self._at,
            )
            if dry_run:
                return self._dry_run(reader, options, started_ns)
            warnings = self._preflight()
            if live is not None:
                lease = stack.enter_context(self.helm.lease("backfill"))
                options = msgspec.structs.replace(options, on_progress=_watching(lease, on_progress))
            pace = pace or stack.enter_context(self._pace(live, throttle))
            options = msgspec.structs.replace(options, pace=pace)
            if live is not None:
                told = stack.enter_context(Publisher(self._writer, self.helm.names, "backfill", pace))
                options = msgspec.structs.replace(options, on_progress=_both(told, options.on_progress))
            with Ledger.open(self.ledger_path) as ledger:
                ledger.bind(self._plan, address=reader.address, run_id=reader.run_id)
                ledger.begin_run("backfill")
                with self._writer() as writer:
                    lander = Lander(writer, self._seen.target_db, self.tape, plan.timezone)
                    job = Backfill(reader, self._writer, self._seen, ledger, lander, options)
                    job.run()
                report = self._report(job, reader, started_ns, warnings)
                if live is None and whole and ledger.state("phase") == "planned":
                    ledger.set_state(phase="backfilled")
                ledger.end_run(report.path)
            if live is not None and whole and report.exit_code == EXIT_OK:
                lease.check()
                with self._writer() as writer:
                    course.advance(self.helm, writer, "backfill", live)
            return report

    def _live(self, endpoint: Endpoint) -> State | None:
        """Return the state of a live migration under way, None for a historical one. Raises StateLost."""
        if self.target_url is not None:
            return None  # a write cannot be one transaction on two servers
        try:
            found = self.helm.look(endpoint)
        except EndpointError as error:
            if error.facts.get("code") not in ("NOPERM", "ERR") or self.helm.known() is not None:
                raise
            return None  # this user may not see it, and so cannot have started one
        return None if found is None or found.phase is Phase.PLANNED else found

    def _pace(self, live: State | None, throttle: Settings | None) -> Pace:
        def connect(url: str) -> Endpoint:
            return Endpoint.connect(url, writable=False, timeout_s=self._timeout_s)

        other = self.target_url
        return Pace(
            lambda: connect(self.url),
            None if live is None else self._plan,
            throttle=throttle,
            memory=None if other is None else lambda: connect(other),
            govern=self._checks and not (other or "").startswith("cluster:"),  # each of its nodes has its own memory
        )

    def _dry_run(self, reader: Endpoint, options: Options, started_ns: int) -> Report:
        plan = self._plan
        ledger = Ledger.open(self.ledger_path, mode="r") if self.ledger_path.exists() else None
        try:
            if ledger is not None:
                ledger.check(plan, address=reader.address, run_id=reader.run_id)
            with self._reader() as landing:
                lander = Lander(landing, self._seen.target_db, self.tape, plan.timezone, dry_run=True)
                job = Backfill(reader, None, self._seen, ledger, lander, options)
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

        See onetape.migrate.verifying.verify for the arguments. A JSON report is written as for a backfill. While one is
        at work with the ledger, the verdict cannot be recorded: then `note` says so.
        Raises ConfigInvalid, EndpointError, and LedgerUnusable where the ledger is of another plan or server.
        """
        if sample is not None and sample < 1:
            raise ConfigInvalid(f"sample = {sample}", hint="a number of keys, at least 1; None is all of them")
        ledger = Ledger.open(self.ledger_path, mode="r") if self.ledger_path.exists() else None
        try:
            with self._reader() as reader, ExitStack() as stack:
                address = reader.address
                if ledger is not None:
                    ledger.check(self._plan, address=address, run_id=reader.run_id)
                live = self._live(reader)
                if live is not None:
                    told = stack.enter_context(Publisher(self._writer, self.helm.names, "verify"))
                    on_progress = _counting(told, on_progress)
                began_ms = states.server_ms(reader) if live is not None else 0
                sealing = stack.enter_context(self._sealing(ledger))
                was_there = None
                if live is None and ledger is not None:
                    history = stack.enter_context(History(self.ledger_path, mode="r"))
                    was_there = history.was_found if course.was_left(history) else None
                result = verify(
                    reader,
                    self._seen,
                    ledger,
                    tape=self.tape,
                    rounds=rounds,
                    pause_s=pause_s,
                    sample=sample,
                    on_progress=on_progress,
                    in_server=self.target_url is None,
                    sealing=sealing,
                    was_there=was_there,
                )
        finally:
            if ledger is not None:
                ledger.close()
        result = self._record_verdict(result, address, live is not None)
        return result if live is None else self._record_live(result, began_ms, live)

    @contextmanager
    def _sealing(self, ledger: Ledger | None) -> Iterator[Ledger | None]:
        """Give the ledger for a verify to write the digests into that a copy left open, None if there is nothing to
        write, or a backfill is at work with it.
        """
        if ledger is None or not ledger.digests_open:
            yield None
            return
        try:
            writing = Ledger.open(self.ledger_path)
        except LedgerBusy:
            yield None
            return
        with writing:
            writing.begin_run("digests")
            yield writing
            writing.end_run()

    def _record_live(self, result: Verification, began_ms: int, live: State) -> Verification:
        """Tell the history of a live migration what a verify found, and go on to `verified` where it proves enough.

        `live`: the state that the verify began with.
        """
        if result.sampled:
            return result
        with self._writer() as writer:
            now = self.helm.look(writer)
            if now is None or now.entered != live.entered:
                told = "gone" if now is None else f"{now.phase}, entered since"
                note = f"not in the history: the phase was {live.phase} when it began, and is {told}; verify again"
                return msgspec.structs.replace(result, note=note)
            if not self.helm.knows():
                note = "not in the history: this ledger knows nothing of the live migration; give its own (--ledger)"
                return msgspec.structs.replace(result, note=note)
            with self.helm.history(writer) as history:
                again = course.was_left(history)
                proven, harmful = course.proven(result, again=again), course.harmful(result, again=again)
                history.set_values(
                    verdict=result.verdict, verified_ms=str(began_ms), verified="1" if proven else "0",
                    verified_skips=msgspec.json.encode(harmful).decode(),
                )  # fmt: skip
            if proven:
                self.helm.forget_diverged(writer, gate.settled(self.helm, writer))
            if now.phase is not Phase.BACKFILLED:
                return result
            if proven:
                course.advance(self.helm, writer, "verify", live)
                return result
        if result.exit_code == EXIT_FAILURES:
            return result
        why = ", ".join(f"{number:,} {name}" for name, number in harmful.items())
        hint = "readers of the new names would see something else: verify --repair settles them"
        return msgspec.structs.replace(result, note=f"the phase stays {now.phase}: {why}; {hint}")

    def _record_verdict(self, result: Verification, address: str, live: bool) -> Verification:
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
                proven = not live and result.exit_code in (0, 3) and ledger.state("phase") == "backfilled"
                ledger.set_state(verdict=result.verdict, **({"phase": "verified"} if proven else {}))
                ledger.end_run(result.report)
        except LedgerBusy as busy:
            if live:
                return result  # a mirror is at work; the history has the verdict
            return msgspec.structs.replace(result, note=f"the verdict is not in the ledger: {busy.message}")
        return result

    def start(self, *, mirrored: bool | None = None, execute: bool = False) -> Move:
        """Begin the live migration: clients write both sides from then on. A dry run until `execute`.

        mirrored: there are writers that cannot be changed, and `migrate mirror` follows them; None leaves it as it is.
        A state that the server forgot (StateLost) is written back, as `dual_writing`. Raises PreflightRefused,
        PlanCollision, PhaseRefused, ConfigInvalid, OperatorBusy, StateLost where the new names were the truth already.
        """
        self._same_server("start")
        self._preflight()
        with self._reader() as reader:
            check_collisions(reader, self._plan)
        return self._told(course.start(self.helm, mirrored=mirrored, execute=execute))

    def switch_reads(self, *, share: float | None = 1.0, shadow: float | None = None, execute: bool = False) -> Move:
        """Let a share of reads, 0 to 1, go to the new names first; a dry run until `execute`.

        shadow: share of reads that are compared with the other side. None leaves a share as it is. Given again, it
        changes the shares. Raises PhaseRefused, ConfigInvalid, OperatorBusy, StateMoved, StateLost.
        """
        return self._told(course.switch_reads(self.helm, share=share, shadow=shadow, execute=execute))

    def cutover(
        self,
        *,
        limits: Limits | None = None,
        fence: Iterable[str] = (),
        force: bool = False,
        execute: bool = False,
    ) -> Move:
        """Make the new names the truth, for all clients at one instant; a dry run until `execute`.

        limits: what the gate asks for. fence: server users that may not write old names from then on. force: go on
        against the gate's reasons, which are then in the history. Raises GateRefused with every reason, PhaseRefused,
        OperatorBusy, StateMoved, StateLost; then nothing was changed.
        """
        asked = limits or Limits()
        return self._told(cutover(self.helm, limits=asked, users=tuple(fence), force=force, execute=execute))

    def rollback(
        self,
        *,
        to: Phase | str | None = None,
        force: bool = False,
        discard: bool = False,
        allow_flush: bool = False,
        execute: bool = False,
    ) -> Move:
        """Go back one phase, or to the phase `to`; a dry run until `execute`.

        Leaving the cutover, old keys are made what the new ones are, so that nothing written since is lost; what
        cannot be carried back is refused by name (GateRefused) unless `force`. A value that is replaced is kept in the
        ledger; `discard`: one too big for that may be lost. Where most new keys are gone it is refused before anything
        is written (SourceVanished) unless `allow_flush`. A way back that was killed is ended by giving it again.
        Raises PhaseRefused, GateRefused, OperatorBusy, StateMoved, StateLost.
        """
        goal = None if to is None else phases.parse(str(to))
        return self._told(
            rollback(self.helm, to=goal, force=force, discard=discard, allow_flush=allow_flush, execute=execute)
        )

    def repair(
        self,
        *,
        replace_newer: bool = False,
        discard: bool = False,
        allow_flush: bool = False,
        execute: bool = False,
    ) -> Move:
        """Make what differs equal, towards the side that is the truth in this phase; a dry run until `execute`.

        A value that is replaced is kept in the ledger, so that undo() can put it back; `discard`: one too big for that
        may be lost. replace_newer: also values that somebody newer had written before both sides were, and new keys
        that have no old one and came since. What is not touched is named. Where most keys that are the truth are gone,
        it is refused before anything is written (SourceVanished) unless `allow_flush`. Raises PhaseRefused,
        OperatorBusy, LedgerBusy, StateMoved, StateLost.
        """
        self._same_server("repair")
        return self._told(
            repair(self.helm, replace_newer=replace_newer, discard=discard, allow_flush=allow_flush, execute=execute)
        )

    def finish(
        self,
        *,
        quiet_for_s: float = 300.0,
        drop_differing: bool = False,
        force: bool = False,
        execute: bool = False,
    ) -> Move:
        """End the migration and remove the old keys; a dry run until `execute`. Nothing leads back from it.

        An old key stays, and is named, where nothing says that what it holds is elsewhere; drop_differing: it goes, and
        the ledger keeps its value. quiet_for_s: refused (GateRefused) while connections that are not ours used an old
        database within that time, unless `force`. Killed and given again, it goes on. Raises PhaseRefused and
        OperatorBusy.
        """
        plan = self._plan
        return self._told(
            finish(
                self.helm,
                lander=lambda endpoint: Lander(endpoint, plan.target_db, self.tape, plan.timezone),
                quiet_for_s=quiet_for_s,
                drop_differing=drop_differing,
                force=force,
                execute=execute,
            )
        )

    def undo(self, *, execute: bool = False) -> Move:
        """Remove the new keys that still are what the migration made, put back what it replaced; a dry run first.

        For a migration in `planned`, after rollback(), and for one that never was live. What somebody wrote since stays
        and is named; records on the tape stay. The ledger is put away at the end. Raises PhaseRefused, OperatorBusy,
        LedgerBusy.
        """
        self._same_server("undo")
        return self._told(undo(self.helm, tape=self.tape, execute=execute))

    def _told(self, move: Move) -> Move:
        notes, self.helm.notes = self.helm.notes, []
        return msgspec.structs.replace(move, warnings=(*move.warnings, *notes)) if notes else move

    def unfence(self, *, execute: bool = False) -> Move:
        """Give users that a cutover fenced their rights back, in any phase; a dry run until `execute`.

        A rollback does it too; after finish() this is the only way. Raises EndpointError and OperatorBusy.
        """
        self._same_server("unfence")
        return self._told(lift(self.helm, execute=execute))

    def pause(self) -> Move:
        """Let all copying stand still, at once. Clients write on. Raises PhaseRefused."""
        return course.setting(self.helm, "pause", "copying stands still; clients write on", paused=True)

    def resume(self) -> Move:
        """Let copying go on after pause(). Raises PhaseRefused."""
        return course.setting(self.helm, "resume", "copying goes on", paused=False)

    def throttle(self, settings: Mapping[str, Any], *, clear: bool = False) -> Move:
        """Change settings of the throttle for all who copy, at once; None takes one out, `clear` all others.

        Raises PhaseRefused.
        """
        return course.throttle(self.helm, settings, clear=clear)

    def postpone(self, postponed: bool = True) -> Move:
        """Let no cutover begin until postpone(False). Raises PhaseRefused."""
        told = "no cutover may begin" if postponed else "a cutover may begin"
        return course.setting(self.helm, "postpone", told, postponed=postponed)

    def status(self, *, server: bool | None = None) -> Status:
        """Return where the migration stands; see status_of(). Raises LedgerUnusable where nobody knows of one."""
        return status_of(self.helm, server=server)

    def why(self, key: bytes | str) -> list[Reason]:
        """Return the history of a key, given by its old or its new name, oldest first; [] if the ledger has
        none.
        """
        wanted = key.encode() if isinstance(key, str) else key
        with Ledger.open(self.ledger_path, mode="r") as ledger:
            return [Reason.of(entry) for entry in ledger.why(wanted)]

    def _same_server(self, command: str) -> None:
        if self.target_url is not None:
            raise ConfigInvalid(
                f"{command} with another server as the target: a write to both would not be one transaction",
                hint="a live migration stays on one server; to another one, backfill and verify",
            )

    def _reader(self) -> Endpoint:
        if self.target_url is not None:
            return connect_both(self.url, self.target_url, writable=False, timeout_s=self._timeout_s)
        return Endpoint.connect(self.url, writable=False, timeout_s=self._timeout_s)

    def _writer(self) -> Endpoint:
        if self.target_url is not None:
            return connect_both(self.url, self.target_url, writable=True, timeout_s=self._timeout_s)
        return connect_again(self.url, timeout_s=self._timeout_s)

    def _preflight(self) -> tuple[str, ...]:
        if not self._checks:
            return ()
        with self._writer() as endpoint:
            return self._check(endpoint).warnings

    def _check(self, endpoint: Endpoint) -> preflight.Preflight:
        if isinstance(endpoint, Bridge):
            return check_both(endpoint, self._seen)
        return preflight.check(endpoint, self._plan)

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
            throttled=job.waited,
        )
        return report if self.report_dir is None else report.save(self.report_dir)


def _counting(told: OnProgress, shown: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
    meter = ProgressMeter("verify")

    def count(done: int, total: int) -> None:
        told(meter.update(done, total))
        if shown is not None:
            shown(done, total)

    return count


def _both(one: OnProgress, other: OnProgress | None) -> OnProgress:
    def told(progress: Progress) -> None:
        one(progress)
        if other is not None:
            other(progress)

    return told


def _watching(lease: Lease, on_progress: OnProgress | None) -> OnProgress:
    """Return what shows progress, and ends the work of an operator who lost the lease."""

    def told(progress: Progress) -> None:
        lease.check()
        if on_progress is not None:
            on_progress(progress)

    return told


def _unmatched(found: dict[int, Unmatched]) -> dict[int, UnmatchedKeys]:
    return {db: UnmatchedKeys(keys.count, tuple(keys.first)) for db, keys in found.items() if keys.count}


__all__ = ["Migration", "PlanCheck", "Reason", "Status"]
