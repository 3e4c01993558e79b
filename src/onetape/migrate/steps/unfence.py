"""Lifting the fence: users get back the rights that a cutover took from them, without a way back."""

from __future__ import annotations

from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History
from onetape.migrate.phases.move import Move
from onetape.migrate.phases.phase import Phase
from onetape.migrate.steps.course import nothing, planned
from onetape.migrate.steps.fence import saved, unfence

#: Said while old names are mirrored still: what is written under them by others is not carried over.
_UNSEEN = "what they write under old names goes where nobody of ours reads it, and finish removes it"


def fenced(helm: Helm) -> list[str]:
    """Return the users that are fenced, as the ledger knows, which need not be there."""
    if not helm.ledger_path.exists():
        return []
    with History(helm.ledger_path, mode="r") as history:
        return [one.user for one in saved(history)]


def lift(helm: Helm, *, execute: bool) -> Move:
    """Give fenced users their rights back. See Migration.unfence."""
    with helm.connect(writable=execute) as endpoint:
        now = helm.look(endpoint)
        phase = Phase.PLANNED if now is None else now.phase
        users = fenced(helm)
        if not users:
            return nothing("unfence", now, "no user is fenced")
        lines = [f"user {user} gets back the rights that it had before the cutover" for user in users]
        warnings = [_UNSEEN] if phase is Phase.CUT_OVER else []
        if not execute:
            return planned("unfence", now, phase, lines, warnings, facts={"users": users})
        with helm.lease("unfence"), helm.history(endpoint) as history:
            unfence(endpoint, history)
    return Move(
        command="unfence", before=str(phase), after=str(phase), executed=True, changed=True,
        version=0 if now is None else now.version, lines=tuple(lines), warnings=tuple(warnings),
        facts={"users": users},
    )  # fmt: skip


__all__ = ["lift"]
