"""The story: a legacy system becomes one verified tape while its writers go on writing to the old names.

Every number that is told was measured in this run, and every claim is checked; the first that does not hold ends the
demo with an error that says so.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from onetape import tape as tapes
from onetape.demo import ending, legacy, market, words
from onetape.demo.before import Before
from onetape.demo.ending import Chart
from onetape.demo.legacy_ticks import stream_db
from onetape.demo.market import Instrument
from onetape.demo.place import Place
from onetape.demo.proof import prove
from onetape.demo.telling import Telling, outcomes
from onetape.demo.writers import Orders, Tally, Writers
from onetape.embedded import EmbeddedServer
from onetape.errors import ConfigInvalid, MigrationError
from onetape.migrate.migration import Migration
from onetape.migrate.plans.plan import Plan, Rule
from onetape.migrate.report import Report, key_text
from onetape.migrate.verifying.verdict import CONVERGED
from onetape.migrate.wire.endpoint import Endpoint
from onetape.progress import ProgressMeter
from onetape.tape import Tape

#: Simulated instruments that live writers write to: as streams, and as hashes that hold the newest tick.
_LIVE_STREAMS, _LIVE_HASHES, _LIVE_INDICATORS = 8, 4, 6


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to show.

    `keep`: the folder of what stays. `server`: an URL, None for a private server. `samples`: the folder of real
    ticks, None for a simulated market. `command`: how the user calls onetape.
    """

    ticks: int
    symbols: int
    seed: int
    keep: Path
    server: str | None
    samples: Path | None
    command: str
    chart: Chart


def run(options: Options, telling: Telling) -> dict[str, Any]:
    """Tell the story and return what was measured. Raises MigrationError where a claim does not hold."""
    started = time.monotonic()
    place = Place(options.keep)
    place.prepare()
    with ExitStack() as stack:
        url = _server(options, stack)
        story = _Story(options, telling, place, url)
        stack.callback(story.end)
        story.tell()
    story.measured["seconds"] = round(time.monotonic() - started, 3)
    story.farewell()
    return story.measured


def _server(options: Options, stack: ExitStack) -> str:
    if options.server is None:
        return stack.enter_context(EmbeddedServer()).url
    with Endpoint.connect(options.server, writable=False) as endpoint:
        for db in (*legacy.SOURCE_DBS, legacy.TARGET_DB):
            endpoint.select(db)
            if count := endpoint.call("DBSIZE"):
                raise ConfigInvalid(
                    f"database {db} of {endpoint.address} holds {count:,} keys",
                    hint="the demo fills databases 0, 1, 2 and 5: give a server where they are empty",
                )
    return options.server


class _Story:
    def __init__(self, options: Options, telling: Telling, place: Place, url: str) -> None:
        self._options, self._telling, self._place, self._url = options, telling, place, url
        self._instruments: list[Instrument] = []
        self._live: list[str] = []
        self._writers: Writers | None = None
        self._tape: Tape | None = None
        self._reports: list[Path] = []
        self._charted = ""
        self.measured: dict[str, Any] = {"verified": False}

    def tell(self) -> None:
        """Tell all chapters but the farewell."""
        self._fill()
        self._tape = tape = tapes.open(self._place.tape, retention_days=None)  # the ticks are years old, and stay
        folder = self._place.folder
        migration = Migration(self._url, ledger_path=self._place.ledger, tape=tape, report_dir=folder)
        self._plan(migration)
        self._dry_run(migration, tape)
        self._backfill(migration, "backfill", "Backfill, while the writers go on writing")
        self._backfill(migration, "catch-up", "Catch-up: what was written meanwhile")
        tally = self._stop_writers()
        self._last_backfill(migration)
        self._verify(migration)
        self._repeat(migration)
        self._prove(tape, tally)
        self._show(tape, tally)
        self.measured["verified"] = True

    def end(self) -> None:
        """Leave nothing running and nothing open, however the story ended."""
        if self._writers is not None:
            self._writers.kill()
        if self._tape is not None:
            self._tape.close()
        self._place.note(*self._reports)

    def farewell(self) -> None:
        """Say where everything is and how to go on."""
        telling, place = self._telling, self._place
        telling.chapter("Go on from here")
        what = "is gone" if self._options.server is None else "keeps the old and the new databases as they are now"
        telling.line(f"Done and verified in {self.measured['seconds']:.1f} s. The server {what}. Kept for you:")
        backfill, verify = self.measured["backfills"][-1]["report"], self.measured["verification"]["report"]
        for name, path in (("tape", place.tape), ("ledger", place.ledger), ("reports", backfill), ("", verify)):
            telling.plain(f"{name:<8} {path}")
        telling.line("Look further:")
        for command in self.measured["commands"]:
            telling.plain(command, "cyan")

    # Chapters

    def _fill(self) -> None:
        options, telling = self._options, self._telling
        telling.chapter("A legacy system: market data in three Redis databases, under names that grew")
        if self._place.replaced:
            telling.line(f"{self._place.folder}/ holds {self._place.replaced}, which this one replaces.")
        self._instruments = market.gather(options.ticks, options.symbols, options.seed, options.samples)
        simulated = [one.symbol for one in self._instruments if not one.real]
        self._live = simulated[: _LIVE_STREAMS + _LIVE_HASHES]
        started = time.monotonic()
        told = legacy.fill(self._url, self._instruments, options.seed, self._live[_LIVE_STREAMS:])
        seconds = time.monotonic() - started
        found = legacy.survey(self._url)
        with Endpoint.connect(self._url, writable=False) as endpoint:
            version = ".".join(map(str, endpoint.version))
            whose = "a private one, in memory, gone when the demo ends" if options.server is None else "yours"
            telling.line(f"Server: {endpoint.server} {version} at {endpoint.address}, {whose}.")
        telling.line(words.of_market(self._instruments, options.seed, options.samples))
        for line in words.of_legacy(found, told, seconds):
            telling.line(line)
        real = sum(len(one.ticks) for one in self._instruments if one.real)
        self.measured["legacy"] = {
            "symbols": len(self._instruments),
            "ticks_real": real,
            "ticks_simulated": sum(len(one.ticks) for one in self._instruments) - real,
            **{name.replace(" ", "_"): count for name, count in told.items()},
            **msgspec.to_builtins(found, str_keys=True),
        }
        self._start_writers()

    def _start_writers(self) -> None:
        places = {one.symbol: stream_db(at) for at, one in enumerate(self._instruments)}
        streams = [(symbol, places[symbol]) for symbol in self._live[:_LIVE_STREAMS]]
        orders = Orders(
            url=self._url,
            parent=os.getpid(),
            seed=self._options.seed,
            streams=streams,
            hashes=self._live[_LIVE_STREAMS:],
            indicators=self._live[:_LIVE_INDICATORS],
        )
        self._writers = Writers(orders)
        self._telling.line(
            f"Live writers (process {self._writers.pid}) write to the OLD names from now on: ticks, indicators, new "
            "keys, deletes. Each write carries a counter."
        )

    def _plan(self, migration: Migration) -> None:
        telling = self._telling
        telling.chapter("Plan: which key goes where, held against the real keys")
        found = migration.plan()
        if found.refusals:
            raise MigrationError(f"this server is not fit for a migration: {'; '.join(found.refusals)}")
        rows = [
            [step, str(db), pattern, _target(rule), f"{keys:,}"]
            for (step, db, pattern, keys), rule in zip(found.rules, Plan.load().rules, strict=True)
        ]
        telling.table(["step", "db", "old name", "new name in database 1", "keys"], rows, left=4)
        telling.line(f"{found.keys_total:,} keys; no two would become one. Plan {found.name}, hash {found.hash[:16]}.")
        telling.line(words.of_unmatched(found))
        named = {str(db): [key_text(key) for key in keys.first] for db, keys in found.unmatched.items()}
        self.measured["plan"] = {"name": found.name, "hash": found.hash, "steps": found.steps, "unmatched": named}
        lost = {key for keys in legacy.UNMATCHED.values() for key in keys} - {
            key for keys in found.unmatched.values() for key in keys.first
        }
        if lost:
            raise MigrationError(f"the plan did not list {len(lost)} keys that match no rule, {min(lost)!r} among them")

    def _dry_run(self, migration: Migration, tape: Tape) -> None:
        telling = self._telling
        telling.chapter("Dry run: what a backfill would do, on a connection that cannot write")
        before = Before.look(self._url, self._live)
        with telling.progress("dry run") as update:
            report = migration.backfill(dry_run=True, on_progress=update)
        self._keep(report)
        before.check(self._url, tape)
        copied = report.totals.get("copied", 0)
        telling.line(
            f"It would bring over {copied:,} keys and put {report.ticks_landed:,} ticks and bars on the tape; "
            f"finding out took {report.seconds:.1f} s."
        )
        telling.line(
            f"Nothing was written: database {legacy.TARGET_DB} and the tape are empty, and {len(before.digests):,} old "
            "keys are the same to the byte as before."
        )
        self.measured["dry_run"] = _measured(report)

    def _backfill(self, migration: Migration, name: str, title: str) -> Report:
        telling = self._telling
        telling.chapter(title)
        with telling.progress(name) as update:
            report = migration.backfill(on_progress=update)
        self._keep(report)
        telling.table(*outcomes(report.steps))
        telling.line(words.of_backfill(report))
        for failure in report.errors[:5]:
            telling.line(f"{key_text(failure.key)}: {failure.error}", "yellow")
        self.measured.setdefault("backfills", []).append({"name": name, **_measured(report)})
        return report

    def _stop_writers(self) -> Tally:
        assert self._writers is not None
        self._telling.chapter("The writers stop")
        tally = self._writers.stop()
        for line in words.of_tally(tally):
            self._telling.line(line)
        self.measured["writers"] = {
            "writes": tally.writes,
            "seconds": round(tally.seconds, 3),
            "created": len(tally.created),
            "deleted": tally.deleted,
        }
        return tally

    def _last_backfill(self, migration: Migration) -> None:
        report = self._backfill(migration, "last backfill", "Last backfill, of what they wrote until then")
        if report.exit_code:
            first = report.errors[0].error if report.errors else str(report.totals)
            raise MigrationError(f"the last backfill could not bring over {report.error_count:,} keys, first: {first}")

    def _verify(self, migration: Migration) -> None:
        telling = self._telling
        telling.chapter("Verify: a second, independent reading of everything, in both directions")
        meter = ProgressMeter("verify")
        with telling.progress("verify") as update:
            found = migration.verify(on_progress=lambda done, total: update(meter.update(done, total)))
        telling.table(*outcomes(found.counts))
        telling.line(words.of_verify(found))
        report = migration.status().runs[-1].report
        if report is not None:
            self._reports.append(Path(report))
        for line in (*found.differences[:5], *found.skips[:5]):
            telling.line(line, "yellow")
        good = found.verdict == CONVERGED
        telling.line(f"Verdict: {found.verdict}.", "bold green" if good else "bold red")
        if report is not None:
            telling.plain(f"Report: {report}")
        self.measured["verification"] = {**found.as_dict(), "report": report}
        if not good:  # the demo planned no skips, so each would be a loss
            first = next(iter((*found.differences, *found.skips)), "no more is known")
            raise MigrationError(f"not verified: the verdict is {found.verdict!r}: {first}", hint=f"see {report}")

    def _repeat(self, migration: Migration) -> None:
        report = self._backfill(migration, "second backfill", "A second backfill, which must change nothing")
        other = {name: count for name, count in report.totals.items() if count and name != "unchanged"}
        if other or report.ticks_landed or report.exit_code:
            told = ", ".join(f"{count:,} {name}" for name, count in other.items())
            raise MigrationError(f"the second backfill was not without effect: {told}, {report.ticks_landed:,} ticks")
        self._telling.line("It copied no key and put no tick on the tape.")

    def _prove(self, tape: Tape, tally: Tally) -> None:
        telling = self._telling
        telling.chapter("Proof: what was made and what is there, compared number by number")
        with Endpoint.connect(self._url, db=legacy.TARGET_DB, writable=False) as target:
            found = prove(tape, target, self._instruments, tally, Plan.load())
        self.measured["proof"] = msgspec.to_builtins(found)
        if found.missing:
            raise MigrationError(f"not verified: {len(found.missing)} proofs failed, first: {found.missing[0]}")
        for line in words.of_proof(found):
            telling.line(line)

    def _show(self, tape: Tape, tally: Tally) -> None:
        telling = self._telling
        telling.chapter("The tape")
        taken = ending.measure(tape)
        self._tape = tape = tapes.open(self._place.tape, mode="r")
        latest = ending.show_latest(telling, tape, self._instruments, tally)
        charted = ending.show_candles(telling, tape, self._instruments, tally, self._options.chart)
        ending.show_size(telling, taken)
        self.measured["latest"] = {symbol: msgspec.to_builtins(tick) for symbol, tick in latest.items()}
        self.measured["tape"] = {"path": str(self._place.tape), **msgspec.to_builtins(taken)}
        self.measured["commands"] = ending.commands(
            self._options.command, self._place, charted, f"indicators:{self._live[0]}:rsi"
        )

    def _keep(self, report: Report) -> None:
        if report.path is not None:
            self._reports.append(Path(report.path))


def _target(rule: Rule) -> str:
    """Return a rule's target as the table shows it: what all its cases share, and … for what they do not."""
    words = zip(*(target.split(":") for target in (rule.target, *(case.target for case in rule.case))), strict=False)
    return ":".join(word[0] if len(set(word)) == 1 else "…" for word in words) or "the same"


def _measured(report: Report) -> dict[str, Any]:
    return {
        "keys": report.keys,
        "seconds": round(report.seconds, 3),
        "keys_per_s": round(report.keys_per_s, 1),
        "steps": report.steps,
        "ticks_landed": report.ticks_landed,
        "ticks_known": report.ticks_known,
        "errors": report.error_count,
        "report": report.path,
    }
