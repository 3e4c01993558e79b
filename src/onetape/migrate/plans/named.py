"""What the settings name: the plan, with the database it is to move to, and where its ledger lies."""

from __future__ import annotations

from pathlib import Path

from onetape.config import Settings
from onetape.migrate.plans.plan import DOCUMENTED, Plan
from onetape.store.layout import ledger_path


def plan_of(settings: Settings, *, documented: bool = False) -> Plan:
    """Return the plan; `documented`: whatever they name, the documented layout. Raises PlanInvalid."""
    plan = Plan.load(DOCUMENTED if documented else settings.plan)
    return plan if settings.target_db is None else plan.with_target(settings.target_db)


def ledger_of(settings: Settings) -> Path:
    """Return the path of the migration's ledger: beside the tape, where they do not name another."""
    return settings.ledger or ledger_path(settings.tape)
