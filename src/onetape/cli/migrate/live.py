"""Commands that lead a live migration: onetape migrate start, switch-reads, cutover, rollback, finish, undo …"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from onetape.cli import output
from onetape.cli.live_options import AllowFlush
from onetape.cli.migrate.options import (
    Discard,
    Execute,
    Force,
    Json,
    Ledger,
    NoTape,
    PlanFile,
    Redis,
    TargetDb,
    migration_of,
    opened_tape,
    settings_of,
    throttle_of,
)
from onetape.cli.migrate.telling import tell_move
from onetape.cli.options import TapePath
from onetape.errors import ConfigInvalid

if TYPE_CHECKING:
    from onetape.migrate.phases.move import Move


def start(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    mirrored: Annotated[
        bool | None,
        typer.Option("--mirrored/--not-mirrored", help="There are writers that onetape migrate mirror follows."),
    ] = None,
    execute: Execute = False,
    json: Json = False,
) -> None:
    """Begin a live migration: clients of onetape write old and new names in one transaction from then on.

    Also writes back a state that the server forgot.
    """
    migration = migration_of(settings_of(redis, plan_file, target_db, ledger, tape))
    _end(migration.start(mirrored=mirrored, execute=execute), json)


def switch_reads(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of reads that ask new names first. [default: 1, or as it is, with --shadow]"
        ),
    ] = None,
    shadow: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of reads that are compared with the other side.")
    ] = None,
    execute: Execute = False,
    json: Json = False,
) -> None:
    """Let readers ask the new names first, and the old ones where there is no new key. Again, it changes the shares."""
    migration = migration_of(settings_of(redis, plan_file, target_db, ledger, tape))
    wanted = 1.0 if share is None and shadow is None else share
    _end(migration.switch_reads(share=wanted, shadow=shadow, execute=execute), json)


def cutover(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    fallback_max: Annotated[float, typer.Option(min=0, max=1, help="Share of reads that may fall back.")] = 0.05,
    fallback_for: Annotated[float, typer.Option(min=1, metavar="S", help="Over so many seconds: 60, or 600.")] = 60.0,
    quiet_for: Annotated[
        float, typer.Option(min=0, metavar="S", help="Nobody else wrote old names for so many seconds.")
    ] = 300.0,
    verified_within: Annotated[
        float, typer.Option(min=0, metavar="S", help="The last verify is no older than so many seconds.")
    ] = 3600.0,
    lag_max: Annotated[float, typer.Option(min=0, metavar="MS", help="The mirror's lag at most, ms.")] = 1000.0,
    save: Annotated[bool, typer.Option("--save", help="Let a server without a log save a snapshot first.")] = False,
    volatile_ok: Annotated[bool, typer.Option("--volatile-ok", help="The server need not keep it on disk.")] = False,
    fence: Annotated[
        list[str] | None,
        typer.Option("--fence", metavar="USER", help="This server user can write old names no more; may be repeated."),
    ] = None,
    postpone: Annotated[
        bool | None, typer.Option("--postpone/--unpostpone", help="Let no cutover begin, or let it again; then exit.")
    ] = None,
    force: Force = False,
    execute: Execute = False,
    json: Json = False,
) -> None:
    """Make the new names the truth, for all clients at one instant, if nothing speaks against it.

    Every reason against it is named. Old names go on being written behind the new ones, until finish.
    """
    from onetape.migrate.steps.gate import Limits

    migration = migration_of(settings_of(redis, plan_file, target_db, ledger, tape))
    if postpone is not None:
        _end(migration.postpone(postpone), json)
        return
    limits = Limits(
        fallback_max=fallback_max, fallback_for_s=fallback_for, quiet_for_s=quiet_for,
        verified_within_s=verified_within, lag_max_ms=lag_max, volatile_ok=volatile_ok, save=save,
    )  # fmt: skip
    _end(migration.cutover(limits=limits, fence=fence or (), force=force, execute=execute), json)


def rollback(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    to: Annotated[str | None, typer.Option("--to", metavar="PHASE", help="To this phase. [default: one back]")] = None,
    force: Force = False,
    discard: Discard = False,
    allow_flush: AllowFlush = False,
    execute: Execute = False,
    json: Json = False,
) -> None:
    """Go back one phase, or to one of them, with all that was written since. The old names are the truth again."""
    migration = migration_of(settings_of(redis, plan_file, target_db, ledger, tape))
    move = migration.rollback(to=to, force=force, discard=discard, allow_flush=allow_flush, execute=execute)
    _end(move, json)


def finish(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    no_tape: NoTape = False,
    quiet_for: Annotated[
        float, typer.Option(min=0, metavar="S", help="Nobody else used old databases for so many seconds.")
    ] = 300.0,
    drop_differing: Annotated[
        bool, typer.Option("--drop-differing", help="Remove old keys that differ too; the ledger keeps what they held.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the plan's name.")] = False,
    force: Force = False,
    execute: Execute = False,
    json: Json = False,
) -> None:
    """Write new names only, and remove the old keys. It cannot be undone, and asks for the plan's name."""
    settings = settings_of(redis, plan_file, target_db, ledger, tape)
    with opened_tape(settings, no_tape, "rw" if execute else "r", or_empty=not execute) as opened:
        migration = migration_of(settings, opened)
        if execute and not yes:
            _confirm(migration.helm.plan.name)
        move = migration.finish(quiet_for_s=quiet_for, drop_differing=drop_differing, force=force, execute=execute)
    _end(move, json)


def _confirm(name: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigInvalid("finish cannot be undone, and nobody is there to ask", hint="--yes answers for a script")
    said = typer.prompt(f"The old keys will be removed, and nothing leads back. Type the plan's name, {name}", err=True)
    if said.strip() != name:
        raise ConfigInvalid(f"{said.strip()!r} is not {name!r}", hint="nothing was changed")


def undo(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    no_tape: NoTape = False,
    execute: Execute = False,
    json: Json = False,
) -> None:
    """Remove the new keys that still are what the migration made, and put back what it replaced.

    After rollback --to planned, or after a backfill without a live migration. What was written since stays.
    """
    settings = settings_of(redis, plan_file, target_db, ledger, tape)
    with opened_tape(settings, no_tape or not settings.tape.exists(), "r") as opened:
        move = migration_of(settings, opened).undo(execute=execute)
    _end(move, json)


def unfence(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    execute: Execute = False,
    json: Json = False,
) -> None:
    """Give users that cutover --fence fenced their rights back. A rollback does it too; after finish only this."""
    _end(migration_of(settings_of(redis, plan_file, target_db, ledger, tape)).unfence(execute=execute), json)


def pause(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    json: Json = False,
) -> None:
    """Let all copying of a live migration stand still, at once. Clients write on."""
    _end(migration_of(settings_of(redis, plan_file, target_db, ledger, tape)).pause(), json)


def resume(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    json: Json = False,
) -> None:
    """Let copying go on after a pause."""
    _end(migration_of(settings_of(redis, plan_file, target_db, ledger, tape)).resume(), json)


def throttle(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="What to keep to; NAME= takes it out."),
    ] = None,
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all other settings out.")] = False,
    json: Json = False,
) -> None:
    """Say what copying has to keep to, for all who copy, at once: latency, rates, market hours. Alone, show it.

    Names: latency_ms, latency_times, keys_per_s, bytes_per_s, others_per_s, replica_lag_s, replica_lag_bytes, aof,
    market_hours, market_keys_per_s, market_around_min.
    """
    migration = migration_of(settings_of(redis, plan_file, target_db, ledger, tape))
    _end(migration.throttle(throttle_of(settings or ()), clear=clear), json)


def _end(move: Move, json: bool) -> None:
    if json:
        typer.echo(output.json_line({**move.to_dict(), "exit_code": move.exit_code}))
    else:
        tell_move(move)
    if move.exit_code:
        raise typer.Exit(move.exit_code)
