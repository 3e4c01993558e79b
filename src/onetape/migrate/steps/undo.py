"""The undo: new keys that are still what the migration made are removed, values that it replaced are put back.

What somebody wrote since, or had there before, stays and is named (see unmake.py), and so do streams with merged ticks
that are nowhere else. Records on the tape stay. At the end our own keys are removed from the server, and the ledger is
put away: what comes after begins anew.
"""

from __future__ import annotations

from pathlib import Path

from onetape import clock
from onetape.errors import PhaseRefused
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History
from onetape.migrate.phases.move import Move
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.undone import Hand, Undone
from onetape.migrate.report import EXIT_FAILURES, EXIT_SKIPS
from onetape.migrate.steps.course import nothing
from onetape.migrate.steps.unmake import Unmake
from onetape.migrate.verifying import sides as sides_file
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape


def undo(helm: Helm, *, tape: Tape | None, execute: bool) -> Move:
    """Take the migration back. See Migration.undo."""
    with helm.connect(writable=execute) as endpoint:
        now = helm.look(endpoint)
        if now is not None and now.phase is not Phase.PLANNED:
            raise PhaseRefused(
                f"undo belongs to the phase planned, and this migration is in {now.phase}",
                hint="onetape migrate rollback --to planned leads there" if now.phase is not Phase.FINISHED else "",
                phase=str(now.phase),
            )
        if not helm.ledger_path.exists():
            return nothing("undo", now, "there is no ledger, so nothing is known to be ours")
        helm.own(now)
        if not execute:
            with Ledger.open(helm.ledger_path, mode="r") as ledger, History(helm.ledger_path, mode="r") as history:
                ledger.check(helm.plan, address=endpoint.address, run_id=endpoint.run_id)
                hand = Hand(endpoint, helm.plan.target_db, write=False, at=helm.at)
                with Unmake(helm, endpoint, ledger, history, tape, hand) as work:
                    found = work.run()
            lines = [*found.lines(True), "records on the tape stay"]
            return _move(now, found, lines, executed=False)
        with helm.lease("undo") as lease, helm.history(endpoint) as history, Ledger.open(helm.ledger_path) as ledger:
            ledger.check(helm.plan, address=endpoint.address, run_id=endpoint.run_id)
            ledger.begin_run("undo")
            if now is not None:
                history.reconcile(now)
            hand = Hand(endpoint, helm.plan.target_db, write=True, at=helm.at)
            with (
                helm.connect(writable=False) as reader,
                Unmake(helm, reader, ledger, history, tape, hand, lease.check) as work,
            ):
                found = work.run()
            ledger.end_run()
            helm.at("undone")
            lines = [*found.lines(False), "records on the tape stay"]
            if not found.counts["failed"]:
                lease.check()
                _forget(helm, endpoint, now)
                helm.at("forgotten")
        if not found.counts["failed"]:
            lines.append(f"the ledger was put away: {_put_away(helm.ledger_path)}")
        return _move(None, found, lines, executed=True)


def _move(now: states.State | None, found: Undone, lines: list[str], *, executed: bool) -> Move:
    code = EXIT_FAILURES if found.counts["failed"] else EXIT_SKIPS if found.counts["kept"] and executed else 0
    return Move(
        command="undo", before="planned", after="planned", executed=executed, changed=True,
        version=0 if now is None else now.version, lines=tuple(lines), warnings=(*found.failed, *found.kept),
        facts=found.to_dict(), exit_code=code,
    )  # fmt: skip


def _forget(helm: Helm, endpoint: Endpoint, now: states.State | None) -> None:
    """Remove our own keys from the server, while the state is the one that was looked at."""
    names = helm.names
    endpoint.select(names.db)
    endpoint.call("WATCH", names.state)
    found = states.load(endpoint, helm.plan)
    if (found.version if found else 0) != (now.version if now else 0):
        endpoint.call("UNWATCH")
        raise PhaseRefused("the migration's state was changed while it was undone", hint="run it again")
    gone = (names.state, names.clients, names.diverged, names.mirror, names.state + b":durable")
    if endpoint.pipeline([("MULTI",), ("UNLINK", *gone), ("EXEC",)])[-1] is None:
        raise PhaseRefused("the migration's state was changed while it was undone", hint="run it again")


def _put_away(path: Path) -> Path:
    """Rename the ledger, so that it tells of this migration and the next one begins with an empty one."""
    stamp = clock.to_text(clock.now_ns()).replace("-", "").replace(":", "").partition(".")[0]
    away = path.with_name(f"{path.name}.undone-{stamp}")
    sides_file.remove(sides_file.path_of(path))
    for suffix in ("-wal", "-shm", ""):  # the first two only where somebody else has it open
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(away.with_name(away.name + suffix))
    return away


__all__ = ["undo"]
