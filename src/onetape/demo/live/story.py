"""The story of a live migration: forward through all phases, back from each, and nothing that was written is lost.

Writers and readers are processes of their own that never stop while the phases change. What is told was measured in
this run; the first claim that does not hold ends the demo with an error that says so.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from onetape import tape as tapes
from onetape.demo import legacy, market
from onetape.demo.live import reader as readers
from onetape.demo.live import writer as writers
from onetape.demo.live.check import check, check_tape
from onetape.demo.place import Place
from onetape.demo.process import Process
from onetape.demo.telling import Telling, outcomes
from onetape.embedded import EmbeddedServer
from onetape.errors import GateRefused, MigrationError
from onetape.migrate.migration import Migration
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import Plan
from onetape.migrate.steps.gate import Limits
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

WRITERS, READERS = 3, 2
TICKS, SYMBOLS = 20_000, 50
#: How long writers and readers are left alone in a phase before it is left again, s.
_PAUSE_S = 0.6
_WAIT_S = 20.0
#: How long the old names must have been left alone by others: seconds here, minutes in earnest.
_QUIET_S = 1.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`keep`: the folder of what stays. `samples`: that of real ticks. `command`: how the user calls onetape."""

    seed: int
    keep: Path
    samples: Path | None
    command: str


def run(options: Options, telling: Telling) -> dict[str, Any]:
    """Tell the story and return what was measured. Raises MigrationError where a claim does not hold."""
    started = time.monotonic()
    place = Place(options.keep)
    place.prepare()
    with ExitStack() as stack:
        # As a server that keeps what it has: the gate of the cutover asks for it.
        url = stack.enter_context(EmbeddedServer(options={"appendonly": "yes", "appendfsync": "everysec"})).url
        story = _Story(options, telling, place, url)
        stack.callback(story.end)
        story.tell()
    story.measured["seconds"] = round(time.monotonic() - started, 3)
    story.farewell()
    return story.measured


class _Story:
    def __init__(self, options: Options, telling: Telling, place: Place, url: str) -> None:
        self._options, self._telling, self._place, self._url = options, telling, place, url
        self._plan = Plan.load()
        self._writers: list[Process] = []
        self._readers: list[Process] = []
        self._tape: Tape | None = None
        self._reports: list[Path] = []
        self.measured: dict[str, Any] = {"nothing_lost": False, "phases": []}

    def tell(self) -> None:
        """Tell all chapters but the farewell."""
        self._fill()
        self._tape = tapes.open(self._place.tape, retention_days=None)
        migration = Migration(
            self._url, plan=self._plan, ledger_path=self._place.ledger, tape=self._tape,
            report_dir=self._place.folder,
        )  # fmt: skip
        self._start(migration)
        self._backfill(migration)
        self._verify(migration)
        self._switch_reads(migration)
        self._cutover(migration)
        self._finish(migration)
        self._prove()

    def end(self) -> None:
        """Leave nothing running and nothing open, however the story ended."""
        for process in (*self._writers, *self._readers):
            process.kill()
        if self._tape is not None:
            self._tape.close()
        self._place.note(*self._reports)

    def farewell(self) -> None:
        """Say where everything is."""
        telling, place = self._telling, self._place
        telling.chapter("Done")
        telling.line(f"All phases, and back from each, in {self.measured['seconds']:.1f} s. Kept for you:")
        for name, path in (
            ("tape", place.tape),
            ("ledger", place.ledger),
            *(("report", path) for path in self._reports),
        ):
            telling.plain(f"{name:<8} {path}")
        telling.line("How to do it with a system of yours: docs/live_migration.md")

    # Chapters

    def _fill(self) -> None:
        telling, options = self._telling, self._options
        telling.chapter("A live system: writers and readers that use old names, and never stop")
        instruments = market.gather(TICKS, SYMBOLS, options.seed, options.samples)
        legacy.fill(self._url, instruments, options.seed)
        found = legacy.survey(self._url)
        telling.line(f"{sum(found.keys.values()):,} keys in databases {', '.join(map(str, found.keys))}.")
        for number in range(WRITERS):
            awaited = number == WRITERS - 1
            orders = writers.Orders(self._url, os.getpid(), options.seed, number, awaited)
            self._writers.append(Process("onetape.demo.live.writer", orders))
        for number in range(READERS):
            seen = readers.Orders(self._url, os.getpid(), options.seed, number, WRITERS)
            self._readers.append(Process("onetape.demo.live.reader", seen))
        telling.line(
            f"{WRITERS} writers (one of them asyncio) and {READERS} readers, a process each. They use onetape's "
            "clients in place of redis-py's and know nothing of phases. Each write carries a counter."
        )
        self.measured["keys"] = {str(db): count for db, count in found.keys.items()}
        self._pause()

    def _start(self, migration: Migration) -> None:
        self._telling.chapter("Dual writing: each write goes to both sides, in one transaction")
        migration.start(execute=True)
        self._entered(migration, Phase.DUAL_WRITING)
        self._and_back(migration, Phase.PLANNED)
        migration.start(execute=True)
        self._entered(migration, Phase.DUAL_WRITING)

    def _backfill(self, migration: Migration) -> None:
        telling = self._telling
        telling.chapter("Backfill: what was there before, while they go on")
        report = self._run_backfill(migration)
        telling.table(*outcomes(report.steps))
        self._entered(migration, Phase.BACKFILLED)
        self._and_back(migration, Phase.DUAL_WRITING)
        self._run_backfill(migration)
        self._entered(migration, Phase.BACKFILLED)

    def _run_backfill(self, migration: Migration) -> Any:
        with self._telling.progress("backfill") as update:
            report = migration.backfill(on_progress=update)
        if report.path:
            self._reports.append(Path(report.path))
        if report.exit_code:
            first = report.errors[0].error if report.errors else str(report.totals)
            raise MigrationError(f"the backfill could not bring over {report.error_count:,} keys, first: {first}")
        return report

    def _verify(self, migration: Migration) -> None:
        telling = self._telling
        telling.chapter("Verify: all of it read again, both sides, while they go on")
        self._run_verify_with_repair(migration)  # keys deleted in the moment of the way back to the start
        self._entered(migration, Phase.VERIFIED)
        self._and_back(migration, Phase.BACKFILLED)
        self._run_verify(migration)
        self._entered(migration, Phase.VERIFIED)

    def _run_verify(self, migration: Migration) -> None:
        found = migration.verify()
        if found.report:
            self._reports.append(Path(found.report))
        self._telling.line(f"{found.checked:,} keys compared: {found.verdict}.")
        for line in (*found.differences[:5], *found.skips[:5]):
            self._telling.line(line, "yellow")
        if found.exit_code not in (0, 3):
            raise MigrationError(f"not verified: {next(iter(found.differences), found.verdict)}")
        self.measured["verification"] = found.as_dict()

    def _switch_reads(self, migration: Migration) -> None:
        self._telling.chapter("Read switch: readers ask the new names first")
        migration.switch_reads(share=0.5, shadow=0.2, execute=True)
        self._entered(migration, Phase.READS_SWITCHED)
        self._and_back(migration, Phase.VERIFIED)
        migration.switch_reads(share=1.0, shadow=0.2, execute=True)
        self._entered(migration, Phase.READS_SWITCHED)

    def _cutover(self, migration: Migration) -> None:
        telling = self._telling
        telling.chapter("Cutover: a gate, then one change that makes the new names the truth")
        with Endpoint.connect(self._url, db=5) as straggler:
            straggler.call("CLIENT", "SETNAME", "forgotten-script")
            straggler.call("SET", "indicators:NFO:STRAGGLERFUT:rsi", "1")
            try:
                migration.cutover(limits=_GATE, execute=True)
            except GateRefused as refused:
                telling.line("A script that nobody remembered writes to the old names. The gate refuses:")
                for reason in refused.facts["reasons"]:
                    telling.line(f"- {reason}", "yellow")
            else:
                raise MigrationError("the cutover did not notice a writer on the old names")
        telling.line("It is ended, and what it wrote is brought over.")
        self._run_verify_with_repair(migration)
        self._through_the_gate(migration)
        self._entered(migration, Phase.CUT_OVER)
        self._and_back(migration, Phase.READS_SWITCHED)
        self._through_the_gate(migration)
        self._entered(migration, Phase.CUT_OVER)

    def _run_verify_with_repair(self, migration: Migration) -> None:
        migration.repair(replace_newer=True, execute=True)
        self._run_verify(migration)

    def _through_the_gate(self, migration: Migration) -> None:
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                migration.cutover(limits=_GATE, execute=True)
                return
            except GateRefused:
                if time.monotonic() > deadline:
                    raise
            self._check_processes()
            time.sleep(0.5)

    def _finish(self, migration: Migration) -> None:
        telling = self._telling
        telling.chapter("Finish: the old keys go; the one step without a way back")
        move = migration.finish(quiet_for_s=_QUIET_S, execute=True)
        telling.line(f"{move.facts['removed']:,} old keys were removed.")
        if kept := move.facts.get("kept", 0):
            telling.line(
                f"{kept:,} that were written in the moment of the change stay: nothing proves that their new ones hold "
                "more. Told to, it removes them too, and keeps their values in the ledger."
            )
            migration.finish(quiet_for_s=_QUIET_S, drop_differing=True, execute=True)
        self._entered(migration, Phase.FINISHED)
        left = legacy.survey(self._url)
        telling.line(f"Left in the old databases: {sum(left.keys.values()):,} keys, which no rule moves.")
        self.measured["left"] = {str(db): count for db, count in left.keys.items()}

    def _prove(self) -> None:
        telling = self._telling
        telling.chapter("Proof: what the writers were told is done, number by number")
        tallies = [msgspec.json.decode(process.stop(), type=writers.Tally) for process in self._writers]
        seen = [msgspec.json.decode(process.stop(), type=readers.Seen) for process in self._readers]
        with Endpoint.connect(self._url, writable=False) as endpoint:
            found = check(endpoint, self._plan, tallies, new=True)
        writes, reads = sum(tally.writes for tally in tallies), sum(one.reads for one in seen)
        self.measured |= {
            "writes": writes,
            "reads": reads,
            "longest_write_ms": round(max(tally.longest_ms for tally in tallies), 1),
            "longest_read_ms": round(max(one.longest_ms for one in seen), 1),
            "check": msgspec.to_builtins(found),
            "readers": [msgspec.to_builtins(one) for one in seen],
            "writers": [tally.client for tally in tallies],
        }
        back = [line for one in seen for line in one.back]
        assert self._tape is not None
        taped = check_tape(self._tape, tallies)
        self.measured["check"]["ticks_on_tape"] = taped.numbers
        if taped.wrong:
            raise MigrationError(f"the tape is not as the streams were: {taped.wrong[0]}")
        if found.wrong:
            raise MigrationError(f"writes were lost or doubled: {found.wrong[0]}")
        if back:
            key, now, before = back[0]
            raise MigrationError(f"a reader saw {key} go back from {before:,} to {now:,}")
        telling.line(
            f"{writes:,} writes were acknowledged: {found.counters:,} counters are exact, {found.numbers:,} numbers "
            f"are in their lists and streams once and in order, {found.deletions:,} deleted keys are gone."
        )
        telling.line(
            f"{taped.numbers:,} of their ticks are on the tape, once and in order: all that were there when the old "
            "streams went."
        )
        telling.line(
            f"{reads:,} reads, none of which saw a counter go back. The longest wait: "
            f"{self.measured['longest_write_ms']} ms of a write, {self.measured['longest_read_ms']} ms of a read."
        )
        telling.line("Lost: 0. Doubled: 0.", "bold green")
        self.measured["nothing_lost"] = True

    # Steps of all chapters

    def _entered(self, migration: Migration, phase: Phase) -> None:
        self._pause()
        status = migration.status()
        if status.phase != phase:
            raise MigrationError(f"the phase is {status.phase}, and should be {phase}")
        self._telling.line(f"Phase {phase}.", "bold")
        self.measured["phases"].append(str(phase))

    def _and_back(self, migration: Migration, to: Phase) -> None:
        migration.rollback(execute=True)
        self._pause()
        status = migration.status()
        if status.phase != to:
            raise MigrationError(f"the rollback led to {status.phase}, and should lead to {to}")
        self._telling.line(f"Rolled back to {to}; and forward again.")
        self.measured["phases"].append(str(to))

    def _pause(self) -> None:
        """Let the writers and readers work in this phase, and see that all of them do."""
        time.sleep(_PAUSE_S)
        self._check_processes()

    def _check_processes(self) -> None:
        for process in (*self._writers, *self._readers):
            process.check()


#: The gate as a demo can wait for it: the same checks, over seconds in place of minutes.
_GATE = Limits(quiet_for_s=_QUIET_S)
