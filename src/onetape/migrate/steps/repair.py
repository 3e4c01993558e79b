"""The repair: what a verify finds different made equal, towards the side that is the truth in this phase."""

from __future__ import annotations

from onetape.errors import PhaseRefused
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.move import Move
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import State
from onetape.migrate.report import EXIT_FAILURES
from onetape.migrate.steps.course import done, nothing, planned
from onetape.migrate.steps.force import Fence, Forcer
from onetape.migrate.steps.mend import Mend, Mended, refuse_a_flush
from onetape.migrate.wire.endpoint import Endpoint

_PASSES = 3


def repair(helm: Helm, *, replace_newer: bool, discard: bool, allow_flush: bool, execute: bool) -> Move:
    """Make what differs equal. See Migration.repair."""
    with helm.connect(writable=execute) as endpoint:
        now = helm.look(endpoint)
        helm.own(now)
        phase = Phase.PLANNED if now is None else now.phase
        if phase is Phase.FINISHED:
            raise PhaseRefused("the migration is finished: the old keys are gone", phase=str(phase))
        towards = "old" if phase.new_is_truth else "new"
        truth = "new" if phase.new_is_truth else "old"
        lines = [f"{towards} keys that differ are made what the {truth} ones are, for those are the truth in {phase}"]
        if not execute or not allow_flush:
            found = _dry(helm, endpoint, towards, replace_newer)
        if not allow_flush:
            refuse_a_flush(found, towards)
        if not execute:
            lines += found.lines(towards, would=True) or ["nothing differs"]
            return planned("repair", now, phase, lines, found.left, facts=found.to_dict())
        with helm.lease("repair") as lease, helm.history(endpoint) as history, Ledger.open(helm.ledger_path) as ledger:
            if now is not None:
                history.reconcile(now)
            ledger.begin_run("repair")
            with helm.connect(writable=False) as reader:
                fence = None if now is None else Fence(helm.names, phase)
                forcer = Forcer(endpoint, reader, history, "repair", fence, discard=discard, at=helm.at)
                mend = Mend(
                    helm.plan, reader, forcer, ledger, towards, replace_newer=replace_newer,
                    found=history.was_found, check=lease.check,
                )  # fmt: skip
                found = _until_settled(mend)
            ledger.end_run()
        return _told(now, phase, found, lines, towards)


def _dry(helm: Helm, endpoint: Endpoint, towards: str, replace_newer: bool) -> Mended:
    if not helm.ledger_path.exists():
        return Mend(helm.plan, endpoint, None, None, towards, replace_newer=replace_newer).run()
    with Ledger.open(helm.ledger_path, mode="r") as ledger:
        return Mend(helm.plan, endpoint, None, ledger, towards, replace_newer=replace_newer).run()


def _until_settled(mend: Mend) -> Mended:
    """Mend until a look finds nothing more to do, or a writer keeps on."""
    total = mend.run()
    for _pass in range(1, _PASSES):
        if not total.acted and not total.counts["busy"]:
            break
        again = mend.run()
        for name in ("copied", "replaced", "removed"):
            again.counts[name] += total.counts[name]
        more, total = again.acted > total.acted, again
        if not more:
            break
    return total


def _told(now: State | None, phase: Phase, found: Mended, lines: list[str], towards: str) -> Move:
    if not found.acted and not found.left and not found.failed:
        return nothing("repair", now, "both sides are equal")
    lines += found.lines(towards)
    code = EXIT_FAILURES if found.failed else 0
    facts = found.to_dict()
    if now is None:
        return Move(
            command="repair", before=str(phase), after=str(phase), executed=True, changed=bool(found.acted), version=0,
            lines=tuple(lines), warnings=(*found.left, *found.failed), facts=facts, exit_code=code,
        )  # fmt: skip
    return done("repair", phase, now, lines, [*found.left, *found.failed], facts=facts, exit_code=code)


__all__ = ["repair"]
