"""Commands that move and compare keys: onetape migrate plan, backfill, verify, status, why."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import typer

from onetape.cli import output
from onetape.cli.live_options import AllowFlush
from onetape.cli.migrate.options import (
    Discard,
    Execute,
    Json,
    Ledger,
    NoTape,
    PlanFile,
    Redis,
    ReportDir,
    Target,
    TargetDb,
    migration_of,
    opened_tape,
    settings_of,
    throttle_of,
)
from onetape.cli.migrate.telling import tell_backfill, tell_move, tell_plan, tell_status, tell_verify
from onetape.cli.options import TapePath
from onetape.cli.progress import ProgressLine
from onetape.errors import ConfigInvalid, LedgerUnusable


def plan(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    target: Target = None,
    json: Json = False,
) -> None:
    """Hold the plan against the real keys: what goes where, what collides, what no rule matches. Only reads."""
    settings = settings_of(redis, plan_file, target_db)
    with ProgressLine("keys") as progress:
        check = migration_of(settings, target=target).plan(on_progress=progress)
    if json:
        typer.echo(output.json_line(check.to_dict()))
    else:
        tell_plan(check)
    if check.refusals:
        raise typer.Exit(2)


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
    target: Target = None,
    throttle: Annotated[
        list[str] | None,
        typer.Option("--throttle", metavar="NAME=VALUE", help="As of onetape migrate throttle; may be repeated."),
    ] = None,
    report_dir: ReportDir = None,
    json: Json = False,
) -> None:
    """Bring all keys over and their ticks onto the tape; run again, it goes on where it was.

    In a live migration it ends the phase dual_writing, once all keys are over and none failed.
    """
    from onetape.migrate.steps.course import throttle_settings

    limits = throttle_settings(throttle_of(throttle)) if throttle else None
    settings = settings_of(redis, plan_file, target_db, ledger, tape, report_dir)
    mode: Literal["r", "rw"] = "r" if dry_run else "rw"
    with opened_tape(settings, no_tape, mode, or_empty=dry_run) as opened:
        migration = migration_of(settings, opened, settings.reports_dir, target)
        with ProgressLine("keys") as progress:
            try:
                report = migration.backfill(
                    dry_run=dry_run, limit=limit, steps=step or None, on_progress=progress, throttle=limits
                )
            except LedgerUnusable as error:
                if not progress.done:
                    raise
                output.print_error(str(error))  # lost on the way: that is no refusal, keys were written
                raise typer.Exit(1) from error
    if json:
        typer.echo(output.json_line({**report.to_dict(), "path": report.path, "exit_code": report.exit_code}))
    else:
        tell_backfill(report)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


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
    repair: Annotated[
        bool, typer.Option("--repair", help="First make what differs equal, towards the side that is the truth.")
    ] = False,
    execute: Execute = False,
    replace_newer: Annotated[
        bool,
        typer.Option("--replace-newer", help="Repair also what somebody newer wrote before both sides were written."),
    ] = False,
    discard: Discard = False,
    allow_flush: AllowFlush = False,
    target: Target = None,
    report_dir: ReportDir = None,
    json: Json = False,
) -> None:
    """Compare every key, both ways: content, type, expiry, and that its ticks are on the tape.

    It only reads, but for --repair with --execute, which keeps in the ledger what it replaces. In a live migration it
    ends the phase backfilled, once it proves that a reader of the new names would be told the same.
    """
    from onetape.progress import ProgressMeter

    settings = settings_of(redis, plan_file, target_db, ledger, tape, report_dir)
    with opened_tape(settings, no_tape, "r") as opened, ProgressLine("keys") as progress:
        migration = migration_of(settings, opened, settings.reports_dir, target)
        move = None
        if repair:
            move = migration.repair(
                replace_newer=replace_newer, discard=discard, allow_flush=allow_flush, execute=execute
            )
        meter = ProgressMeter("verify")
        result = migration.verify(
            rounds=rounds, sample=sample, on_progress=lambda done, total: progress(meter.update(done, total))
        )
    if json:
        repaired = {} if move is None else {"repair": move.to_dict()}
        typer.echo(output.json_line({**repaired, **result.as_dict()}))
    else:
        if move is not None:
            tell_move(move)
        tell_verify(result)
    code = result.exit_code or (0 if move is None else move.exit_code)
    if code:
        raise typer.Exit(code)


def status(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    json: Json = False,
) -> None:
    """Show where the migration is: phase, counts by step and outcome, the last verdict, the runs.

    Of a live one also its state on the server, who is at work, clients, and connections on the old databases.
    """
    found = migration_of(settings_of(redis, plan_file, target_db, ledger, tape)).status()
    if json:
        typer.echo(output.json_line(found.to_dict()))
    else:
        tell_status(found)


def why(
    key: Annotated[str, typer.Argument(help="A key's old or new name; other bytes than UTF-8 as \\xNN.")],
    ledger: Ledger = None,
    tape: TapePath = None,
    json: Json = False,
) -> None:
    """Show what happened to one key, run by run, and why."""
    migration = migration_of(settings_of(None, None, None, ledger, tape))
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


def _unescaped(key: str) -> bytes:
    return re.sub(rb"\\x([0-9a-fA-F]{2})", lambda m: bytes.fromhex(m[1].decode()), key.encode())
