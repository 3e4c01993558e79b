"""Options that the commands of a live migration share, and the migration that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from onetape.config import Settings
    from onetape.migrate.phases.helm import Helm
    from onetape.migrate.plans.plan import Plan

Redis = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="redis://[USER:PASSWORD@]HOST:PORT. [default: localhost]")
]
PlanFile = Annotated[
    str | None, typer.Option("--plan", metavar="FILE", help="A plan file, or trading_system, the documented layout.")
]
TargetDb = Annotated[int | None, typer.Option("--target-db", min=0, help="Database to move to. [default: the plan's]")]
Ledger = Annotated[Path | None, typer.Option("--ledger", help="The migration's memory. [default: TAPE.ledger]")]
AllowFlush = Annotated[
    bool, typer.Option("--allow-flush", help="A database that lost its keys without a word is meant to be so.")
]
MetricsPort = Annotated[
    int | None,
    typer.Option("--metrics-port", min=0, max=65535, metavar="PORT", help="Serve Prometheus metrics on 127.0.0.1."),
]


def chosen(
    redis: str | None, plan_file: str | None, target_db: int | None, ledger: Path | None, tape: Path | None
) -> tuple[Settings, Plan, Path]:
    """Return the settings, the plan and the ledger's path that the options and the configuration name."""
    from onetape import config
    from onetape.migrate.plans.named import ledger_of, plan_of

    settings = config.load(redis_url=redis, plan=plan_file, target_db=target_db, ledger=ledger, tape=tape)
    return settings, plan_of(settings), ledger_of(settings)


def helm(
    redis: str | None, plan_file: str | None, target_db: int | None, ledger: Path | None, tape: Path | None
) -> Helm:
    """Return the migration as its operators see it."""
    from onetape.migrate.phases.helm import Helm

    settings, plan, path = chosen(redis, plan_file, target_db, ledger, tape)
    return Helm(settings.redis_url, plan, path)
