"""The command that proves a migration on paper: onetape migrate report."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from onetape.cli import output
from onetape.cli.migrate.options import (
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
)
from onetape.cli.options import TapePath


def report(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    no_tape: NoTape = False,
    sign: Annotated[str | None, typer.Option("--sign", metavar="NAME", help="Who stands for it.")] = None,
    note: Annotated[list[str] | None, typer.Option("--note", help="A line to put into it; may be repeated.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Only check that a report was not altered.")
    ] = None,
    target: Target = None,
    report_dir: ReportDir = None,
    json: Json = False,
) -> None:
    """Write the signed-off report: what was moved, what proves it, and who stands for it; as JSON and as a page.

    Old keys, new keys and tape are held against each other by symbol and day. Only reads.
    """
    from onetape.migrate.proving.proof import check_proof, make_proof
    from onetape.migrate.remote.connect import connect_target

    if check is not None:
        found = check_proof(check)
        if json:
            typer.echo(output.json_line(found.to_dict()))
            return
        signed = f", signed by {found.signed_by}" if found.signed_by else ""
        typer.echo(output.plain(f"unaltered: {', '.join(found.files)}: {found.verdict}{signed}"))
        return
    settings = settings_of(redis, plan_file, target_db, ledger, tape, report_dir)
    with opened_tape(settings, no_tape, "r") as opened:
        migration = migration_of(settings, opened, target=target)
        with migration.helm.connect(writable=False) as endpoint, ExitStack() as stack:
            other = None if target is None else stack.enter_context(connect_target(target, writable=False))
            proof = make_proof(
                endpoint,
                migration.helm.plan,
                migration.status(),
                tape=opened,
                target=other,
                sign=sign,
                notes=note or (),
            )
    paths = proof.save(settings.reports_dir)
    if json:
        typer.echo(output.json_line({"json": str(paths.json), "page": str(paths.page), **proof.to_dict()}))
        raise typer.Exit(proof.exit_code)
    typer.echo(output.plain(f"verdict: {proof.content['verdict']}"))
    typer.echo(f"report: {paths.json}")
    typer.echo(f"page: {paths.page}")
    raise typer.Exit(proof.exit_code)
