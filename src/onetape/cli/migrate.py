"""Commands that move data from Redis: onetape migrate plan, backfill, verify, status, why."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onetape.cli import output
from onetape.cli.options import TapePath
from onetape.cli.progress import ProgressLine
from onetape.errors import ConfigInvalid, LedgerUnusable, TapeMissing

if TYPE_CHECKING:
    from onetape.config import Settings
    from onetape.migrate.migration import Migration, PlanCheck, Status
    from onetape.migrate.report import Report
    from onetape.migrate.verdict import Verification
    from onetape.tape import Tape

EXIT_CODES = """\b
Exit codes:
  0    done; verify: converged
  1    some keys failed, or the server was lost; verify: not proven
  2    refused before anything was written
  3    verify: converged, with listed skips
  130  interrupted; run it again to go on
"""
_LISTED = 10

app = typer.Typer(
    help="Move scattered Redis data into one database and onto the tape, while its writers go on.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Redis = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="redis://[USER:PASSWORD@]HOST:PORT. [default: localhost]")
]
PlanFile = Annotated[
    str | None, typer.Option("--plan", metavar="FILE", help="A plan file, or trading_system, the documented layout.")
]
TargetDb = Annotated[int | None, typer.Option("--target-db", min=0, help="Database to move to. [default: the plan's]")]
Ledger = Annotated[Path | None, typer.Option("--ledger", help="The migration's memory. [default: TAPE.ledger]")]
NoTape = Annotated[bool, typer.Option("--no-tape", help="Move keys in Redis only.")]
ReportDir = Annotated[Path | None, typer.Option("--report-dir", help="Where reports go. [default: here]")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command(epilog=EXIT_CODES)
def plan(redis: Redis = None, plan_file: PlanFile = None, target_db: TargetDb = None, json: Json = False) -> None:
    """Hold the plan against the real keys: what goes where, what collides, what no rule matches. Only reads."""
    settings = _settings(redis, plan_file, target_db)
    with ProgressLine("keys") as progress:
        check = _migration(settings, None, None).plan(on_progress=progress)
    if json:
        typer.echo(output.json_line(check.to_dict()))
    else:
        _tell_plan(check)
    if check.refusals:
        raise typer.Exit(2)


@app.command(epilog=EXIT_CODES)
def backfill(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    no_tape: NoTape = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; nothing can be written.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most this many keys a step.")] = None,
    step: Annotated[list[str] | None, typer.Option("--step", help="Only this step; may be repeated.")] = None,
    report_dir: ReportDir = None,
    json: Json = False,
) -> None:
    """Bring all keys over and their ticks onto the tape; run again, it goes on where it was."""
    settings = _settings(redis, plan_file, target_db, ledger, tape, report_dir)
    mode: Literal["r", "rw"] = "r" if dry_run else "rw"
    with _tape(settings, no_tape, mode, or_empty=dry_run) as opened:
        migration = _migration(settings, opened, settings.reports_dir)
        with ProgressLine("keys") as progress:
            try:
                report = migration.backfill(dry_run=dry_run, limit=limit, steps=step or None, on_progress=progress)
            except LedgerUnusable as error:
                if not progress.done:
                    raise
                from onetape.cli.app import print_error

                print_error(str(error))  # lost on the way: that is no refusal, keys were written
                raise typer.Exit(1) from error
    if json:
        typer.echo(output.json_line({**report.to_dict(), "path": report.path, "exit_code": report.exit_code}))
    else:
        _tell_backfill(report)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


@app.command(epilog=EXIT_CODES)
def verify(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    no_tape: NoTape = False,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Look at differences again up to so many times.")] = 3,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only so many keys of a step: quick, but no proof.")
    ] = None,
    report_dir: ReportDir = None,
    json: Json = False,
) -> None:
    """Compare every key, both ways: content, type, expiry, and that its ticks are on the tape. Only reads."""
    from onetape.progress import ProgressMeter

    settings = _settings(redis, plan_file, target_db, ledger, tape, report_dir)
    with _tape(settings, no_tape, "r") as opened, ProgressLine("keys") as progress:
        meter = ProgressMeter("verify")
        result = _migration(settings, opened, settings.reports_dir).verify(
            rounds=rounds, sample=sample, on_progress=lambda done, total: progress(meter.update(done, total))
        )
    if json:
        typer.echo(output.json_line(result.as_dict()))
    else:
        _tell_verify(result)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@app.command(epilog=EXIT_CODES)
def status(ledger: Ledger = None, tape: TapePath = None, json: Json = False) -> None:
    """Show where the migration is: phase, counts by step and outcome, the last verdict, the runs."""
    found = _migration(_settings(None, None, None, ledger, tape), None, None).status()
    if json:
        typer.echo(output.json_line(found.to_dict()))
    else:
        _tell_status(found)


@app.command(epilog=EXIT_CODES)
def why(
    key: Annotated[str, typer.Argument(help="A key's old or new name; other bytes than UTF-8 as \\xNN.")],
    ledger: Ledger = None,
    tape: TapePath = None,
    json: Json = False,
) -> None:
    """Show what happened to one key, run by run, and why."""
    migration = _migration(_settings(None, None, None, ledger, tape), None, None)
    found = migration.why(key) or migration.why(_unescaped(key))
    if not found:
        raise ConfigInvalid(
            f"the ledger {migration.ledger_path} knows no key {key!r}",
            hint="onetape migrate plan lists the keys that no rule matches",
        )
    if json:
        for reason in found:
            typer.echo(output.json_line(reason.to_dict()))
        return
    from onetape.clock import to_text

    for reason in found:
        facts = reason.to_dict()
        when = facts["at"] or "not settled: the run was ended before it could say"
        expiry = "" if reason.expire_ms < 0 else f", expires {to_text(reason.expire_ms * 1_000_000)}"
        typer.echo(
            output.plain(
                f"run {reason.run}  {when}  {reason.outcome}: "
                f"db {reason.source_db} {facts['key']} -> {facts['target']} ({reason.step}){expiry}"
                + (f": {reason.error}" if reason.error else "")
            )
        )


def _settings(
    redis: str | None,
    plan_file: str | None,
    target_db: int | None,
    ledger: Path | None = None,
    tape: Path | None = None,
    report_dir: Path | None = None,
) -> Settings:
    from onetape import config

    return config.load(
        redis_url=redis, plan=plan_file, target_db=target_db, ledger=ledger, tape=tape, reports_dir=report_dir
    )


@contextmanager
def _tape(settings: Settings, none: bool, mode: Literal["r", "rw"], *, or_empty: bool = False) -> Iterator[Tape | None]:
    """Open the tape, or none. `or_empty`: where there is none yet, an empty one that is gone afterwards."""
    from onetape.cli.options import open_tape

    if none:
        yield None
        return
    if or_empty and not settings.tape.exists():
        with TemporaryDirectory(prefix="onetape-") as place, open_tape(Path(place) / "tape.db", "rw") as empty:
            yield empty
        return
    try:
        opened = open_tape(settings.tape, mode)
    except TapeMissing as error:
        raise TapeMissing(error.message, hint="give --tape, or --no-tape to leave ticks out") from error
    with opened:
        yield opened


def _migration(settings: Settings, tape: Tape | None, report_dir: Path | None) -> Migration:
    from onetape.migrate.migration import Migration
    from onetape.migrate.plan import Plan
    from onetape.store.layout import ledger_path

    chosen = Plan.load(settings.plan)
    if settings.target_db is not None:
        chosen = chosen.with_target(settings.target_db)
    return Migration(
        settings.redis_url,
        plan=chosen,
        ledger_path=settings.ledger or ledger_path(settings.tape),
        tape=tape,
        report_dir=report_dir,
    )


def _unescaped(key: str) -> bytes:
    return re.sub(rb"\\x([0-9a-fA-F]{2})", lambda m: bytes.fromhex(m[1].decode()), key.encode())


def _tell_plan(check: PlanCheck) -> None:
    typer.echo(f"plan {check.name}  {check.address}, into database {check.target_db}")
    typer.echo(f"hash {check.hash}\n")
    rows = [[step, str(db), output.plain(pattern), f"{keys:,}"] for step, db, pattern, keys in check.rules]
    output.print_table(["step", "database", "pattern", "keys"], rows, ("step", "pattern"))
    typer.echo(f"\n{check.keys_total:,} keys, no two become one")
    if check.bytes_to_copy:
        free = "" if check.bytes_free is None else f", {output.size(check.bytes_free)} free"
        typer.echo(f"about {output.size(check.bytes_to_copy)} to copy{free}")
    _tell_unmatched(check.to_dict()["unmatched"])
    for warning in check.warnings:
        output.note(f"warning: {warning}")
    for refusal in check.refusals:
        output.note(f"a backfill would be refused: {refusal}")
    typer.echo("nothing was changed")


def _tell_unmatched(unmatched: Mapping[str, Mapping[str, Any]]) -> None:
    for db, found in unmatched.items():
        names = ", ".join(found["first"][:_LISTED])
        more = ", …" if found["count"] > _LISTED else ""
        typer.echo(output.plain(f"database {db}, keys that no rule matches: {found['count']:,} ({names}{more})"))


def _tell_backfill(report: Report) -> None:
    facts = report.to_dict()
    typer.echo(
        f"{'dry run: ' if report.dry_run else ''}plan {report.plan_name}, {report.server} {report.version} at "
        f"{report.address}, into database {report.target_db}\n"
    )
    _print_counts(report.steps)
    landed = "would land" if report.dry_run else "landed"
    typer.echo(
        f"\n{report.keys:,} keys in {output.duration(report.seconds)} ({report.keys_per_s:,.0f}/s); "
        f"records on the tape: {report.ticks_landed:,} {landed}, {report.ticks_known:,} were there"
    )
    _tell_unmatched(facts["unmatched"]["by_database"])
    for warning in report.warnings:
        output.note(f"warning: {warning}")
    for error in facts["errors"]["first"][:_LISTED]:
        output.note(f"failed: db {error['source_db']} {error['key']} -> {error['target']}: {error['error']}")
    if report.error_count > _LISTED:
        output.note(f"and {report.error_count - _LISTED:,} more, in the report")
    for note in facts["notes"]["first"][:_LISTED]:
        output.note(f"not on the tape: db {note['source_db']} {note['key']}: {note['error']}")
    if report.note_count > _LISTED:
        output.note(f"and {report.note_count - _LISTED:,} more that are no ticks or bars, in the report")
    if report.path:
        typer.echo(f"report: {report.path}")
    if report.dry_run:
        typer.echo("nothing was changed")


def _tell_verify(result: Verification) -> None:
    _print_counts(result.counts)
    typer.echo(
        f"\n{result.checked:,} keys and {result.target_keys:,} targets compared in {output.duration(result.seconds)} "
        f"({result.keys_per_s:,.0f}/s), rounds: {result.rounds}; keys that no rule matches: {result.unmatched:,}"
    )
    for line in result.differences[:_LISTED]:
        output.note(line)
    for line in result.skips[:_LISTED]:
        output.note(line)
    more = result.unlisted + sum(max(0, len(lines) - _LISTED) for lines in (result.differences, result.skips))
    if more:
        output.note(f"and {more:,} more; --json and the report list them")
    typer.echo(f"verdict: {result.verdict}{' (of a sample only)' if result.sampled else ''}")
    if result.note:
        output.note(result.note)
    if result.report:
        typer.echo(f"report: {result.report}")


def _tell_status(found: Status) -> None:
    output.print_facts(
        {
            "phase": found.phase,
            "verdict": found.verdict or "none yet",
            "plan": f"{found.plan_name} {found.plan_hash}",
            "server": f"{found.address}, into database {found.target_db}",
            "ledger": found.ledger,
        }
    )
    if found.steps:
        sys.stdout.write("\n")
        _print_counts(found.steps)
    runs = [
        [str(run["id"]), run["command"], run["started"], run["ended"] or "not ended", run["report"] or ""]
        for run in found.to_dict()["runs"]
    ]
    if runs:
        sys.stdout.write("\n")
        output.print_table(
            ["run", "command", "started", "ended", "report"], runs, ("command", "started", "ended", "report")
        )


def _print_counts(steps: Mapping[str, Mapping[str, int]]) -> None:
    """Print a table of steps and outcomes, with the sums."""
    outcomes = list(dict.fromkeys(name for counts in steps.values() for name, number in counts.items() if number))
    rows = [[step, *_numbers([counts.get(name, 0) for name in outcomes])] for step, counts in steps.items()]
    sums = [sum(counts.get(name, 0) for counts in steps.values()) for name in outcomes]
    rows.append(["all", *_numbers(sums)])
    heads = [name.replace("_", " ") for name in outcomes]
    output.print_table(["step", *heads, "keys"], rows, ("step",))


def _numbers(counts: Sequence[int]) -> list[str]:
    return [f"{number:,}" if number else "" for number in counts] + [f"{sum(counts):,}"]
